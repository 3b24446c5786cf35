"""A closed-loop load generator over raw sockets. Every answer is checked; a wrong one ends the run."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass

import httptools

from bench.engine import DONE, TEXT, WHOLE

TIMEOUT_S = 120.0


class Wrong(Exception):
    """A subject answered something else than its engine said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One run."""

    requests: int
    chunks: int
    seconds: float
    median_s: float
    p99_s: float


class Client(asyncio.Protocol):
    """One kept-alive connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[bytes] | None = None
        self.began: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(Wrong("the connection broke off"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body: list[bytes] = []

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        if self.began is not None and not self.began.done():
            self.began.set_result(None)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._done is None or self._done.done():
            return
        if status == 200:
            self._done.set_result(b"".join(self._body))
        else:
            self._done.set_exception(Wrong(f"status {status}: {b''.join(self._body)[:300]!r}"))

    async def ask(self, request: bytes) -> bytes:
        """Send one request; its body when it is whole."""
        self._done = self._loop.create_future()
        self.transport.write(request)
        return await self._done


def request(port: int, *, stream: bool) -> bytes:
    """A chat request of some 400 bytes."""
    content = "Tell me something short about foxes and dogs. " * 6
    body = {"model": "bench/model", "messages": [{"role": "user", "content": content}], "stream": stream}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}authorization: Bearer none\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def check(body: bytes, *, stream: bool) -> int:
    """The number of chunks of a right answer. Raises `Wrong`."""
    if not stream:
        if body != WHOLE and TEXT not in body.decode():  # some subjects write the JSON anew
            raise Wrong(f"another body: {body[:300]!r}")
        return 1
    if not body.endswith(DONE):
        raise Wrong(f"a stream without its end: {body[-200:]!r}")
    return max(body.count(b"data: ") - 1, 1)


async def connect(port: int) -> Client:
    """A connection to a loopback port."""
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


async def run(port: int, *, connections: int, requests: int, stream: bool) -> Result:
    """`requests` in all over `connections`. Blocks for at most `TIMEOUT_S`."""
    data = request(port, stream=stream)
    left, seconds, chunks = requests, [], 0

    async def worker(client: Client) -> None:
        nonlocal left, chunks
        while left > 0:
            left -= 1
            began = time.perf_counter()
            body = await client.ask(data)
            seconds.append(time.perf_counter() - began)
            chunks += check(body, stream=stream)

    clients = [await connect(port) for _ in range(connections)]
    began = time.perf_counter()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(worker(client) for client in clients))
    finally:
        for client in clients:
            client.transport.close()
    took = time.perf_counter() - began
    p99 = statistics.quantiles(seconds, n=100)[98] if len(seconds) > 1 else seconds[0]
    return Result(requests=requests, chunks=chunks, seconds=took, median_s=statistics.median(seconds), p99_s=p99)


async def hold_open(port: int, streams: int) -> list[Client]:
    """Open `streams` slow streams and return once each has begun."""
    clients = []
    for start in range(0, streams, 100):
        batch = [await connect(port) for _ in range(start, min(start + 100, streams))]
        for client in batch:
            client.began = asyncio.get_running_loop().create_future()
            client.transport.write(request(port, stream=True))
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(client.began for client in batch if client.began))
        clients += batch
    return clients
