"""A client that does not read holds up its engine, not our memory; and the load generator can be trusted."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path

import psutil
import pytest

from bench import load
from bench.engine import BURST, EVENTS
from bench.subjects import ENGINE, engine_argv, free_port, running
from tests.stub import service, until

MODEL = "bench/model"
CHUNKS = 400_000  # some 70 MB


@pytest.mark.parametrize("fresh", [True, False], ids=["by the app", "by the express lane"])
def test_slow_reader_costs_no_memory(tmp_path: Path, fresh: bool) -> None:
    command = [sys.executable, str(ENGINE), "--port", "{port}", "--chunks", str(CHUNKS)]
    table = f'[models."{MODEL}"]\nengine = "command"\nmin_replicas = 1\ncommand = {json.dumps(command)}\n'
    with service(tmp_path, table) as served:
        until(lambda: served.phase(MODEL) == "ready")
        port = int(served.url.rpartition(":")[2])
        if not fresh:
            asyncio.run(load.run(port, connections=1, requests=2, stream=False))
        process = psutil.Process(served.process.pid)
        before = process.memory_info().rss
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.sendall(load.request(port, stream=True))
            until(lambda: served.model(MODEL)["in_flight"] == 1)
            grown = max(process.memory_info().rss - before for _ in range(2000))
            assert grown < 20_000_000
            received, end = 0, b""
            while not end.endswith(b"0\r\n\r\n"):
                data = client.recv(2**20)
                assert data
                received, end = received + len(data), (end + data)[-16:]
        assert received > CHUNKS * len(EVENTS[0])
        assert process.memory_info().rss - before < 30_000_000


def test_load_counts_exactly_and_refuses_wrong_answers(tmp_path: Path) -> None:
    port = free_port()
    with running(engine_argv(port, 2 * BURST, 0), tmp_path, port):
        whole = asyncio.run(load.run(port, connections=4, requests=50, stream=False))
        streams = asyncio.run(load.run(port, connections=4, requests=10, stream=True))
    assert (whole.requests, whole.chunks, streams.chunks) == (50, 50, 20 * BURST)
    for body, stream in ((b"{}", False), (b"data: {}\n\n", True)):
        with pytest.raises(load.Wrong):
            load.check(body, stream=stream)
