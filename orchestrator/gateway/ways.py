"""A gateway's lanes: made from the table, kept as long as the table has them."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import cached_property

from orchestrator.access.loopback import is_loopback
from orchestrator.activator import Route
from orchestrator.balance.lane import Lane
from orchestrator.gateway.table import Model, Seen, Table, Way
from orchestrator.model import Deployment, Phase, Track
from orchestrator.servers.look import client_context
from orchestrator.upstream import Pool, Timeouts, Tls

WAKES_S = 1.0
"""A request at a replica that was idle for this long is told at once: the controller may be about to stop it."""


class Ways:
    """All lanes, those too that only finish what they have."""

    def __init__(
        self, *, timeouts: Timeouts, here: bool, monotonic: Callable[[], float], woken: Callable[[], None]
    ) -> None:
        """`here`: the controller is on this machine, so that its loopback is ours. `woken` is told of the first
        request at an idle replica."""
        self._timeouts = timeouts
        self._here = here
        self._now = monotonic
        self._woken = woken
        self._lanes: dict[tuple[str, str, int, str], Lane] = {}
        self._leaving: list[Lane] = []

    def lay(self, table: Table) -> dict[str, Route]:
        """The routes of a table. Lanes that it has as before stay; the others finish what they have."""
        wanted = {_place(way) for model in table.models for way in model.ways}
        for gone in self._lanes.keys() - wanted:
            self._leaving.append(self._lanes.pop(gone))
        return {model.name: self._route(model) for model in table.models}

    def sweep(self, now: float) -> None:
        """Cut the requests whose engines are silent for too long, on the loop's clock; close what nobody uses."""
        for lane in (*self._lanes.values(), *self._leaving):
            lane.pool.sweep(now)
        for lane in self._leaving:
            if not lane.in_flight:
                lane.pool.close()
        self._leaving = [lane for lane in self._leaving if lane.in_flight]

    def traffic(self) -> dict[str, Seen]:
        """What goes on at each replica that was ever used."""
        now, seen = self._now(), dict[str, Seen]()
        for lane in (*self._leaving, *self._lanes.values()):
            if lane.last_byte_at is None and not lane.in_flight:
                continue
            before = seen.get(lane.replica, Seen())
            idle_s = None if lane.last_byte_at is None else now - lane.last_byte_at
            seen[lane.replica] = Seen(in_flight=before.in_flight + lane.in_flight, idle_s=idle_s)
        return seen

    def close(self) -> None:
        """End all that is still in hand."""
        for lane in (*self._lanes.values(), *self._leaving):
            lane.pool.close()

    def _route(self, model: Model) -> Route:
        lanes = tuple(self._lane(way) for way in model.ways if self._here or not is_loopback(way.host))
        deployment = Deployment(
            name=model.name,
            engine=model.engine,
            source="",
            balance=model.balance,
            stream_usage=model.stream_usage,
            aliases=model.aliases,
        )
        phase = Phase.READY if lanes else Phase.COLD
        return Route(deployment=deployment, track=Track(phase=phase), lanes=lanes)

    def _lane(self, way: Way) -> Lane:
        lane = self._lanes.get(_place(way))
        if lane is None:
            tls = Tls(context=self._context, name=way.tls_name) if way.tls_name else None
            pool = Pool(way.host, way.port, self._timeouts, authority=way.authority, tls=tls)
            lane = self._lanes[_place(way)] = _Lane(way.replica, pool, gpus=way.gpus, woken=self._woken)
        lane.capacity, lane.weight, lane.disguise = way.capacity, way.weight, way.disguise
        return lane

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return client_context()


class _Lane(Lane):
    """Says when its replica is used again."""

    def __init__(self, replica: str, pool: Pool, *, gpus: int, woken: Callable[[], None]) -> None:
        super().__init__(replica, pool, gpus=gpus)
        self._woken = woken

    def enter(self, now: float) -> float:
        """See `Lane.enter`."""
        if not self.in_flight and (self.last_byte_at is None or now - self.last_byte_at > WAKES_S):
            self._woken()
        return super().enter(now)


def _place(way: Way) -> tuple[str, str, int, str]:
    return way.replica, way.host, way.port, way.tls_name
