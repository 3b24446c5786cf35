"""An instant engine: answers chat requests at once, with as little work as can be, so that a proxy's cost shows.

Run as a program: ``python engine.py --port P [--chunks N] [--chunk-delay-s S]``. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import json

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


def _event(number: int) -> bytes:
    choice = {"index": 0, "delta": {"content": f" fox{number:02}"}, "finish_reason": None}
    return b"data: " + json.dumps({**_HEAD, "choices": [choice]}).encode() + b"\n\n"


EVENTS = [_event(number) for number in range(BURST)]
DONE = b"data: [DONE]\n\n"
_INFO = json.dumps({"object": "list", "data": [{"id": "bench/model", "object": "model"}], "model_path": "bench/model"})


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self, chunks: int, delay_s: float) -> None:
        self._chunks, self._delay_s = chunks, delay_s
        self._writable = asyncio.Event()
        self._writable.set()
        self._stream: asyncio.Task[None] | None = None
        self._streams = False

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
        self._streams = False

    def on_body(self, body: bytes) -> None:
        self._streams = self._streams or b'"stream": true' in body or b'"stream":true' in body

    def on_message_complete(self) -> None:
        if self._streams:
            self._stream = asyncio.get_running_loop().create_task(self._send_stream())
        elif self._parser.get_method() == b"POST":
            self._transport.write(_response(WHOLE))
        else:
            self._transport.write(_response(_INFO.encode()))

    async def _send_stream(self) -> None:
        self._transport.write(SSE_HEAD)
        slow, flat_out = _chunk(EVENTS[0]), b"".join(map(_chunk, EVENTS))
        for _ in range(0, self._chunks, 1 if self._delay_s else BURST):
            await self._writable.wait()
            self._transport.write(slow if self._delay_s else flat_out)
            await asyncio.sleep(self._delay_s)
        self._transport.write(_chunk(DONE) + b"0\r\n\r\n")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--chunk-delay-s", type=float, default=0.0)
    options = parser.parse_args()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Engine(options.chunks, options.chunk_delay_s), "127.0.0.1", options.port, backlog=2048
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
