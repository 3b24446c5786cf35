"""A day of requests for one model, and the engines that serve them, second by second: quiet nights, busy hours, bursts,
and two classes of students who all start at once. Nothing fails here; what differs is who decides how many run.

Requests wait in one line, first come first served, and go to the engine with the fewest as soon as one has a seat.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import pi, sin

DAY_S = 86_400
SEATS = 16
"""Requests that an engine takes at once; the same time for each, however many there are."""
TAKES_S = 8.0
"""What an answer takes in the mean."""
START_S = (40.0, 80.0)
STOP_S = 2.0
REPLICAS_MAX = 6
RATE_PER_S = 3.0
"""At the busiest hour: 24 requests in flight."""
NIGHT_SHARE = 0.002
BURSTS_PER_H = 0.7
BURST_TIMES = 3.0
BURST_S = (120.0, 600.0)
CLASSES_AT_H = (10.25, 14.0)
STUDENTS = 60
CLASS_S = 45 * 60.0
THINK_S = (20.0, 70.0)
DELAYED_S = 1.0
"""A request that waits no longer than a step of the simulation has not waited."""


def arrivals(seed: int) -> list[tuple[float, float]]:
    """When each request of the day comes, and how many seconds its answer takes."""
    dice = random.Random(seed)
    bursts = [(at, at + dice.uniform(*BURST_S)) for at in _poisson(dice, BURSTS_PER_H / 3600)]
    most = RATE_PER_S * BURST_TIMES
    came = [at for at in _poisson(dice, most) if dice.random() * most < _rate(at, bursts)]
    for hour in CLASSES_AT_H:
        for _ in range(STUDENTS):
            at = hour * 3600 + dice.uniform(0, 10)
            while at < hour * 3600 + CLASS_S:
                came.append(at)
                at += TAKES_S + dice.uniform(*THINK_S)
    return [(at, max(dice.gammavariate(2.0, TAKES_S / 2), 0.2)) for at in sorted(came)]


def _poisson(dice: random.Random, per_s: float) -> Iterator[float]:
    at = dice.expovariate(per_s)
    while at < DAY_S:
        yield at
        at += dice.expovariate(per_s)


def _rate(at: float, bursts: list[tuple[float, float]]) -> float:
    """From seven to twenty-two, the most in the middle."""
    hour = at / 3600
    share = max(sin(pi * (hour - 7) / 15), 0.0) ** 2 if 7 <= hour <= 22 else 0.0
    times = BURST_TIMES if any(begin <= at < end for begin, end in bursts) else 1.0
    return RATE_PER_S * min(max(share, NIGHT_SHARE) * times, BURST_TIMES)


@dataclass
class Engine:
    """One replica, on a GPU of its own from its launch until it is gone."""

    launched_at: float
    ready_at: float
    ends: list[float] = field(default_factory=list)
    last_byte_at: float | None = None
    draining: bool = False
    gone_at: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a policy costs, and what it does to those who wait."""

    policy: str
    gpu_hours: float
    requests: int
    delayed_share: float
    p99_s: float
    max_s: float
    starts: int


class Day:
    """One run. A policy calls `second`, then `launch`, `leave` and `stop` as it likes, then `serve`."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed + 1)
        self.coming = deque(arrivals(seed))
        self.line: deque[tuple[float, float]] = deque()
        self.engines: dict[str, Engine] = {}
        self.waited: list[float] = []
        self.now = self.gpu_s = 0.0
        self.asked_at: float | None = None
        self.starts = 0

    def launch(self, name: str, *, at_once: bool = False) -> None:
        """Start one; `at_once`: it was there before the day began."""
        start_s = 0.0 if at_once else self.dice.uniform(*START_S)
        self.engines[name] = Engine(self.now, self.now + start_s)
        self.starts += not at_once

    def leave(self, name: str) -> None:
        """It gets no more requests, and goes when it has finished what it has."""
        self.engines[name].draining = True

    def stop(self, name: str) -> None:
        """It goes now."""
        if (engine := self.engines.get(name)) is not None:
            assert not engine.ends, f"{name} was cut"
            engine.gone_at = min(engine.gone_at, self.now + STOP_S)

    def ready(self) -> dict[str, Engine]:
        """Those that take requests."""
        return {k: e for k, e in self.engines.items() if e.ready_at <= self.now and not e.draining}

    def second(self) -> None:
        """A second passes."""
        self.now += 1.0
        self.gpu_s += len(self.engines)
        for name, engine in list(self.engines.items()):
            if done := [end for end in engine.ends if end <= self.now]:
                engine.last_byte_at = max(done)
                engine.ends = [end for end in engine.ends if end > self.now]
            if engine.gone_at <= self.now:
                del self.engines[name]
        while self.coming and self.coming[0][0] <= self.now:
            self.line.append(self.coming.popleft())
            self.asked_at = self.now

    def serve(self) -> None:
        """Let go as many as there are seats."""
        ready = list(self.ready().values())
        while self.line and ready:
            engine = min(ready, key=lambda each: len(each.ends))
            if len(engine.ends) >= SEATS:
                return
            at, takes_s = self.line.popleft()
            self.waited.append(self.now - at)
            engine.ends.append(self.now + takes_s)

    def result(self, policy: str) -> Result:
        """Who still waits at midnight counts with the wait so far."""
        waited = sorted([*self.waited, *(self.now - at for at, _ in self.line)])
        return Result(
            policy=policy,
            gpu_hours=round(self.gpu_s / 3600, 1),
            requests=len(waited),
            delayed_share=round(sum(wait > DELAYED_S for wait in waited) / len(waited), 4),
            p99_s=round(waited[int(len(waited) * 0.99)], 1),
            max_s=round(waited[-1], 1),
            starts=self.starts,
        )
