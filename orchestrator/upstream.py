"""A lean HTTP/1.1 client for engines: one pool of kept-alive connections per engine.

It exists because the data plane's cost is CPU per chunk: httpx takes some 30 times as much per request. It
speaks only what engines speak: HTTP/1.1 to an address from our own leases or the configuration, one request at a time
on a connection, answers with a length, chunked, or until close.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import httptools

from orchestrator.errors import UpstreamBroken, UpstreamError, UpstreamLost, UpstreamTimeout, UpstreamUnreachable
from orchestrator.listener import Listener

Headers = list[tuple[bytes, bytes]]

HEAD_BYTES_MAX = 64 * 2**10
BUFFER_BYTES_MAX = 256 * 2**10
IDLE_CONNECTIONS_MAX = 512
KEPT_CLOSES_S = 1.0
"""A kept-alive connection that the engine had closed already is found to be so within this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """Seconds; see `config.ProxySettings`."""

    connect_timeout_s: float
    first_byte_timeout_s: float
    stream_idle_timeout_s: float
    request_timeout_s: float
    attempt_timeout_s: float = float("inf")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """How a server is spoken to in secret, and who it must prove to be."""

    context: ssl.SSLContext
    name: str


class Connection(asyncio.Protocol):
    """One connection to an engine. Owned by one request at a time; `Pool` hands it out."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._error: UpstreamError | None = None
        self._paused = False
        self._sink: Callable[[bytes], bool] | None = None
        self._full = False
        self._listener: Listener | None = None
        self._buffered_bytes = 0
        self._head_bytes = 0
        self._idle_timeout_s = float("inf")
        self._chunks: deque[bytes] = deque()
        self.headers: Headers = []
        self.status = 0
        self.answered = True
        """Whether the whole answer is in."""
        self.began = False
        """Whether any byte of the answer has come."""
        self.sent_at = 0.0
        self.movable = False
        """Whether the request may be given up for another engine as long as no answer has begun."""
        self.silence_ends_at = float("inf")
        self.request_ends_at = float("inf")

    # --- the request's side ---

    def send(self, head: bytes, body: bytes, timeouts: Timeouts, *, movable: bool = False) -> None:
        """Write a request. Does not block; a body larger than the socket takes stays in the transport."""
        self.headers, self.status = [], 0
        self.answered, self.began, self._head_bytes = False, False, 0
        self.sent_at = now = self._loop.time()
        self.movable = movable
        self.silence_ends_at = now + timeouts.first_byte_timeout_s
        self.request_ends_at = now + timeouts.request_timeout_s
        self._idle_timeout_s = timeouts.stream_idle_timeout_s
        if self._transport is not None:
            self._transport.write(head + body if len(body) < 65536 else head)
            if len(body) >= 65536:
                self._transport.write(body)

    async def head(self) -> None:
        """Wait until `status` and `headers` are there. Raises `UpstreamError`."""
        while not self.status:
            await self._wait()

    async def chunk(self) -> bytes:
        """The next piece of the body, all that has come since the last; empty at the end of the answer.

        Raises `UpstreamError` when the answer breaks off: what came before was given out first.
        """
        while not self._chunks:
            if self.answered:
                return b""
            await self._wait()
        self.resume()
        return self.take()

    @property
    def age_s(self) -> float:
        """Seconds since the request."""
        return self._loop.time() - self.sent_at

    @property
    def buffered_bytes(self) -> int:
        """How much of the body waits to be taken."""
        return self._buffered_bytes

    def listen(self, listener: Listener | None) -> None:
        """Have `listener` told of all that comes from now on, instead of waking whoever awaits; None: nobody."""
        self._listener = listener

    def take(self) -> bytes:
        """All of the body that has come since the last time; empty when nothing has. Does not block."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered_bytes = 0
        return data

    def pause(self) -> None:
        """Read no more until `resume`: whoever gets the answer is slower than the engine."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    async def relay(self, sink: Callable[[bytes], bool]) -> bool:
        """Hand the body to `sink` straight from the socket, until the answer ends (True) or `sink` says that it
        is full (False: call again once it is not). No task is woken for a chunk. Raises `UpstreamError`.
        """
        self._sink = sink
        self._full = False
        try:
            if self._chunks:
                self._pour()
            while not self.answered and not self._full:
                await self._wait()
            return not self._full and not self._chunks
        finally:
            self._sink = None

    def _pour(self) -> None:
        """Give what is buffered to the sink."""
        if self._sink is None or not self._chunks:
            return
        self.resume()
        data = self.take()
        self._full = not self._sink(data)

    def abort(self, error: UpstreamError | None = None) -> None:
        """Close hard, which ends the request at the engine; whoever waits gets `error`."""
        self._fail(error or UpstreamBroken("the request was given up"))
        if self._transport is not None:
            self._transport.abort()

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on it."""
        return self.answered and self._error is None and self._transport is not None

    def expire(self, now: float) -> None:
        """Give up if a deadline has passed. Called by the pool's sweep."""
        if now >= self.silence_ends_at or now >= self.request_ends_at:
            self.abort(UpstreamTimeout("the engine did not answer in time"))

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _told(self) -> None:
        if self._listener is not None:
            self._listener.progressed()
        else:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: UpstreamError) -> None:
        if self._error is None:
            self._error = error
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.failed(self._error)
        self._wake_with_error()

    def _wake_with_error(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._error or UpstreamBroken("closed"))

    # --- the transport's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by behaviour only

    def data_received(self, data: bytes) -> None:
        if self.answered:
            self.abort(UpstreamBroken("the engine sent bytes that nobody asked for"))
            return
        self.began = True
        self.silence_ends_at = self._loop.time() + self._idle_timeout_s
        if not self.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort(UpstreamBroken("the engine's answer is not HTTP"))
            return
        if not self.status and self._head_bytes > HEAD_BYTES_MAX:
            self.abort(UpstreamBroken("the head of the engine's answer is too large"))
            return
        if self._sink is not None and not self._full:
            self._pour()
            if not (self.answered or self._full):
                return  # nobody has to wake for it
        if self._listener is not None:
            self._listener.progressed()
            return
        if self._buffered_bytes > BUFFER_BYTES_MAX:
            self.pause()
        if self.status:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.answered and self.status and self._until_close():
            self.on_message_complete()
            self._told()
        elif self.began:
            self._fail(UpstreamBroken("the engine closed the connection in the middle of its answer"))
        else:
            self._fail(UpstreamLost("the engine closed the connection before it answered"))

    def _until_close(self) -> bool:
        """An answer with neither a length nor chunks ends when the connection does (RFC 9112, 6.3)."""
        names = {name for name, _ in self.headers}
        return not names & {b"content-length", b"transfer-encoding"}

    # --- the parser's side ---

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
        else:
            self.headers = []

    def on_body(self, data: bytes) -> None:
        self._chunks.append(data)
        self._buffered_bytes += len(data)

    def on_message_complete(self) -> None:
        if not self.status:
            return
        self.answered = True
        self.silence_ends_at = self.request_ends_at = float("inf")
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
            self._transport = None


