"""The request-side half: finds the engine for a request, or notes the demand for it.

The reconcile loop is the only writer of `routes` (`publish`); requests are the only writers of the ledger,
the lines and the lanes' counts, which the loop reads (`demand`, `Lane.traffic`). All of it lives on one
event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import random

from orchestrator.access.key import Key
from orchestrator.balance.balancer import Balancer
from orchestrator.balance.lane import Lane
from orchestrator.eta import Expected, remaining_s
from orchestrator.gpu import Wait
from orchestrator.hold import Line, Turn
from orchestrator.model import Backoff, Demand, Deployment, Phase, Replica, Track, Weights

DROPPED_S = 1.0
"""Long enough for the loop to see that the engine is gone; if it is not, its lane is back after this."""


KEY_SHARE = 4
"""A key alone may hold four fifths of `held_max`; two, four ninths each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """What the loop last published of one model."""

    deployment: Deployment
    track: Track
    lanes: tuple[Lane, ...] = ()
    out: tuple[Lane, ...] = ()
    """Lanes that get nothing new for a while, and those that only finish what they have."""
    weights: Weights | None = None
    expected: Expected = field(default_factory=Expected)
    backoff: Backoff | None = None
    replicas: tuple[Replica, ...] = ()
    last_replica: str | None = None
    """The newest replica, live or gone: whose log to read."""
    wait: Wait | None = None
    """Its place in the line for GPUs."""
    unfit: str = ""
    """Why it can never run on these GPUs."""
    silent: bool = False
    """The runtime does not answer: nothing is started."""
    servers_take: int = 0
    """Static: how many requests its servers take together; 0: as many as come, or as many each as the limit says."""

    @property
    def places(self) -> int:
        """How many requests may be at its engines at a time; 0: any number."""
        return self.servers_take or self.deployment.limits.max_concurrent * max(len(self.lanes), 1)

    def given_up(self, now: float) -> bool:
        """Whether it is of no use to wait: the last attempt failed and the next is not due, or it can never fit."""
        if self.unfit:
            return not self.lanes
        return self.track.phase is Phase.FAILED and self.backoff is not None and now < self.backoff.retry_at

    def eta_s(self, now: float) -> float | None:
        """Seconds until ready, at least 1; None when it is ready, or not on its way."""
        if self.lanes or self.track.phase is Phase.DRAINING or self.given_up(now):
            return None
        return remaining_s(self.track, self.weights, self.expected, now, wait_s=self.wait.seconds if self.wait else 0.0)


