"""How much a key or a model may do. Pure: time is passed in.

Rates follow the generic cell rate algorithm (ITU-T I.371, annex A; a leaky bucket as a meter, J. Turner, "New
directions in communications", 1986): of each rate one number is kept, when it will be unused again. A minute's worth
may come at once; after that it comes back evenly. Cost may vary and may be corrected afterwards, which is what tokens
need; the package `limits` keeps an entry for each unit in its exact strategy, and can't give back.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 60.0
"""The rates are per minute, and a minute's worth is the largest burst."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of a key or a model. 0: no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    """Prompt and completion together."""
    max_concurrent: int = 0
    request_bytes_max: int = 0
    tokens_per_month: int = 0
    """Prompt and completion together, in a calendar month (UTC)."""

    def __bool__(self) -> bool:
        return self != NONE


NONE = Limits()


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a rate stands, as ``x-ratelimit-*`` tell it."""

    limit: int
    left: int
    reset_s: float
    """Until all of it is there again."""


class Rate:
    """What has been used of one rate. `per_minute` is at least 1, and may change from call to call."""

    __slots__ = ("unused_at",)

    def __init__(self) -> None:
        self.unused_at = 0.0
        """When all of it will be there again, if nothing more is taken."""

    def wait_s(self, per_minute: int, cost: int, now: float) -> float:
        """Seconds until `cost` may be taken; 0: now. What exceeds a whole minute's worth may go once that is there."""
        used_s = max(self.unused_at - now, 0.0)
        return max(used_s + min(cost, per_minute) * WINDOW_S / per_minute - WINDOW_S, 0.0)

    def take(self, per_minute: int, cost: int, now: float) -> None:
        """Use `cost` of it, whether or not there is so much."""
        self.unused_at = max(self.unused_at, now) + cost * WINDOW_S / per_minute

    def correct(self, per_minute: int, cost: int, now: float) -> None:
        """What was taken before turned out to be `cost` more, or less where negative."""
        self.unused_at = max(max(self.unused_at, now) + cost * WINDOW_S / per_minute, now)

    def standing(self, per_minute: int, now: float) -> Standing:
        """How it stands."""
        used_s = max(self.unused_at - now, 0.0)
        left = int((WINDOW_S - used_s) * per_minute / WINDOW_S + 1e-6)  # a whole request is not lost to rounding
        return Standing(limit=per_minute, left=max(left, 0), reset_s=used_s)
