"""An instant engine: answers chat requests at once, with as little work as can be, so that a proxy's cost shows.

Run as a program: ``python engine.py --port P [--chunks N] [--chunk-delay-s S]``. Loopback only.
What it sends is known byte for byte (`WHOLE`, `stream_body`), so that every answer can be checked.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os

import httptools
import uvloop

TEXT = "The quick brown fox jumps over the lazy dog. " * 6
WHOLE = json.dumps(
    {
        "id": "bench-1",
        "object": "chat.completion",
        "created": 1,
        "model": "bench/model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 60, "total_tokens": 69},
    }
).encode()
_HEAD = {"id": "bench-1", "object": "chat.completion.chunk", "created": 1, "model": "bench/model"}
BURST = 20
"""Events in a write when flat out: many tokens wait in the socket when a proxy can't keep up."""
ONE_BY_ONE = b"one-by-one"
"""A request whose `user` is this gets each event in a write of its own, as most engines send them."""
OWNER_CHECK_S = 2.0


METERED = b'"continuous_usage_stats":true'
"""A request with this in it gets usage with every event, and by itself before the end, as from vLLM."""


def _event(number: int, *, metered: bool = False) -> bytes:
    choice = {"index": 0, "delta": {"content": f" fox{number:02}"}, "finish_reason": None}
    return _line({**_HEAD, "choices": [choice], **(_usage(number) if metered else {})})


def _usage(number: int) -> dict[str, dict[str, int]]:
    return {"usage": {"prompt_tokens": 9, "total_tokens": 10 + number, "completion_tokens": 1 + number}}


def _line(content: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


EVENTS = [_event(number) for number in range(BURST)]
DONE = b"data: [DONE]\n\n"
_INFO = json.dumps({"object": "list", "data": [{"id": "bench/model", "object": "model"}], "model_path": "bench/model"})


@functools.lru_cache(maxsize=4)
def stream_body(chunks: int) -> bytes:
    """The body of a whole stream: the events in turn, then the end."""
    return b"".join(EVENTS[number % BURST] for number in range(chunks)) + DONE


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
FRAMED = [[_chunk(_event(number, metered=metered)) for number in range(BURST)] for metered in (False, True)]
ALL_FRAMED = [b"".join(framed) for framed in FRAMED]
LAST_USAGE = _chunk(_line({**_HEAD, "choices": [], **_usage(BURST)}))
END = _chunk(DONE) + b"0\r\n\r\n"
WHOLE_RESPONSE = _response(WHOLE)
INFO_RESPONSE = _response(_INFO.encode())


class Engine(asyncio.Protocol):
    """One connection. Requests of a pipeline are not expected: no subject sends them."""

    def __init__(self, chunks: int, delay_s: float) -> None:
        self._chunks, self._delay_s = chunks, delay_s
        self._writable = asyncio.Event()
        self._writable.set()
        self._stream: asyncio.Task[None] | None = None
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if b'"stream": true' in self._body or b'"stream":true' in self._body:
            burst = 1 if self._delay_s or ONE_BY_ONE in self._body else BURST
            self._stream = asyncio.get_running_loop().create_task(self._send_stream(burst, METERED in self._body))
        elif self._parser.get_method() == b"POST":
            self._transport.write(WHOLE_RESPONSE)
        else:
            self._transport.write(INFO_RESPONSE)

    async def _send_stream(self, burst: int, metered: bool) -> None:
        self._transport.write(SSE_HEAD)
        for first in range(0, self._chunks, burst):
            await self._writable.wait()
            self._transport.write(_framed(first, min(burst, self._chunks - first), metered))
            await asyncio.sleep(self._delay_s)
        self._transport.write(LAST_USAGE + END if metered else END)


def _framed(first: int, count: int, metered: bool) -> bytes:
    """Some events of a stream, each a chunk of its own."""
    if count == BURST and first % BURST == 0:
        return ALL_FRAMED[metered]
    return b"".join(FRAMED[metered][number % BURST] for number in range(first, first + count))


async def outlive_not(owner: int) -> None:
    """Until the process is gone that wants this engine, even if it was killed and could not end it."""
    while True:
        await asyncio.sleep(OWNER_CHECK_S)
        try:
            os.kill(owner, 0)
        except ProcessLookupError:
            return


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--chunk-delay-s", type=float, default=0.0)
    parser.add_argument("--cpu", type=int, help="the one CPU to run on")
    parser.add_argument("--owner", type=int, help="end soon after this process has ended")
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Engine(options.chunks, options.chunk_delay_s), "127.0.0.1", options.port, backlog=2048
    )
    if options.owner is None:
        await server.serve_forever()
    else:
        await outlive_not(options.owner)


if __name__ == "__main__":
    uvloop.run(main())