class Pool:
    """The connections to one engine."""

    def __init__(
        self, host: str, port: int, timeouts: Timeouts, *, authority: str = "", tls: Tls | None = None
    ) -> None:
        """`authority`: what it is called, where that is not `host` and `port`."""
        self._host, self._port, self._timeouts, self._tls = host, port, timeouts, tls
        first_byte_s = min(timeouts.first_byte_timeout_s, timeouts.attempt_timeout_s)
        self._hasty = replace(timeouts, first_byte_timeout_s=first_byte_s)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self.authority = (authority or f"{host}:{port}").encode()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it connects to."""
        return self._host, self._port

    @property
    def tls_name(self) -> str:
        """Who the server must prove to be; empty: nobody asks."""
        return self._tls.name if self._tls is not None else ""

    def begin(
        self, head: bytes, body: bytes, listener: Listener, *, movable: bool = False, streamed: bool = False
    ) -> Connection | None:
        """Send a request on an idle connection and have `listener` told of the answer; None when none is idle.

        One that is `movable` may fail early, and is tried elsewhere then: see `give_up`, and `attempt_timeout_s`, for
        streams only: other answers begin with their end. Give the connection back with `release`. Does not block.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                self._busy.add(connection)
                connection.listen(listener)
                connection.send(head, body, self._hasty if movable and streamed else self._timeouts, movable=movable)
                return connection
        return None

    async def request(self, head: bytes, body: bytes, *, movable: bool = False, streamed: bool = False) -> Connection:
        """Send a request and wait for the head of its answer. Give the connection back with `release`.

        `head` is complete, blank line included; the others as in `begin`. A kept-alive connection that closes at once
        is tried once more on a new one: it was closed before the engine saw the request. Raises `UpstreamError`.
        """
        timeouts, lost = self._hasty if movable and streamed else self._timeouts, None
        while self._idle and lost is None:
            connection = self._idle.pop()
            if connection.reusable:
                try:
                    return await self._sent(connection, head, body, timeouts, movable)
                except UpstreamLost as error:
                    if connection.age_s > KEPT_CLOSES_S:
                        raise
                    lost = error
        try:
            connection = await self._connect()
        except UpstreamUnreachable as error:
            raise lost or error from None
        return await self._sent(connection, head, body, timeouts, movable)

    def release(self, connection: Connection) -> None:
        """Take a connection back, to be used again if its answer was read whole, else to be closed."""
        self._busy.discard(connection)
        connection.listen(None)
        if connection.reusable and len(self._idle) < IDLE_CONNECTIONS_MAX:
            self._idle.append(connection)
        else:
            connection.abort()

    def give_up(self, requests_max: int) -> None:
        """The engine is silent: end so many of the requests that may go elsewhere."""
        for connection in [c for c in self._busy if c.movable and not c.began][:requests_max]:
            connection.abort(UpstreamTimeout("the engine does not answer"))

    def sweep(self, now: float) -> None:
        """Cut requests whose engine is silent for too long; forget idle connections that closed."""
        for connection in tuple(self._busy):
            connection.expire(now)
        self._idle = [connection for connection in self._idle if connection.reusable]

    def close(self) -> None:
        """Close every connection, those of running requests too."""
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle = []

    async def _sent(
        self, connection: Connection, head: bytes, body: bytes, timeouts: Timeouts, movable: bool
    ) -> Connection:
        self._busy.add(connection)
        try:
            connection.send(head, body, timeouts, movable=movable)
            await connection.head()
        except BaseException:
            self._busy.discard(connection)
            connection.abort()
            raise
        return connection

    async def _connect(self) -> Connection:
        loop, tls = asyncio.get_running_loop(), self._tls.context if self._tls is not None else None
        try:
            async with asyncio.timeout(self._timeouts.connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop), self._host, self._port, ssl=tls, server_hostname=self.tls_name or None
                )
        except (OSError, TimeoutError) as error:
            raise UpstreamUnreachable(f"the engine takes no connections: {error or 'timed out'}") from None
        return connection
