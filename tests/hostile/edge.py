"""A server with a small app of its own, in a thread, and raw connections to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.answering import CONNECTION
from orchestrator.errors import ApiError
from orchestrator.guard import Express, Ride
from orchestrator.head import path_of
from orchestrator.reader import ClientGone, read_body
from orchestrator.server import Server, listen, server
from orchestrator.settings import Settings
from tests.stub import until

BODY_BYTES_MAX = 1_000_000
UPLOAD_BYTES_MAX = 3_000_000
"""For `/upload`."""
LIMITS: dict[str, Any] = {
    "header_timeout_s": 1,
    "body_timeout_s": 1,
    "body_bytes_per_s_min": 10_000,
    "body_bytes_max": BODY_BYTES_MAX,
    "keep_alive_s": 1,
    "port": 0,
}
CUT_WITHIN_S = 2.5
"""A deadline of a second, two sweeps, and a busy machine."""


def post(path: bytes, body: bytes = b"", *fields: bytes) -> bytes:
    """A whole request."""
    head = [b"POST %b HTTP/1.1" % path, b"host: t", b"content-length: %d" % len(body), *fields]
    return b"\r\n".join([*head, b"", body])


def begun(path: bytes, *fields: bytes) -> bytes:
    """A head whose body is still to come."""
    return b"\r\n".join([b"POST %b HTTP/1.1" % path, b"host: t", *fields, b"", b""])


class NoExpress:
    """Every request goes by the app."""

    def takes(self, scope: Any) -> bool:
        """Never."""
        return False

    def board(self, client: Any, cycle: Any) -> Ride | None:
        """Never called."""
        raise AssertionError("nothing was taken")


class EdgeApp:
    """What is served: `/echo` the body, `/early` an answer before it is read, and more, see `_answer`."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        """The path of every request that reached the app."""
        self.gone = 0
        """How many clients left while they were answered."""
        self.drained = False
        self.go = threading.Event()
        """What `/held` waits for."""

    def asgi(self) -> ASGIApp:
        """The app."""
        return self._run

    def express(self) -> Express:
        """No lane."""
        return NoExpress()

    def body_limit(self, target: bytes) -> int:
        """More for one path."""
        return UPLOAD_BYTES_MAX if path_of(target) == b"/upload" else BODY_BYTES_MAX

    def listening(self, url: str, public: str) -> None:
        """Nothing to do."""

    def drain(self) -> None:
        """The server was told to end."""
        self.drained = True

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": (await receive())["type"] + ".complete"})
            return
        self.seen.append(scope["path"])
        try:
            await self._answer(scope, receive, send)
        except ApiError as error:
            await _whole(send, error.status, json.dumps(error.body()).encode(), (b"connection", b"close"))
        except ClientGone:
            self.gone += 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"]:
            case "/early":
                await _whole(send, 404, b"")
            case "/held":
                await asyncio.to_thread(self.go.wait, 20)
                await _whole(send, 200, b"held")
            case "/fields":
                await read_body(scope, receive, body_bytes_max=BODY_BYTES_MAX)
                await _whole(send, 200, b",".join(name for name, _ in scope["headers"]))
            case "/big":
                await _whole(send, 200, b"x" * 20_000_000)
            case "/stream" | "/cut" | "/deaf":
                await self._stream(scope, send)
            case "/wait":
                await self._wait(scope)
            case "/upload":
                await _whole(send, 200, await read_body(scope, receive, body_bytes_max=UPLOAD_BYTES_MAX))
            case _:
                await _whole(send, 200, await read_body(scope, receive, body_bytes_max=BODY_BYTES_MAX))

    async def _stream(self, scope: Scope, send: Send) -> None:
        connection, left = scope["extensions"][CONNECTION], asyncio.Event()
        if scope["path"] != "/deaf":
            connection.on_close = left.set
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(15):
            await send({"type": "http.response.body", "body": b"tick", "more_body": True})
            await asyncio.sleep(0.2)
            if scope["path"] == "/cut":
                connection.abort()
            if left.is_set():
                raise ClientGone
        connection.on_close = None
        await send({"type": "http.response.body", "body": b"end", "more_body": False})

    async def _wait(self, scope: Scope) -> None:
        left = asyncio.Event()
        connection = scope["extensions"][CONNECTION]
        connection.on_close = left.set
        await left.wait()
        assert connection.on_close is None
        raise ClientGone


async def _whole(send: Send, status: int, body: bytes, *fields: tuple[bytes, bytes]) -> None:
    headers = [(b"content-length", b"%d" % len(body)), *fields]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Edge:
    """A running server."""

    def __init__(self, app: EdgeApp, running: Server, port: int) -> None:
        self.app = app
        self.server = running
        self.port = port

    def connect(self, *data: bytes) -> socket.socket:
        """A connection with `data` sent on it."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        for part in data:
            connection.sendall(part)
        return connection

    @property
    def connections(self) -> int:
        """How many the server holds."""
        return len(self.server.server_state.connections)


@contextlib.contextmanager
def edge(*, drain_timeout_s: float = 1, **limits: Any) -> Iterator[Edge]:
    """A server in a thread, with `LIMITS` and these. Nothing that a client does is worth a line in its log."""
    listener, app = listen("127.0.0.1", 0), EdgeApp()
    settings = Settings.model_validate(
        {"server": {**LIMITS, **limits}, "defaults": {"drain_timeout_s": drain_timeout_s}}
    )
    running = server(app, settings, listener)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    kept = _Kept()
    logging.getLogger().addHandler(kept)
    thread.start()
    try:
        until(lambda: running.started or not thread.is_alive())
        assert running.started
        yield Edge(app, running, listener.getsockname()[1])
    finally:
        app.go.set()
        until(lambda: not running.server_state.tasks)  # what a test left half sent is cut in its own time
        running.should_exit = True
        thread.join(10)
        logging.getLogger().removeHandler(kept)
    assert not thread.is_alive()
    assert not kept.lines, kept.lines


class _Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class Reply:
    """All that a server sent, and how it ended."""

    def __init__(self, data: bytes, *, ended: bool, seconds: float) -> None:
        self.data = data
        self.ended = ended
        """Whether the connection was closed or reset, not just silent."""
        self.seconds = seconds

    @property
    def statuses(self) -> list[int]:
        """Of every response in it; the tests' bodies hold no status lines."""
        return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.data)]

    def error(self) -> dict[str, Any]:
        """The last response's error; it must have OpenAI's shape and an id."""
        head, _, body = self.data[self.data.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        assert fields[b"content-type"] == b"application/json"
        assert fields[b"connection"] == b"close"
        assert fields[b"x-request-id"].startswith(b"req-")
        assert int(fields[b"content-length"]) == len(body)
        found: dict[str, Any] = json.loads(body)["error"]
        assert found.keys() == {"message", "type", "param", "code"}
        return found


def reply(connection: socket.socket, silence_s: float = CUT_WITHIN_S) -> Reply:
    """Read until the server ends the connection, or is silent for so long. Closes it."""
    connection.settimeout(silence_s)
    began, data, ended = time.monotonic(), b"", True
    with connection:
        try:
            while part := connection.recv(65536):
                data += part
        except TimeoutError:
            ended = False
        except ConnectionError:
            pass
    return Reply(data, ended=ended, seconds=time.monotonic() - began)
