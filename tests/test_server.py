"""The server around the guarded protocol: the address, and the drain."""

from __future__ import annotations

import socket
import time

import pytest

from orchestrator.server import AddressInUse, address, listen
from tests.hostile.edge import edge, post, reply
from tests.stub import until


def test_drain_answers_what_is_in_flight_and_closes_what_is_idle() -> None:
    with edge(drain_timeout_s=10) as running:
        idle, busy = running.connect(post(b"/echo", b"a")), running.connect(post(b"/held"))
        assert idle.recv(4096).endswith(b"a")
        until(lambda: "/held" in running.app.seen)
        running.server.should_exit = True
        assert reply(idle).ended
        assert running.app.drained
        with pytest.raises(ConnectionError):
            running.connect()
        running.app.go.set()
        told = reply(busy)
        assert told.statuses == [200]
        assert told.ended


def test_drain_ends_in_time_with_an_answer_or_a_cut() -> None:
    with edge(drain_timeout_s=1) as running:
        held, streamed = running.connect(post(b"/wait")), running.connect(post(b"/stream"))
        until(lambda: len(running.app.seen) == 2)
        began = time.monotonic()
        running.server.should_exit = True
        told, cut = reply(held), reply(streamed)
        assert told.statuses == [503]
        assert told.error()["code"] == "service_ending"
        assert b"tick" in cut.data
        assert b"0\r\n\r\n" not in cut.data
        until(lambda: not running.server.server_state.tasks, 2)
        assert time.monotonic() - began < 4


def test_a_taken_port_is_told_in_one_line() -> None:
    with listen("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"can't listen on 127.0.0.1:{port}: Address already in use"):
            listen("127.0.0.1", port)


def test_addresses_are_written_as_urls() -> None:
    with listen("127.0.0.1", 0) as four:
        assert address(four) == f"http://127.0.0.1:{four.getsockname()[1]}"
    if socket.has_ipv6:
        with listen("::1", 0) as six:
            assert address(six) == f"http://[::1]:{six.getsockname()[1]}"
