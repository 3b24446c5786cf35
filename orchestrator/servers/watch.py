"""The loop that knows which servers there are and how they are. The only writer of the routes of static models."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from orchestrator.activator import Route
from orchestrator.balance.lane import Lane
from orchestrator.errors import UpstreamUnreachable
from orchestrator.model import Deployment, Phase, Track
from orchestrator.ports import Clock
from orchestrator.servers.disguise import disguise
from orchestrator.servers.endpoint import Endpoint
from orchestrator.servers.look import Ways
from orchestrator.servers.resolve import Resolver
from orchestrator.servers.routes import capacity, route
from orchestrator.servers.state import Lookup, Server, judged, looked_up, names, placed
from orchestrator.upstream import Timeouts

LOOKS_MAX = 256
"""Checks and look-ups under way at once; those beyond are a little late."""
DRAIN_S_DEFAULT = 30.0
"""For servers whose model is no longer configured."""

log = structlog.get_logger()
Name = tuple[str, int]


@dataclass
class _Way:
    """The lane to a server, and what it was laid by."""

    lane: Lane
    endpoint: Endpoint


class Servers:
    """Follows the servers of static models. `run` is its only task that writes; `publish` is told of each change."""

    def __init__(
        self,
        *,
        resolver: Resolver,
        timeouts: Timeouts,
        clock: Clock,
        publish: Callable[[Mapping[str, Route]], None],
    ) -> None:
        self._resolver = resolver
        self._timeouts = timeouts
        self._clock = clock
        self._publish = publish
        self._ways = Ways(clock.monotonic)
        self._deployments: Mapping[str, Deployment] = {}
        self._placed = True
        """Whether the servers are those that the deployments and the names ask for."""
        self._names: dict[str, dict[Name, float]] = {}
        """Of each model, with the seconds between look-ups."""
        self._servers: dict[str, Server] = {}
        self._leaving: set[str] = set()
        self._lookups: dict[Name, Lookup] = {}
        self._lanes: dict[str, _Way] = {}
        self._tracks: dict[str, Track] = {}
        self._busy: set[str | Name] = set()
        self._wakeup = asyncio.Event()
        self._pass_end = asyncio.Event()

    def configure(self, deployments: Mapping[str, Deployment]) -> None:
        """Take the static models as they are to be; servers that are gone finish what they have in hand."""
        self._deployments = deployments
        self._placed = False
        self._wakeup.set()

    def of(self, model: str, endpoint: Endpoint) -> list[Server]:
        """The servers that an endpoint stands for."""
        return [s for s in self._servers.values() if s.model == model and s.endpoint.url == endpoint.url]

    def lookup(self, endpoint: Endpoint) -> Lookup | None:
        """What is known of its name; None: it has none."""
        return self._lookups.get((endpoint.host, endpoint.port))

    def lane(self, server: str) -> Lane | None:
        """The lane to a server, in use or not."""
        way = self._lanes.get(server)
        return None if way is None else way.lane

    def state(self) -> tuple[bool, str]:
        """Whether each static model has a server that is well, and how many have not; for everybody's eyes."""
        without = [name for name, track in self._tracks.items() if track.phase is Phase.FAILED]
        return not without, f"{len(without)} static models have no server that is well" if without else ""

    async def settled(self) -> None:
        """Wait until a pass has seen what was asked for before."""
        await self._pass_end.wait()

    def sweep(self) -> None:
        """Cut the requests whose servers have been silent for too long. Called about once a second."""
        now = asyncio.get_running_loop().time()
        for way in self._lanes.values():
            way.lane.pool.sweep(now)
        if any(server.phase is Phase.DRAINING for server in self._servers.values()):
            self._wakeup.set()

    async def run(self, started: asyncio.Event) -> None:
        """Pass after pass until cancelled; `started` is set once something is known of each model."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wakeup.clear()
                now = self._clock.monotonic()
                self._pass(tasks, now)
                if not any(track.phase is Phase.STARTING for track in self._tracks.values()):
                    started.set()
                await self._next_turn(now)

    def close(self) -> None:
        """End all that is still in hand. `run` has ended."""
        for way in self._lanes.values():
            way.lane.pool.close()

    async def _next_turn(self, now: float) -> None:
        due = [server.due_at for server in self._checked() if server.id not in self._busy]
        due += [lookup.due_at for name, lookup in self._lookups.items() if name not in self._busy]
        try:
            async with asyncio.timeout(max(min(due) - now, 0.0) if due and len(self._busy) < LOOKS_MAX else None):
                await self._wakeup.wait()
        except TimeoutError:
            return

    def _pass(self, tasks: asyncio.TaskGroup, now: float) -> None:
        if not self._placed:
            self._place(now)
        self._let_go(now)
        for name, lookup in self._lookups.items():
            if lookup.due_at <= now and self._may_look(name):
                tasks.create_task(self._look_up(name))
        for server in self._checked():
            if server.due_at <= now and self._may_look(server.id):
                tasks.create_task(self._check(server, self._deployments[server.model]))
        self._publish(self._routes(now))
        waited_for, self._pass_end = self._pass_end, asyncio.Event()
        waited_for.set()

    def _place(self, now: float) -> None:
        """Have the servers that there should be."""
        self._placed = True
        self._names = {model: names({model: deployment}) for model, deployment in self._deployments.items()}
        wanted = [name for of_model in self._names.values() for name in of_model]
        self._lookups = {name: self._lookups.get(name, Lookup(due_at=now)) for name in wanted}
        here, leaving = placed(self._servers, self._deployments, self._lookups, now)
        self._servers, self._leaving = here | leaving, set(leaving)
        self._lay_lanes()

    def _checked(self) -> list[Server]:
        return [server for server in self._servers.values() if server.phase is not Phase.DRAINING]

    def _may_look(self, at: str | Name) -> bool:
        if at in self._busy or len(self._busy) >= LOOKS_MAX:
            return False
        self._busy.add(at)
        return True

    async def _look_up(self, name: Name) -> None:
        addresses: tuple[str, ...] = ()
        error = ""
        try:
            addresses = await self._resolver(*name)
        except UpstreamUnreachable as unknown:
            error = str(unknown)
        finally:
            self._busy.discard(name)
            self._wakeup.set()
        old = self._lookups.get(name)
        if old is None:
            return
        if error and error != old.error:
            log.warning("name_not_found", host=name[0], error=error)
        refresh_s = min(of_model[name] for of_model in self._names.values() if name in of_model)
        self._lookups[name] = new = looked_up(old, addresses, error, self._clock.monotonic() + refresh_s)
        self._placed = self._placed and new.addresses == old.addresses

    async def _check(self, server: Server, deployment: Deployment) -> None:
        try:
            check = await self._ways.look(server, deployment.health.timeout_s)
        finally:
            self._busy.discard(server.id)
            self._wakeup.set()
        known = self._servers.get(server.id)
        if known is None or known.endpoint is not server.endpoint:
            return
        after = judged(known, check, deployment.health, self._clock.monotonic())
        if after.phase is not known.phase:
            log.info("server", server=server.id, model=server.model, phase=after.phase.value, error=after.error)
        self._servers[server.id] = after

    def _lay_lanes(self) -> None:
        """A lane for each server, as it is configured now."""
        servers = tuple(self._servers.values())
        for server in servers:
            way = self._lanes.get(server.id)
            if way is None or way.endpoint is not server.endpoint:
                lane = Lane(server.id, self._ways.pool(server, self._timeouts)) if way is None else way.lane
                lane.disguise, lane.weight = disguise(server.endpoint, server.model), server.endpoint.weight
                way = self._lanes[server.id] = _Way(lane=lane, endpoint=server.endpoint)
            way.lane.capacity = capacity(server, servers)

    def _let_go(self, now: float) -> None:
        """Forget those of the leaving that have nothing in hand any more, or whose time is up."""
        for id in [id for id in self._leaving if self._has_drained(self._servers[id], now)]:
            self._leaving.remove(id)
            del self._servers[id]
            self._lanes.pop(id).lane.pool.close()

    def _has_drained(self, server: Server, now: float) -> bool:
        deployment = self._deployments.get(server.model)
        drain_s = deployment.drain_timeout_s if deployment else DRAIN_S_DEFAULT
        return not self._lanes[server.id].lane.taken or now - server.phase_at >= drain_s

    def _routes(self, now: float) -> dict[str, Route]:
        lanes = {id: way.lane for id, way in self._lanes.items()}
        servers: defaultdict[str, list[Server]] = defaultdict(list)
        for server in self._servers.values():
            servers[server.model].append(server)
        routes: dict[str, Route] = {}
        for name, deployment in self._deployments.items():
            lookups = [self._lookups[host] for host in self._names[name]]
            routes[name] = route(deployment, servers[name], lanes, lookups, self._tracks.get(name), now)
        self._tracks = {name: route.track for name, route in routes.items()}
        return routes
