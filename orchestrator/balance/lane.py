"""The way to one engine."""

from __future__ import annotations

from orchestrator.model import Load, Traffic
from orchestrator.servers.disguise import Disguise
from orchestrator.upstream import Pool

CAPACITY_DEFAULT = 1
"""Where it is not known how many requests an engine takes at once: all lanes of a model weigh the same."""


class Lane:
    """The way to one ready replica, and the count of what is on it."""

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
        self.last_byte_at: float | None = None
        self._share_s = 0.0
        self._share_at = 0.0

    def enter(self, now: float) -> float:
        """One more request is at it. Returns what `leave` wants to know."""
        self._advance(now)
        self.in_flight += 1
        return self._share_s

    def leave(self, now: float, since: float) -> float:
        """One is done. Returns its GPU-seconds: at each moment, its part of the replica's among those in flight.

        `_share_s` is what one request that is always there would have had: the virtual time of processor sharing.
        """
        self._advance(now)
        self.in_flight -= 1
        self.last_byte_at = now
        return (self._share_s - since) * self.gpus

    def _advance(self, now: float) -> None:
        if self.in_flight:
            self._share_s += (now - self._share_at) / self.in_flight
        self._share_at = now

    def traffic(self) -> Traffic:
        """The counts as the loop reads them."""
        return Traffic(in_flight=self.in_flight, last_byte_at=self.last_byte_at)
