"""The lanes of one model, where it has several: which are in rotation, and which of them a request takes.

Owned by the activator, on its event loop; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from orchestrator.balance.breaker import Breaker, Fault, State, outliers
from orchestrator.balance.capacity import suppose
from orchestrator.balance.lane import SLOW_START_S, Lane
from orchestrator.balance.names import Balance
from orchestrator.balance.policy import POLICIES
from orchestrator.balance.retry import TRIES_MAX, RetryBudget
from orchestrator.balance.rotation import rotation


class Balancer:
    """`chance` gives numbers from 0 to 1."""

    def __init__(self, balance: Balance, chance: Callable[[], float]) -> None:
        self.balance = balance
        self.budget = RetryBudget()
        self._chance = chance
        self._policy = POLICIES[balance](chance)
        self._pool: tuple[Lane, ...] = ()
        self._leaving: tuple[Lane, ...] = ()
        self._lanes: tuple[Lane, ...] = ()

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """All that there is to look after."""
        return self._pool + self._leaving

    def pool(self, lanes: Sequence[Lane], out: Sequence[Lane]) -> tuple[Lane, ...]:
        """The model's lanes, given those of a route that may have been through `lay` already."""
        return (*lanes, *(lane for lane in out if lane not in self._leaving))

    def leaving(self, pool: Sequence[Lane]) -> tuple[Lane, ...]:
        """The lanes that were the model's, are not in `pool`, and still have something to finish."""
        return tuple(lane for lane in self.lanes if lane.in_flight and lane not in pool)

    def lay(self, pool: tuple[Lane, ...], now: float) -> tuple[tuple[Lane, ...], tuple[Lane, ...]]:
        """Take the model's lanes, or look at them again: about once a second, and when a breaker has turned. Returns
        those in rotation, and the others."""
        leaving = self.leaving(pool)
        for gone in set(self.lanes).difference(pool, leaving):
            gone.breaker = None
        first = not self._pool  # the only one so far may be warm
        self._pool, self._leaving = pool, leaving
        for lane in pool:
            if lane.breaker is None:
                lane.breaker = Breaker()
                lane.ramp_at = now - SLOW_START_S if first and lane.last_byte_at is not None else None
        self._lanes, out = rotation(pool, now)
        suppose(pool)
        for lane in pool:
            held_back = lane.breaker is not None and lane.breaker.state is not State.CLOSED
            lane.weigh(now, self._chance(), held_back=held_back)
        self._policy.lay(self._lanes)
        return self._lanes, out + leaving

    def disband(self) -> None:
        """It has no longer several lanes."""
        for lane in self.lanes:
            lane.breaker = None

    def choose(self, body: bytes) -> Lane:
        """The lane for a new request. There must be one in rotation."""
        self.budget.earn()
        return self._policy.choose(body)

    def spare(self, tried: Sequence[Lane], now: float) -> bool:
        """Whether `another` would find one."""
        untried = any(lane not in tried for lane in self._lanes)
        return untried and len(tried) < TRIES_MAX and self.budget.left(now) > 0

    def another(self, tried: Sequence[Lane], now: float) -> Lane | None:
        """The lane for a request that failed at these before its first byte. None: it was tried often enough, or
        there is no other, or too many others are tried again as well."""
        if not self.spare(tried, now):
            return None
        self.budget.take(now)
        return min((lane for lane in self._lanes if lane not in tried), key=attrgetter("score"))

    def answered(self, lane: Lane, answer: bytes) -> None:
        """The first bytes of a good answer of ``/v1/responses``."""
        self._policy.answered(lane, answer)

    def judge(self, now: float) -> bool:
        """Compare the lanes in rotation; whether a breaker opened."""
        slow = outliers([lane.breaker for lane in self._lanes if lane.breaker is not None])
        return any([breaker.slow(now, self._chance()) for breaker in slow])

    def relieve(self, now: float) -> None:
        """Have the requests of engines that fell silent tried elsewhere, as many as may be tried again."""
        for lane in self.lanes:
            breaker = lane.breaker
            if breaker is None or breaker.state is not State.OPEN or breaker.fault is not Fault.SILENT:
                continue
            if any(other is not lane for other in self._lanes):
                lane.pool.give_up(self.budget.left(now))