class Activator:
    """Routes requests to lanes. `wake` is called whenever demand comes in that the loop should see; `chance` gives
    numbers from 0 to 1."""

    def __init__(self, *, wake: Callable[[], None], held_max: int, chance: Callable[[], float] = random) -> None:
        self._wake = wake
        self._held_max = held_max
        self._lines: dict[str, Line] = {}
        self._demand: dict[str, Demand] = {}
        self._dropped: dict[Lane, float] = {}
        self._chance = chance
        self.balancers: dict[str, Balancer] = {}
        """Of the models that have several lanes."""
        self._aliases: dict[str, str] = {}
        self.closing = False
        self.routes: Mapping[str, Route] = {}

    @property
    def held(self) -> int:
        """Requests held now, for all models."""
        return sum(line.held for line in self._lines.values())

    def held_for(self, model: str) -> int:
        """Requests held now for one model."""
        line = self._lines.get(model)
        return line.held if line else 0

    def publish(self, routes: Mapping[str, Route], now: float) -> None:
        """Take the loop's new picture. Held requests whose model is ready are let go in turn; those
        whose model has failed, or is no longer configured, are dismissed."""
        self.routes = routes = self._balanced(self._without_dropped(routes, now), now)
        self._aliases = {alias: model for model, route in routes.items() for alias in route.deployment.aliases}
        for model, line in self._lines.items():
            route = routes.get(model)
            if route is None or route.given_up(now):
                line.dismiss()
            elif route.lanes:
                line.places = route.places
                line.open()
            else:
                line.shut()

    def find(self, name: str, key: Key) -> Route | None:
        """The route of a model, or of the model that the name is an alias of; None when there is none, or the key may
        not use both the name and the model."""
        route = self.routes.get(name) or self.routes.get(self._aliases.get(name, ""))
        if route is None or not (key.may_use(name) and key.may_use(route.deployment.name)):
            return None
        return route

    def stand_in(self, route: Route, key: Key, now: float) -> Route | None:
        """Who answers for a model that can't be had: the first of its fallbacks that is ready and that the key may use.
        None while it can be had, or is on its way."""
        if route.lanes or not (route.track.phase is Phase.READY or route.given_up(now)):
            return None
        others = (self.routes.get(name) for name in route.deployment.fallback if key.may_use(name))
        return next((other for other in others if other is not None and other.lanes), None)

    def demand(self) -> dict[str, Demand]:
        """What is wanted now, by model."""
        models = {*self._demand, *self._lines, *self.routes}
        return {model: self._demand_of(model) for model in models}

    def lane(self, route: Route, key: Key, body: bytes) -> tuple[Lane, Turn | None] | None:
        """The lane for a request that need not wait, the hot path; the caller ends the turn, if there is one."""
        if not route.lanes:
            return None
        limited = route.deployment.limits.max_concurrent
        line = self._lines.get(route.deployment.name)
        if not limited:
            return None if line is not None and line.busy else (self._choose(route, body), None)
        turn = (line or self._line(route)).enter(key)
        return None if turn is None else (self._choose(route, body), turn)

    def _choose(self, route: Route, body: bytes) -> Lane:
        lanes = route.lanes
        return lanes[0] if len(lanes) == 1 else self.balancers[route.deployment.name].choose(body)

    async def stand(self, model: str, key: Key, timeout_s: float, body: bytes) -> tuple[Lane, Turn] | None:
        """Hold the caller until it may go, at most `timeout_s`; None when it may not.

        The caller ends the turn. Returns None at once when too many are held already, or too many of the key's.
        """
        if self._is_full(key):
            return None
        line = self._line(self.routes[model])
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout_s
        while (turn := await line.stand(key, max(ends_at - loop.time(), 0.0))) is not None:
            route = self.routes.get(model)
            if route is not None and route.lanes:
                return self._choose(route, body), turn
            line.shut()  # its engine has just gone: nobody else is let go into nothing, and this one stands on
            turn.over()
        return None

    def _line(self, route: Route) -> Line:
        line = self._lines.get(route.deployment.name)
        if line is None:
            line = self._lines[route.deployment.name] = Line()
            line.places = route.places
        if route.lanes:
            line.open()
        return line

    def _is_full(self, key: Key) -> bool:
        """A key may hold `KEY_SHARE` times what it leaves free, so that there is always room for another's; all of it
        where there are no keys. After dynamic thresholds (A. Choudhury, E. Hahne, 1998)."""
        free = self._held_max - self.held
        if not key.name:
            return free <= 0
        return sum(line.held_of(key.name) for line in self._lines.values()) >= free * KEY_SHARE

    def ask(self, model: str, now: float) -> None:
        """Somebody wants the model."""
        self._note(model, asked_at=now)

    def drop(self, lane: Lane, now: float) -> None:
        """The only lane's engine takes no connections: leave it out for `DROPPED_S`, and have the loop look."""
        self._dropped = {**self._dropped, lane: now + DROPPED_S}
        self.publish(self.routes, now)
        self._wake()

    def answered(self, lane: Lane, status: int, first_byte_s: float, now: float, *, streamed: bool) -> None:
        """The head of an answer came by one of several lanes; only these have a breaker."""
        breaker = lane.breaker
        if breaker is not None and breaker.answered(status, first_byte_s, now, self._chance(), streamed=streamed):
            self.publish(self.routes, now)

    def missed(self, lane: Lane, now: float, *, refused: bool) -> None:
        """A request at a lane failed before the first byte of its answer; `refused`: it takes no connections."""
        breaker = lane.breaker
        if breaker is not None and breaker.missed(now, self._chance(), refused=refused):
            self.publish(self.routes, now)
        self._wake()

    def probed(self, lane: Lane, answered: bool, now: float, *, refused: bool = False) -> None:
        """A lane's engine was asked for its load."""
        breaker = lane.breaker
        if breaker is not None and breaker.probed(answered, now, self._chance(), refused=refused):
            self.publish(self.routes, now)

    def judge(self, now: float) -> None:
        """Compare the lanes of each model, and have what waits at silent engines tried elsewhere. Called every few
        seconds."""
        if any([balancer.judge(now) for balancer in self.balancers.values()]):
            self.publish(self.routes, now)
        for balancer in self.balancers.values():
            balancer.relieve(now)

    def spare(self, model: str, tried: Sequence[Lane], now: float) -> bool:
        """Whether `another` would find one."""
        balancer = self.balancers.get(model)
        return balancer is not None and balancer.spare(tried, now)

    def another(self, model: str, tried: Sequence[Lane], now: float) -> Lane | None:
        """The lane for a request that failed at these before the first byte of its answer; None: there is none."""
        balancer = self.balancers.get(model)
        return None if balancer is None else balancer.another(tried, now)

    def learn(self, model: str, lane: Lane, answer: bytes) -> None:
        """The first bytes of a good answer of ``/v1/responses`` that came by one of several lanes."""
        if (balancer := self.balancers.get(model)) is not None:
            balancer.answered(lane, answer)

    def _balanced(self, routes: Mapping[str, Route], now: float) -> Mapping[str, Route]:
        """The routes, with the lanes of models that have several in and out of rotation."""
        laid = {name: laid for name, route in routes.items() if (laid := self._laid(route, now)) is not None}
        for gone in self.balancers.keys() - laid.keys():
            self.balancers.pop(gone).disband()
        return {**routes, **laid} if laid else routes

    def _laid(self, route: Route, now: float) -> Route | None:
        """The route of a model that has several lanes, or had."""
        name, balancer = route.deployment.name, self.balancers.get(route.deployment.name)
        pool = route.lanes if balancer is None else balancer.pool(route.lanes, route.out)
        if len(pool) < 2 and (balancer is None or not balancer.leaving(pool)):
            return None
        if balancer is None or balancer.balance is not route.deployment.balance:
            balancer = self.balancers[name] = Balancer(route.deployment.balance, self._chance)
        lanes, out = balancer.lay(pool, now)
        return replace(route, lanes=lanes, out=out)

    def _without_dropped(self, routes: Mapping[str, Route], now: float) -> Mapping[str, Route]:
        self._dropped = {lane: until for lane, until in self._dropped.items() if now < until}
        if not self._dropped:
            return routes
        return {
            model: replace(route, lanes=tuple(lane for lane in route.lanes if lane not in self._dropped))
            for model, route in routes.items()
        }

    def expect(self, model: str, at: float) -> None:
        """A refused client was told to come back then."""
        known = self._demand.get(model, Demand())
        self._demand[model] = replace(known, expected_at=max(at, known.expected_at or at))

    def ask_stop(self, model: str, now: float) -> None:
        """It should leave; requests held for it are dismissed."""
        self._note(model, stop_at=now)
        if line := self._lines.get(model):
            line.dismiss()

    def stopped(self, model: str) -> bool:
        """Whether it was told to leave, and nobody has asked for it since."""
        demand = self._demand.get(model, Demand())
        return demand.stop_at is not None and (demand.asked_at is None or demand.asked_at <= demand.stop_at)

    def ask_pull(self, model: str, now: float) -> None:
        """Its weights are wanted."""
        self._note(model, pull_at=now)

    def close(self) -> None:
        """The service is ending: everybody held is dismissed, and nobody is held any more."""
        self.closing = True
        for line in self._lines.values():
            line.dismiss()

    def _note(self, model: str, **changes: float) -> None:
        self._demand[model] = replace(self._demand.get(model, Demand()), **changes)  # type: ignore[arg-type]
        self._wake()

    def _demand_of(self, model: str) -> Demand:
        return replace(self._demand.get(model, Demand()), held=self.held_for(model))
