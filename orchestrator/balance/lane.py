"""The way to one engine."""

from __future__ import annotations

from orchestrator.balance.breaker import Breaker
from orchestrator.model import Load, Traffic
from orchestrator.servers.disguise import Disguise
from orchestrator.upstream import Pool

CAPACITY_DEFAULT = 1
"""Where it is not known how many requests an engine takes at once: all lanes of a model weigh the same."""
RUNNING_COST = 3.0
"""A request that runs weighs as much as three that wait."""
LOAD_AGE_MAX_S = 10.0
"""What an engine said of its load before this tells nothing."""
SLOW_START_S = 10.0
SLOW_START_MIN = 0.1
"""A new engine's part grows from a tenth to all of what it will have, evenly: its caches are cold. After Envoy's
(https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/slow_start)."""
TIE = 1e-6
"""Of the cost of one request: enough to tell lanes apart that are loaded alike, too little for anything else."""


class Lane:
    """The way to one ready replica, the count of what is on it, and how loaded that makes it."""

    def __init__(
        self, replica: str, pool: Pool, *, gpus: int = 0, capacity: int = CAPACITY_DEFAULT, weight: float = 1.0
    ) -> None:
        self.replica = replica
        """The id of a replica, or the name of a server that others run."""
        self.pool = pool
        self.gpus = gpus
        self.capacity = capacity
        """How many requests it takes at once, in the same unit for all lanes of a model; see `policy`."""
        self.weight = weight
        """Its part of what its capacity would get."""
        self.disguise: Disguise | None = None
        """How requests look to it; None: as they are."""
        self.in_flight = 0
        self.load: Load | None = None
        """What the engine last said of itself; None: unknown."""
        self.ran = 0
        """Requests that it ran when it was last seen to let others wait; 0: it never was."""
        self.supposed = 0
        """Its capacity by that, where nobody said it; 0: unknown. See `capacity.suppose`."""
        self.others = 0
        """Requests at the engine that did not come by this lane, by that."""
        self.breaker: Breaker | None = None
        """There where the model has other lanes too."""
        self.cost = RUNNING_COST
        """What one more request adds to `score`."""
        self.score = 0.0
        """What lanes are chosen by: its load by its share, kept up by each request between two `weigh`."""
        self.share = 1.0
        """Capacity, weight and slow start in one number; see `weigh`."""
        self.ramp_at: float | None = None
        """When its slow start began."""
        self.turn = 0.0
        """Its place in a round of turns; see `policy.RoundRobin`."""
        self.last_byte_at: float | None = None
        self.elsewhere = Traffic()
        """What gateways have told of their requests at it; see `gateway.registry`."""
        self._share_s = 0.0
        self._share_at = 0.0

    def enter(self, now: float) -> float:
        """One more request is at it. Returns what `leave` wants to know."""
        self._advance(now)
        self.in_flight += 1
        self.score += self.cost
        return self._share_s

    def leave(self, now: float, since: float) -> float:
        """One is done. Returns its GPU-seconds: at each moment, its part of the replica's among those in flight.

        `_share_s` is what one request that is always there would have had: the virtual time of processor sharing.
        A little stays on the score, so that of lanes loaded alike the one goes next that has served least.
        """
        self._advance(now)
        self.in_flight -= 1
        self.score -= self.cost * (1 - TIE)
        self.last_byte_at = now
        return (self._share_s - since) * self.gpus

    def _advance(self, now: float) -> None:
        if self.in_flight:
            self._share_s += (now - self._share_at) / self.in_flight
        self._share_at = now

    def traffic(self) -> Traffic:
        """The counts as the loop reads them, gateways' requests among them."""
        ends = [at for at in (self.last_byte_at, self.elsewhere.last_byte_at) if at is not None]
        return Traffic(in_flight=self.taken, last_byte_at=max(ends, default=None))

    @property
    def taken(self) -> int:
        """Requests at it that came by us or by a gateway."""
        return self.in_flight + self.elsewhere.in_flight

    @property
    def beside(self) -> int:
        """Requests at the engine that did not come by this lane, as far as known."""
        return max(self.others, self.elsewhere.in_flight)

    @property
    def takes(self) -> int:
        """Its capacity as far as known."""
        return self.supposed or self.capacity

    @property
    def loaded(self) -> float:
        """How loaded it is now: ``(running * 3 + waiting) / capacity``."""
        return request_cost(self.load) * (self.in_flight + self.beside) / self.takes

    def heard(self, load: Load | None) -> None:
        """The engine told its load just now, or did not. A request that waits is one that has just come; if there is
        one again at the next telling, the engine has as many as it takes."""
        full = load is not None and load.waiting and self.load is not None and self.load.waiting
        if load is not None and (full or self.ran):
            self.ran = load.running if full else max(self.ran, load.running)
        self.load = load
        self.others = max(load.running + load.waiting - self.in_flight, 0) if load is not None else 0

    def weigh(self, now: float, chance: float, *, held_back: bool = False) -> None:
        """Work out `score` anew, as of now. `chance` (0 … 1) breaks ties, differently in every process, so that not
        all of them run to the same engine; `held_back`: its slow start has not begun."""
        if self.load is not None and now - self.load.at > LOAD_AGE_MAX_S:
            self.heard(None)
        if held_back or self.ramp_at is None:
            self.ramp_at = now
        grown = min(max((now - self.ramp_at) / SLOW_START_S, SLOW_START_MIN), 1.0)
        self.share = self.takes * self.weight * grown
        self.cost = request_cost(self.load) / self.share
        self.score = self.cost * (self.in_flight + self.beside + TIE * chance)


def request_cost(load: Load | None) -> float:
    """What a request weighs at an engine: `RUNNING_COST` where it runs, 1 where it waits; by its own figures, the
    mean of them. Where nothing is known, all run. So a lane's in-flight count, which is never late, and the engine's
    figures, which are, make one number: ``(running * 3 + waiting)`` at the moment of these, and right since then."""
    if load is None or load.running + load.waiting <= 0:
        return RUNNING_COST
    return (load.running * RUNNING_COST + load.waiting) / (load.running + load.waiting)
