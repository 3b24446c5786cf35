"""How much a key or a model may do. Pure: time is passed in.

Rates follow the generic cell rate algorithm (ITU-T I.371, annex A; a leaky bucket as a meter, J. Turner, "New
directions in communications", 1986): of each rate one number is kept, when it will be unused again. A minute's worth
may come at once; after that it comes back evenly. Cost may vary and may be corrected afterwards, which is what tokens
need. The package `limits` (5.8) has no strategy that gives back, keeps an entry for each token in its exact one, and
reads the clock itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WINDOW_S = 60.0
"""The rates are per minute, and a minute's worth is the largest burst."""
_ROUNDING = 1e-6
"""Of a second, or of one unit: nothing is lost to floating point."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of a key or a model. 0: no limit. Where there is none at all it is `NONE` itself."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    """Prompt and completion together."""
    max_concurrent: int = 0
    request_bytes_max: int = 0
    tokens_per_month: int = 0
    """Prompt and completion together, in a calendar month (UTC)."""


NONE = Limits()


class Rate:
    """What has been used of one rate; `per_minute` is at least 1."""

    __slots__ = ("_interval_s", "_told", "per_minute", "unused_at")

    def __init__(self, kind: str, per_minute: int, unused_at: float = 0.0) -> None:
        """`kind`: requests or tokens, as in the names of header fields."""
        self.per_minute = per_minute
        self.unused_at = unused_at
        """When all of it will be there again, if nothing more is taken."""
        self._interval_s = WINDOW_S / per_minute
        limit, left, reset = (f"x-ratelimit-{what}-{kind}".encode() for what in ("limit", "remaining", "reset"))
        self._told = b"%b: %d\r\n%b: %%d\r\n%b: %%b\r\n" % (limit, per_minute, left, reset)

    def wait_s(self, cost: int, now: float) -> float:
        """Seconds until `cost` may be taken, at most 0: now. What exceeds a whole minute's worth may go once that is
        there."""
        used_s = self.unused_at - now if self.unused_at > now else 0.0
        free_s = WINDOW_S - used_s + _ROUNDING
        return (cost if cost < self.per_minute else self.per_minute) * self._interval_s - free_s

    def take(self, cost: int, now: float) -> None:
        """Use `cost` of it, whether or not there is so much; less than nothing gives back what was taken before."""
        self.unused_at = (self.unused_at if self.unused_at > now else now) + cost * self._interval_s

    def left(self, now: float) -> int:
        """How much may be taken now, in whole units."""
        used_s = self.unused_at - now if self.unused_at > now else 0.0
        return int((WINDOW_S - used_s) / self._interval_s + _ROUNDING) if used_s < WINDOW_S else 0

    def told(self, now: float) -> bytes:
        """OpenAI's ``x-ratelimit-*`` fields as lines of a head: they go with every answer, and this is the cheapest."""
        used_s = self.unused_at - now if self.unused_at > now else 0.0
        return self._told % (self.left(now), duration(used_s))


def duration(seconds: float) -> bytes:
    """As OpenAI writes it: ``120ms``, ``1.5s``, ``6m0s``. Rounded up."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    if seconds < WINDOW_S:
        return b"%gs" % (math.ceil(seconds * 100) / 100)
    return b"%dm%ds" % divmod(math.ceil(seconds), 60)
