"""The guarded protocol without the service: limits, deadlines, pipelines, clients that leave."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.hostile.edge import BODY_BYTES_MAX, CUT_WITHIN_S, UPLOAD_BYTES_MAX, Edge, begun, edge, post, reply
from tests.stub import until

LAST = b"connection: close"
SEED_BYTES = b"x" * 100


@pytest.fixture(scope="module")
def shared() -> Iterator[Edge]:
    with edge() as running:
        yield running


CHUNKED = b"transfer-encoding: chunked"

# --- one answer to one request ---


def test_an_early_answer_is_the_only_one_when_the_body_is_bad(shared: Edge) -> None:
    connection = shared.connect(begun(b"/early", CHUNKED) + b"5\r\nhel")
    assert b"404" in connection.recv(4096)
    connection.sendall(b"loXX")
    told = reply(connection)
    assert (told.data, told.ended) == (b"", True)


@pytest.mark.slow
def test_the_app_of_a_pipeline_writes_to_nobody_once_the_client_left() -> None:
    """It writes on for 3 s, as it does not listen; none of that is an error."""
    with edge(drain_timeout_s=10) as running:
        connection = running.connect(post(b"/deaf") + post(b"/echo"))
        assert connection.recv(4096)
        connection.close()
        until(lambda: not running.server.server_state.tasks)


def test_garbage_behind_a_stream_does_not_get_into_it(shared: Edge) -> None:
    """With one more request between them: then the one in hand is not the last."""
    for path, between in ((b"/stream", b""), (b"/deaf", post(b"/echo"))):
        connection = shared.connect(post(path))
        data = connection.recv(4096)
        connection.sendall(between + b"\x16\x03\x01 junk\r\n\r\n")
        told = reply(connection)
        assert b"HTTP/1.1 400" not in data + told.data
        assert told.ended


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0"])
def test_a_wish_to_upgrade_neither_loses_a_body_nor_makes_it_a_request(shared: Edge, upgrade: bytes) -> None:
    """The parser alone ends such a request with its head; Java's HttpClient sends one by default."""
    inner = post(b"/smuggled")
    wish = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: " + upgrade, b"http2-settings: AAMAAABkAARAAAAAAAIAAAAA")
    connection = shared.connect(begun(b"/echo", b"content-length: %d" % len(inner), *wish))
    connection.sendall(inner)
    connection.sendall(post(b"/echo", b"next", b"connection: close, upgrade", b"upgrade: " + upgrade))
    told = reply(connection)
    assert told.statuses == [200, 200]
    assert told.ended
    assert inner in told.data
    assert told.data.endswith(b"next")
    assert "/smuggled" not in shared.app.seen


def test_trailers_are_no_fields(shared: Edge) -> None:
    body = b"2\r\n{}\r\n0\r\nauthorization: Bearer x\r\nx-stainless-retry-count: 1\r\n\r\n"
    told = reply(shared.connect(begun(b"/fields", CHUNKED, LAST) + body))
    assert told.data.endswith(b"host,transfer-encoding,connection")


def test_pipelined_requests_are_answered_in_order(shared: Edge) -> None:
    told = reply(shared.connect(b"".join(post(b"/echo", b"<%d>" % n) for n in range(20)) + post(b"/echo", b"", LAST)))
    assert told.statuses == [200] * 21
    assert [part.partition(b">")[0] for part in told.data.split(b"<")[1:]] == [b"%d" % n for n in range(20)]


def test_a_large_body_with_the_next_head_at_its_heels_is_no_large_head(shared: Edge) -> None:
    following = post(b"/echo", b"", LAST)
    connection = shared.connect(post(b"/echo", b"x" * 100_000) + following[:30])
    connection.sendall(following[30:])
    assert reply(connection).statuses == [200, 200]


def test_kept_alive_connections_are_used_again(shared: Edge) -> None:
    connection = shared.connect()
    for number in range(50):
        connection.sendall(post(b"/echo", b"%d" % number))
        assert connection.recv(4096).endswith(b"\r\n\r\n%d" % number)
    connection.close()


