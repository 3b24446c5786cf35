"""Live pages: what changes is drawn once, and sent to everybody who looks at it, as server-sent events of HTML.

Events: ``paint`` (elements that take the place of those with their ids), ``stale`` (the page has other parts now: load
it anew), ``ended`` (there is no session any more, or its key is not valid: load it anew, which leads to the form).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import structlog

from orchestrator.access.key import Key
from orchestrator.errors import OrchestratorError
from orchestrator.model import Scope
from ui.pages import Pages
from ui.ports import Json
from ui.scenes import Painter, Scene
from ui.values import steady

PAINT_S = 1.0
"""How often the service is looked at while somebody looks."""
PAINT_S_MIN = 0.25
"""Changes of phase are shown at once, but not more often than this."""
ADMITTED_S = 3.0
"""How often a viewer's key is looked at anew."""
ENDED = b"event: ended\ndata:\n\n"
KEEP_ALIVE_S = 15.0
VIEWERS_MAX = 200

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Look:
    """What is looked at, and by whose eyes: viewers with equal ones see the same."""

    page: str
    subject: str
    models: tuple[str, ...]
    scopes: frozenset[Scope]


@dataclass(slots=True)
class _Painted:
    """One element as it was last drawn."""

    values: Json
    data: bytes
    version: int


@dataclass(slots=True)
class _Channel:
    """One look, its elements, and how many viewers it has."""

    key: Key
    painted: dict[str, _Painted] = field(default_factory=dict)
    version: int = 0
    viewers: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Board:
    """Draws for all who look. Nothing is drawn while nobody does."""

    def __init__(self, pages: Pages, painters: Mapping[str, Painter]) -> None:
        self._pages = pages
        self.painters = painters
        self._channels: dict[Look, _Channel] = {}
        self._looked_at = asyncio.Event()
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether another viewer would be one too many."""
        return sum(channel.viewers for channel in self._channels.values()) >= VIEWERS_MAX

    def changed(self) -> None:
        """Something worth showing at once has happened. Does not block."""
        self._changed.set()

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        for channel in self._channels.values():
            channel.news.set()

    async def run(self) -> None:
        """Draw until cancelled."""
        while True:
            await self._looked_at.wait()
            self._changed.clear()
            for look, channel in tuple(self._channels.items()):
                await self._paint(look, channel)
            await asyncio.sleep(PAINT_S_MIN)
            try:
                async with asyncio.timeout(PAINT_S - PAINT_S_MIN):
                    await self._changed.wait()
            except TimeoutError:  # nothing has changed at once; it is time to look
                pass

    async def stream(
        self, page: str, subject: str, shape: str, key: Key, admitted: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        """The events of one viewer, whose page has the parts that `shape` tells of."""
        look = Look(page, subject, key.models, key.scopes)
        channel = self._channels.setdefault(look, _Channel(key))
        channel.viewers += 1
        try:
            if not channel.version:
                await self._paint(look, channel)
            self._looked_at.set()
            async for event in self._events(channel, shape, admitted):
                yield event
        finally:
            channel.viewers -= 1
            if not channel.viewers:
                self._channels.pop(look, None)
            if not self._channels:
                self._looked_at.clear()

    async def _events(self, channel: _Channel, shape: str, admitted: Callable[[], bool]) -> AsyncIterator[bytes]:
        """A viewer who is slow misses what came between, and gets things as they are: nothing piles up."""
        seen, quiet_s = 0, 0.0
        while not self._closed:
            news = channel.news
            if channel.version and shape_of(channel.painted) != shape:
                yield b"event: stale\ndata:\n\n"
                return
            data = b"".join(part.data for part in channel.painted.values() if part.version > seen)
            seen = channel.version
            if data:
                quiet_s = 0.0
                yield b"event: paint\n%b\n" % data
            elif quiet_s >= KEEP_ALIVE_S:
                quiet_s = 0.0
                yield b": still here\n\n"
            try:
                async with asyncio.timeout(ADMITTED_S):
                    await news.wait()
            except TimeoutError:
                quiet_s += ADMITTED_S
            if not admitted():
                yield ENDED
                return

    async def _paint(self, look: Look, channel: _Channel) -> None:
        try:
            scene = await self.painters[look.page](channel.key, look.subject)
        except OrchestratorError as error:
            log.info("dashboard_waits", page=look.page, cause=str(error))
            return
        version, painted = channel.version + 1, {}
        for id, part in scene.items():
            old = channel.painted.get(id)
            now = steady(old.values if old else None, part.values)
            if old is not None and old.values == now:
                painted[id] = old
            else:
                painted[id] = _Painted(now, _data(self._pages.fragment(part.template, id, now, swap=True)), version)
        if painted != channel.painted or not channel.version:
            channel.painted, channel.version = painted, version
            news, channel.news = channel.news, asyncio.Event()
            news.set()


def shape_of(parts: Mapping[str, object] | Scene) -> str:
    """Which parts a page has, in few letters."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def _data(html: str) -> bytes:
    """As the data of an event, which is written in lines."""
    return b"".join(b"data: %b\n" % line.encode() for line in html.replace("\r", "\n").split("\n") if line.strip())
