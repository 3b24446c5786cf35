"""Asks engines for their load, every few seconds: those of models that have several, or may have.

The answer, whatever it is, also shows that an engine is there; one that does not answer is out of rotation after
`breaker.PROBES_MAX` times. Servers that others run have checks of their own: one of those that has no such page is
left alone for `RETRY_S`, while nothing of ours is at it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from orchestrator.activator import Activator, Route
from orchestrator.balance.lane import Lane
from orchestrator.balance.loads import load_of
from orchestrator.errors import UpstreamError, UpstreamLost, UpstreamUnreachable
from orchestrator.model import EngineKind
from orchestrator.upstream import Connection

POLL_S = 2.0
POLL_TIMEOUT_S = 1.5
RETRY_S = 60.0
POLLS_MAX = 32
"""Under way at once."""
PAGE_BYTES_MAX = 4 * 2**20
"""A vLLM's page has some 100 kB."""

T = TypeVar("T")


class Poller:
    """Keeps `Lane.load`. `run` is its only task that writes."""

    def __init__(self, activator: Activator, monotonic: Callable[[], float]) -> None:
        self._activator = activator
        self._monotonic = monotonic
        self._pageless: dict[Lane, float] = {}
        """Until when these are left alone."""

    async def run(self) -> None:
        """Round after round until cancelled."""
        while True:
            began = self._monotonic()
            await self._round()
            self._activator.judge(self._monotonic())
            await asyncio.sleep(max(began + POLL_S - self._monotonic(), POLL_S / 4))

    async def _round(self) -> None:
        places, now = asyncio.Semaphore(POLLS_MAX), self._monotonic()
        self._pageless = {lane: until for lane, until in self._pageless.items() if now < until}
        asked = [
            self._ask(lane, places, theirs)
            for lane, theirs in polled(self._activator.routes).items()
            if lane.in_flight or lane not in self._pageless
        ]
        await asyncio.gather(*asked)

    async def _ask(self, lane: Lane, places: asyncio.Semaphore, theirs: bool) -> None:
        page: bytes | None = b""
        refused = False
        async with places:
            try:
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    page, answered = await read_metrics(lane, _page), True
            except TimeoutError:
                answered = False
            except UpstreamError as error:
                answered = False
                refused = isinstance(error, UpstreamUnreachable) and not isinstance(error, UpstreamLost)
        now = self._monotonic()
        self._pageless.pop(lane, None)
        if page is None and theirs:
            self._pageless[lane] = now + RETRY_S
        lane.heard(load_of(page or b"", now))
        self._activator.probed(lane, answered, now, refused=refused)


def polled(routes: Mapping[str, Route]) -> dict[Lane, bool]:
    """The lanes whose load is of use, there are others, or there may be; and whether others run their servers."""
    several = (r for r in routes.values() if len(r.lanes) + len(r.out) > 1 or r.deployment.max_replicas > 1)
    return {
        lane: route.deployment.engine is EngineKind.STATIC for route in several for lane in (*route.lanes, *route.out)
    }


async def read_metrics(lane: Lane, read: Callable[[Connection], Awaitable[T]]) -> T:
    """What `read` makes of the answer to ``GET /metrics``. Raises `UpstreamError`, and what `read` does."""
    base, end = (b"", b"\r\n") if lane.disguise is None else (lane.disguise.base, lane.disguise.end)
    head = b"GET %b/metrics HTTP/1.1\r\nhost: %b\r\naccept: text/plain\r\n%b" % (base, lane.pool.authority, end)
    connection = await lane.pool.request(head, b"")
    try:
        return await read(connection)
    finally:
        lane.pool.release(connection)


async def _page(connection: Connection) -> bytes | None:
    """The page; empty where it can't be had now, or is too long; None: there is none."""
    page = bytearray()
    while (data := await connection.chunk()) and len(page) <= PAGE_BYTES_MAX:
        page += data
    if connection.status in (404, 405):
        return None
    return bytes(page) if connection.status == 200 and len(page) <= PAGE_BYTES_MAX else b""