# --- heads ---


@pytest.mark.parametrize(
    "target",
    [b"*", b"t:443", b"http://", b"http://t", b"https://t:99999/x", b"/a#b", b"/\x7f", b"/\xff", b"/a b", b"/\0"],
    ids=repr,
)
def test_odd_targets_are_400(shared: Edge, target: bytes) -> None:
    told = reply(shared.connect(b"GET " + target + b" HTTP/1.1\r\nhost: t\r\n\r\n"))
    assert told.statuses == [400]
    assert told.ended
    assert told.error()["code"] == "invalid_http"


@pytest.mark.parametrize("target", [b"http://t/echo", b"//echo", b"/echo?%ff", b"/%ff%00"], ids=repr)
def test_rare_targets_are_served(shared: Edge, target: bytes) -> None:
    assert reply(shared.connect(post(target, b"", LAST))).statuses == [200]


@pytest.mark.parametrize(
    "head",
    [
        [b"x: " + b"a" * 1_000_000],
        [b"x-%d: 1" % number for number in range(5000)],
        [b"x-%d: " % number + b"a" * 1000 for number in range(90)],
    ],
    ids=["long", "many", "large"],
)
def test_large_heads_are_431_and_the_client_gets_to_read_it(shared: Edge, head: list[bytes]) -> None:
    """The server reads on for a while: to close on unread bytes would reset the connection."""
    for _ in range(5):
        connection = shared.connect()
        connection.sendall(begun(b"/echo", *head))
        told = reply(connection)
        assert told.statuses == [431]
        assert told.error()["code"] == "headers_too_large"
    assert not [path for path in shared.app.seen if path == "/large"]


def test_a_field_that_never_ends_is_cut(shared: Edge) -> None:
    connection = shared.connect(b"POST /echo HTTP/1.1\r\nhost: t\r\nx: ")
    with pytest.raises(ConnectionError):
        for _ in range(10_000):
            connection.sendall(b"a" * 10_000)
    connection.close()
    until(lambda: not shared.connections)


# --- bodies ---


@pytest.mark.parametrize(
    "field", [b"content-length: 20000000000", b"content-length: %d" % (BODY_BYTES_MAX + 1)], ids=["huge", "one over"]
)
def test_too_large_is_413_before_100_continue(shared: Edge, field: bytes) -> None:
    before = len(shared.app.seen)
    told = reply(shared.connect(begun(b"/early", field, b"expect: 100-continue")))
    assert told.statuses == [413]
    assert told.error()["code"] == "request_too_large"
    assert len(shared.app.seen) == before


def test_100_continue_is_sent_once_the_body_is_wanted(shared: Edge) -> None:
    connection = shared.connect(begun(b"/echo", b"content-length: 2", b"expect: 100-continue", LAST))
    assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(b"hi")
    assert reply(connection).statuses == [200]


@pytest.mark.parametrize("path", [b"/echo", b"/early"])
def test_chunks_without_end_are_cut(shared: Edge, path: bytes) -> None:
    """By count, whether the app reads them or has long answered."""
    connection = shared.connect(begun(path, CHUNKED))
    chunk = b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
    with pytest.raises(ConnectionError):
        for _ in range(1000):
            connection.sendall(chunk)
    connection.close()
    until(lambda: not shared.connections)


@pytest.mark.parametrize(
    "flood",
    [b"x-%d: " + b"y" * 50 + b"\r\n", b"y" * 50],
    ids=["trailers", "one trailer"],
)
def test_trailers_without_end_are_cut_and_cost_nothing(shared: Edge, flood: bytes) -> None:
    process = psutil.Process()
    connection = shared.connect(begun(b"/echo", CHUNKED) + b"2\r\n{}\r\n0\r\nx: 1")
    before, sent = process.memory_info().rss, 0
    block = b"".join(flood % number if b"%d" in flood else flood for number in range(3000))
    with pytest.raises(ConnectionError):
        while sent < 500_000_000:
            connection.sendall(block)
            sent += len(block)
    connection.close()
    assert sent < 20_000_000
    assert process.memory_info().rss - before < 20_000_000
    until(lambda: not shared.connections)


