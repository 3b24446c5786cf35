"""What happens, told to whoever listens: ``GET /api/events``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

QUEUE_EVENTS_MAX = 256
KEEP_ALIVE_S = 15.0
SUBSCRIBERS_MAX = 200


class Broadcast:
    """Sends each event to every subscriber. A slow one loses the oldest, never holds up the sender."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes]] = set()
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether another subscriber would be one too many."""
        return len(self._queues) >= SUBSCRIBERS_MAX

    def send(self, name: str, data: Any) -> None:
        """Tell everybody. Does not block."""
        if not self._queues:
            return
        event = b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(b"")

    async def stream(self, first: list[tuple[str, Any]]) -> AsyncIterator[bytes]:
        """Server-sent events: `first`, then all that comes, with comments to keep the line open."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_EVENTS_MAX)
        self._queues.add(queue)
        try:
            for name, data in first:
                yield b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))
            while not self._closed:
                yield await _next(queue)
        finally:
            self._queues.discard(queue)


async def _next(queue: asyncio.Queue[bytes]) -> bytes:
    try:
        async with asyncio.timeout(KEEP_ALIVE_S):
            return await queue.get()
    except TimeoutError:
        return b": keep-alive\n\n"
