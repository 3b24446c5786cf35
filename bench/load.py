"""A closed-loop load generator over raw sockets. Every answer is checked; a wrong one ends the run."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass

import httptools

from bench.engine import DONE, EVENTS, ONE_BY_ONE, TEXT, WHOLE, stream_body

TIMEOUT_S = 120.0
CONNECT_BATCH = 100
_MARK = b" fox"
"""Each event of a stream has it once, also where a subject has written the event anew."""


class Wrong(Exception):
    """A subject answered something else than its engine said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One run."""

    requests: int
    chunks: int
    """Answers, or the events of all streams without their [DONE]."""
    seconds: float
    median_s: float
    p99_s: float


class Client(asyncio.Protocol):
    """One kept-alive connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[bytes] | None = None
        self._began: asyncio.Future[None] | None = None
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(Wrong("the connection broke off"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(Wrong(f"not HTTP: {error}: {data[:200]!r}"))
            self.transport.abort()

    def on_message_begin(self) -> None:
        self._body = []

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        if self._began is not None and not self._began.done() and self._parser.get_status_code() == 200:
            self._began.set_result(None)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._fail(Wrong(f"status {status}: {self.received[:300]!r}"))
        elif self._done is not None and not self._done.done():
            self._done.set_result(self.received)

    @property
    def received(self) -> bytes:
        """What has come of the answer's body so far."""
        return b"".join(self._body)

    @property
    def is_open(self) -> bool:
        """Whether an answer is still on its way."""
        return self._done is not None and not self._done.done()

    async def ask(self, request: bytes) -> bytes:
        """Send one request; its body when it is whole."""
        if self.transport.is_closing():
            raise Wrong("the connection was closed between two requests")
        self._done = self._loop.create_future()
        self.transport.write(request)
        return await self._done

    async def open(self, request: bytes) -> None:
        """Send one request; returns when its answer, a 200, has begun."""
        self._done, self._began = self._loop.create_future(), self._loop.create_future()
        self.transport.write(request)
        await self._began

    def _fail(self, error: Wrong) -> None:
        for waiting in (self._began, self._done):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # seen: of a stream held open, only one of the two is awaited


def request(port: int, *, stream: bool, one_by_one: bool = False) -> bytes:
    """A chat request of some 500 bytes."""
    content = "Tell me something short about foxes and dogs. " * 6
    user = ONE_BY_ONE.decode() if one_by_one else "bench"
    body = {
        "model": "bench/model", "messages": [{"role": "user", "content": content}], "stream": stream, "user": user
    }  # fmt: skip
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}authorization: Bearer none\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def check(body: bytes, *, stream: bool, chunks: int | None = None, rewrites: bool = False) -> int:
    """The number of chunks of a right answer. Raises `Wrong`.

    The bytes must be the engine's; of a subject that `rewrites` JSON, the text and the number of events. `chunks` is
    how many a stream must have; None: any number, if it is whole.
    """
    if not stream:
        if body != WHOLE and not (rewrites and TEXT in body.decode("utf-8", "replace")):
            raise Wrong(f"another body: {body[:300]!r}")
        return 1
    if not body.endswith(DONE):
        raise Wrong(f"a stream without its end: {body[-200:]!r}")
    count = body.count(_MARK)
    if count != (count if chunks is None else chunks) or count == 0:
        raise Wrong(f"a stream of {count} chunks, not {chunks}")
    if not rewrites and body != stream_body(count):
        raise Wrong(f"a stream of other bytes: {body[:300]!r}")
    return count


async def connect(port: int) -> Client:
    """A connection to a loopback port."""
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


async def run(
    port: int,
    *,
    connections: int,
    requests: int,
    stream: bool,
    one_by_one: bool = False,
    chunks: int | None = None,
    rewrites: bool = False,
) -> Result:
    """`requests` in all over `connections`. Blocks for at most `TIMEOUT_S`. Raises `Wrong`; see `check`."""
    data = request(port, stream=stream, one_by_one=one_by_one)
    left, seconds, counted = requests, list[float](), 0

    async def worker(client: Client) -> None:
        nonlocal left, counted
        while left > 0:
            left -= 1
            began = time.perf_counter()
            body = await client.ask(data)
            seconds.append(time.perf_counter() - began)
            counted += check(body, stream=stream, chunks=chunks, rewrites=rewrites)

    clients = [await connect(port) for _ in range(connections)]
    began = time.perf_counter()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(worker(client) for client in clients))
    finally:
        close(clients)
    took = time.perf_counter() - began
    p99 = statistics.quantiles(seconds, n=100)[98] if len(seconds) > 1 else seconds[0]
    return Result(requests=len(seconds), chunks=counted, seconds=took, median_s=statistics.median(seconds), p99_s=p99)


async def hold_open(port: int, streams: int) -> list[Client]:
    """Open `streams` slow streams and return once each has begun with a 200. Raises `Wrong`."""
    data = request(port, stream=True)
    clients: list[Client] = []
    try:
        async with asyncio.timeout(TIMEOUT_S):
            for start in range(0, streams, CONNECT_BATCH):
                batch = [await connect(port) for _ in range(start, min(start + CONNECT_BATCH, streams))]
                clients += batch
                await asyncio.gather(*(client.open(data) for client in batch))
    except (Wrong, OSError):
        close(clients)
        raise
    return clients


def close(clients: list[Client]) -> None:
    """Hang up."""
    for client in clients:
        client.transport.abort()


def check_open(clients: list[Client], *, rewrites: bool = False) -> None:
    """Each stream is still on its way, and what has come of it is right. Raises `Wrong`."""
    for client in clients:
        if not client.is_open:
            raise Wrong(f"a stream ended early: {client.received[-200:]!r}")
        if not rewrites and not stream_body(len(client.received) // len(EVENTS[0]) + 1).startswith(client.received):
            raise Wrong(f"a stream of other bytes: {client.received[:300]!r}")