def test_a_path_may_take_more_than_others(shared: Edge) -> None:
    most, told = b"x" * UPLOAD_BYTES_MAX, []
    for target in (b"/upload", b"/upload?a=/echo", b"/echo", b"/echo?/upload", b"/upload/"):
        connection = shared.connect(begun(target, b"content-length: %d" % len(most), b"expect: 100-continue", LAST))
        first = connection.recv(4096)
        if first.startswith(b"HTTP/1.1 100"):
            connection.sendall(most)
            told += reply(connection).statuses
        else:
            told += [int(first.split()[1])]
            connection.close()
    assert told == [200, 200, 413, 413, 413]
    over = shared.connect(begun(b"/upload", b"content-length: %d" % (len(most) + 1), b"expect: 100-continue"))
    assert reply(over).error()["message"] == f"the body is larger than {UPLOAD_BYTES_MAX} bytes"


def test_a_path_s_limit_counts_chunks_and_ends_with_its_request(shared: Edge) -> None:
    """The next request of the connection is judged by its own path."""
    chunks = (b"186a0\r\n" + b"x" * 100_000 + b"\r\n") * (UPLOAD_BYTES_MAX // 100_000)
    connection = shared.connect(begun(b"/upload", CHUNKED), chunks, b"0\r\n\r\n")
    got = b""
    while len(got) < UPLOAD_BYTES_MAX:
        got += connection.recv(2**20)
    assert got.startswith(b"HTTP/1.1 200")
    connection.sendall(begun(b"/echo", b"content-length: %d" % UPLOAD_BYTES_MAX))
    assert reply(connection).statuses == [413]
    with pytest.raises(ConnectionError):
        connection = shared.connect(begun(b"/upload", CHUNKED), chunks)
        for _ in range(1000):
            connection.sendall(chunks)
    connection.close()


# --- deadlines ---


@pytest.mark.parametrize(
    "data",
    [b"", b"\r\n\r\n", b"POST /echo HT", b"POST /echo HTTP/1.1\r\nx: ", begun(b"/echo", b"content-length: 9") + b"12"],
    ids=["silent", "blank", "line", "head", "body"],
)
def test_slow_senders_get_408_at_the_deadline(shared: Edge, data: bytes) -> None:
    told = reply(shared.connect(data))
    assert told.statuses == [408]
    assert told.error()["code"] == "request_timeout"
    assert told.ended
    assert 0.8 < told.seconds < CUT_WITHIN_S


def drip(connection: socket.socket, data: bytes, every_s: float, size_bytes: int) -> None:
    """Send a little at a time, on time, until it is all sent or the server has had enough."""
    began = time.monotonic()
    for number, at in enumerate(range(0, len(data), size_bytes)):
        try:
            connection.sendall(data[at : at + size_bytes])
        except OSError:
            return
        time.sleep(max(0, began + (number + 1) * every_s - time.monotonic()))


@pytest.mark.slow
def test_a_trickle_does_not_push_the_deadline(shared: Edge) -> None:
    for data in (b"POST /echo HTTP/1.1\r\nx: " + b"a" * 100, begun(b"/echo", b"content-length: 999") + SEED_BYTES):
        connection = shared.connect()
        thread = threading.Thread(target=drip, args=(connection, data, 0.05, 1 if b"x: " in data else 60))
        thread.start()
        told = reply(connection)
        thread.join()
        assert told.statuses == [408]
        assert told.seconds < CUT_WITHIN_S + 1


@pytest.mark.slow
def test_a_long_upload_at_a_good_rate_passes(shared: Edge) -> None:
    """Three times as long as the deadline, twice as fast as the least rate."""
    connection = shared.connect()
    drip(connection, post(b"/echo", b"x" * 60_000, LAST), 0.1, 2000)
    assert reply(connection).statuses == [200]


@pytest.mark.slow
def test_a_long_answer_is_not_cut(shared: Edge) -> None:
    told = reply(shared.connect(post(b"/stream", b"", LAST)))
    assert told.data.endswith(b"3\r\nend\r\n0\r\n\r\n")
    assert told.seconds > 2.5


@pytest.mark.parametrize("path", [b"/echo", b"/early"])
def test_idle_connections_are_closed(shared: Edge, path: bytes) -> None:
    """Also where the answer came before the body had."""
    connection = shared.connect(begun(path, b"content-length: 2"))
    if path == b"/early":
        assert b"404" in connection.recv(4096)
    connection.sendall(b"hi")
    told = reply(connection)
    assert told.ended
    assert told.seconds < CUT_WITHIN_S
    assert told.statuses in ([200], [])


@pytest.mark.slow
def test_a_client_that_does_not_read_its_answer_is_cut(shared: Edge) -> None:
    """The answer is whole, so no engine is kept; its memory must not be either."""
    for fields in ((), (LAST,)):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", shared.port))
        connection.sendall(post(b"/big", b"", *fields))
        until(lambda: shared.connections == 1)
        until(lambda: shared.connections == 0, 6)
        connection.close()


@pytest.mark.slow
def test_a_client_that_reads_its_answer_slowly_is_not_cut(shared: Edge) -> None:
    """It takes three times as long as an idle connection may."""
    connection, got = shared.connect(post(b"/big", b"", LAST)), 0
    began = time.monotonic()
    while part := connection.recv(600_000):
        got += len(part)
        time.sleep(max(0, began + got / 7_000_000 - time.monotonic()))
    connection.close()
    assert got > 20_000_000


@pytest.mark.slow
def test_time_in_which_we_do_not_read_is_not_the_client_s() -> None:
    with edge() as running:
        connection = running.connect(post(b"/held") + begun(b"/echo", b"content-length: 5000", LAST) + b"x" * 100)
        time.sleep(2.5)
        assert running.connections == 1
        running.app.go.set()
        drip(connection, b"x" * 4900, 0.1, 700)
        assert reply(connection).statuses == [200, 200]


@pytest.mark.slow
def test_half_a_head_behind_a_long_answer_has_its_own_time(shared: Edge) -> None:
    connection = shared.connect(post(b"/stream") + b"POST /echo HTTP/1.1\r\n")
    told = reply(connection)
    assert told.statuses == [200, 408]
    assert b"3\r\nend\r\n0\r\n\r\nHTTP/1.1 408" in told.data
    assert told.seconds < 3 + CUT_WITHIN_S


# --- connections ---


def test_connections_are_capped() -> None:
    with edge(connections_max=20, header_timeout_s=30) as running:
        held = [running.connect() for _ in range(20)]
        until(lambda: running.connections == 20)
        told = reply(running.connect())
        assert told.statuses == [503]
        assert told.error()["code"] == "too_many_connections"
        assert b"retry-after: 1\r\n" in told.data
        held.pop().close()
        until(lambda: running.connections == 19)
        assert reply(running.connect(post(b"/echo", b"", LAST))).statuses == [200]
        for connection in held:
            connection.close()


@pytest.mark.parametrize("leave", ["close", "reset", "half"])
def test_the_app_learns_at_once_that_its_client_left(leave: str) -> None:
    with edge() as running:
        connection = running.connect(post(b"/wait"))
        until(lambda: running.app.seen)
        if leave == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if leave == "half":
            connection.shutdown(socket.SHUT_WR)
        else:
            connection.close()
        until(lambda: running.app.gone == 1, 1)
        connection.close()


def test_a_cut_answer_never_looks_whole(shared: Edge) -> None:
    told = reply(shared.connect(post(b"/cut")))
    assert told.ended
    assert b"tick" in told.data
    assert b"0\r\n\r\n" not in told.data
