"""What many may do at once, but not while one has it to itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Gates:
    """One gate for each name: many pass at a time, or one has it closed. For one event loop, and one closer a name."""

    def __init__(self) -> None:
        self._inside: dict[str, int] = {}
        self._closed: dict[str, asyncio.Event] = {}
        """Set when the gate opens again."""
        self._left = asyncio.Event()

    @contextlib.asynccontextmanager
    async def passing(self, name: str) -> AsyncIterator[None]:
        """Waits while it is closed."""
        while (opened := self._closed.get(name)) is not None:
            await opened.wait()
        self._inside[name] = self._inside.get(name, 0) + 1
        try:
            yield
        finally:
            self._inside[name] -= 1
            if not self._inside[name]:
                del self._inside[name]
                self._left.set()

    def free(self, name: str) -> bool:
        """Whether `closed` would wait for nobody."""
        return name not in self._inside and name not in self._closed

    @contextlib.asynccontextmanager
    async def closed(self, name: str) -> AsyncIterator[None]:
        """Waits until all who pass have left; nobody enters meanwhile."""
        assert name not in self._closed
        self._closed[name] = asyncio.Event()
        try:
            while name in self._inside:
                self._left.clear()
                await self._left.wait()
            yield
        finally:
            self._closed.pop(name).set()
