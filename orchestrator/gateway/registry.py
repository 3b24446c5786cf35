"""The controller's side: what its gateways go by, and what they have told.

A replica that leaves must not be stopped while a gateway may still send to it. So one that is in no table any more
counts as in use until every gateway has taken a table without it: a drain waits for them as it does for requests.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakValueDictionary

import msgspec
import structlog

from orchestrator.access.auth import KeyRing
from orchestrator.access.key import Key
from orchestrator.activator import Route
from orchestrator.balance.lane import Lane
from orchestrator.gateway.table import Line, Report, Sums, Table, encode_line, entries_of, models_of
from orchestrator.gateway.told import told
from orchestrator.model import Scope, Traffic
from orchestrator.settings import Settings

BEAT_S = 1.0
COALESCE_S = 0.1
"""Tables of a busy controller come at most this often."""
LATE_S = 3.0
"""A gateway that was not heard for this long is reported."""
GONE_S = 10.0
"""And after this it is forgotten, and its requests with it."""

log = structlog.get_logger()


class Books(Protocol):
    """Takes what gateways have counted."""

    def add(self, gateway: str, serial: int, sums: Sums) -> bool:
        """Count it as our own; False: it was counted before. Raises ValueError, with nothing taken, for what makes no
        sense."""


@dataclass(kw_only=True)
class Gateway:
    """One gateway, as it was last heard."""

    name: str
    since: float
    heard_at: float
    address: str = ""
    has_table: bool = False
    """Whether it is known to go by a table of ours; before that it may use any replica."""
    may_use: dict[int, frozenset[str]] = field(default_factory=dict)
    """The replicas of each table that it was sent and may go by, by version."""
    traffic: Mapping[str, Traffic] = field(default_factory=dict)

    def uses(self, replica: str) -> bool:
        """Whether it may send requests there."""
        return not self.has_table or any(replica in replicas for replicas in self.may_use.values())


class Gateways:
    """All of them. Lives on the service's event loop; `publish` and `sweep` are called by its loops."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        books: Books,
        settings: Settings,
        monotonic: Callable[[], float],
    ) -> None:
        self._keys = keys
        self._books = books
        self._settings = told(settings)
        self._now = monotonic
        self._routes: Mapping[str, Route] = {}
        self._lanes: WeakValueDictionary[str, Lane] = WeakValueDictionary()
        self._known: dict[str, Gateway] = {}
        self._changed = asyncio.Event()
        self._closed = False
        self.table = Table(controller=secrets.token_hex(8), version=0)

    def secret(self) -> str:
        """Of a key for the service's own gateways, until it ends."""
        return self._keys.own(Key(name="", scopes=frozenset({Scope.ADMIN})))

    def publish(self, routes: Mapping[str, Route]) -> None:
        """Tell gateways of these from now on."""
        self._routes = routes
        if self._known:
            self._lay()

    def sweep(self) -> None:
        """Look at the keys anew, and forget who is gone. Called every second or so."""
        now = self._now()
        for name in [name for name, gateway in self._known.items() if now - gateway.heard_at > GONE_S]:
            log.warning("gateway_gone", gateway=name)
            del self._known[name]
        self._lay()

    def close(self, *, stopping: bool) -> None:
        """The service ends; `stopping`: its engines do too."""
        if stopping:
            self.publish({})
        self._closed = True
        self._tell()

    def state(self) -> tuple[bool, str]:
        """Whether all are heard, and how many there are."""
        late = sum(1 for gateway in self._known.values() if self._now() - gateway.heard_at > LATE_S)
        return not late, f"{late} of {len(self._known)} were not heard for {LATE_S:.0f} s" if late else ""

    def views(self) -> list[dict[str, Any]]:
        """As ``GET /api/gateways`` shows them."""
        now = self._now()
        return [
            {
                "name": gateway.name,
                "address": gateway.address,
                "since_s": round(now - gateway.since, 1),
                "heard_s": round(now - gateway.heard_at, 1),
                "in_flight": sum(traffic.in_flight for traffic in gateway.traffic.values()),
                "current": gateway.has_table and set(gateway.may_use) == {self.table.version},
            }
            for gateway in self._known.values()
        ]

    async def stream(self, name: str) -> AsyncIterator[bytes]:
        """Lines for a gateway: the whole table at once and whenever it has changed, and a beat every `BEAT_S`."""
        self._gateway(name)
        self._lay()
        sent, settings = -1, self._settings
        while True:
            line = Line()
            if self.table.version != sent:
                line = Line(table=self.table, settings=settings if sent < 0 else None)
                sent = self.table.version
                self._gateway(name).may_use[sent] = self.table.replicas
            yield encode_line(line) + b"\n"
            if self._closed and self.table.version == sent:
                return
            await self._next(sent)

    def report(self, report: Report) -> bool:
        """A gateway has told what it does; whether there were new sums. Raises ValueError, with nothing taken, for
        what makes no sense."""
        fresh = report.sums is not None and self._books.add(report.gateway, report.serial, report.sums)
        now, gateway = self._now(), self._gateway(report.gateway)
        gateway.heard_at, gateway.address = now, report.address
        if report.controller == self.table.controller:
            gateway.has_table = True
            gateway.may_use = {v: replicas for v, replicas in gateway.may_use.items() if v >= report.version}
        gateway.traffic = {
            replica: Traffic(in_flight=seen.in_flight, last_byte_at=None if seen.idle_s is None else now - seen.idle_s)
            for replica, seen in report.traffic.items()
        }
        if report.last:
            del self._known[gateway.name]
        self._spread()
        return fresh

    def _gateway(self, name: str) -> Gateway:
        known = self._known.get(name)
        if known is None:
            now = self._now()
            known = self._known[name] = Gateway(name=name, since=now, heard_at=now)
        return known

    def _lay(self) -> None:
        """Make the table anew where it has changed."""
        self._lanes.update({lane.replica: lane for route in self._routes.values() for lane in route.lanes})
        models, keys = models_of(self._routes), entries_of(self._keys.by_digest)
        table = msgspec.structs.replace(self.table, models=models, keys=keys, open=self._keys.open)
        if table != self.table:
            self.table = msgspec.structs.replace(table, version=table.version + 1)
            self._tell()
        self._spread()

    def _spread(self) -> None:
        """Have each lane know what gateways do at its replica."""
        current = self.table.replicas
        for replica, lane in self._lanes.items():
            lane.elsewhere = elsewhere(replica, self._known.values(), current=replica in current)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _next(self, sent: int) -> None:
        """Wait for a newer table, at most `BEAT_S`."""
        changed = self._changed
        if self.table.version == sent:
            try:
                async with asyncio.timeout(BEAT_S):
                    await changed.wait()
            except TimeoutError:
                return
        await asyncio.sleep(COALESCE_S)


def elsewhere(replica: str, gateways: Collection[Gateway], *, current: bool) -> Traffic:
    """What gateways do at a replica; `current`: whether they are told of it. Pure."""
    told = [traffic for gateway in gateways if (traffic := gateway.traffic.get(replica)) is not None]
    in_flight = sum(traffic.in_flight for traffic in told)
    if not (current or in_flight):
        in_flight = int(any(gateway.uses(replica) for gateway in gateways))
    ends = [traffic.last_byte_at for traffic in told if traffic.last_byte_at is not None]
    return Traffic(in_flight=in_flight, last_byte_at=max(ends, default=None))
