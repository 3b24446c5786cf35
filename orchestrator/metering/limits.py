"""How much a key or a model may do, and what it has used of that. Pure: time is passed in.

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
TOLD_S = 0.001
"""The fields tell times in milliseconds, and are made anew as often at most."""
_ROUNDING = 1e-6
"""Of a second, or of one unit: nothing is lost to floating point."""
_FULL_S = WINDOW_S + _ROUNDING


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Short:
    """A rate of which there is too little."""

    kind: str
    """requests or tokens."""
    per_minute: int
    left: int
    """How much may be taken now, in whole units."""
    wait_s: float
    """Until there is enough; more than 0."""


class Used:
    """What one key or model has used of its limits: its rates, and requests in hand.

    All three change with every request, so both rates are kept here as plain numbers: for each the seconds of a unit
    (0: not limited) and the time when all of it will be there again, if nothing more is taken.
    """

    __slots__ = (
        "_request_s",
        "_requests_at",
        "_requests_told",
        "_token_s",
        "_tokens_at",
        "_tokens_told",
        "_told_at",
        "_told_lines",
        "_told_with",
        "in_flight",
        "limits",
        "reserved",
    )

    def __init__(self) -> None:
        self._requests_at = self._tokens_at = 0.0
        self._told_with: Used | None = None
        self.in_flight = self.reserved = 0
        """Requests in hand, and the tokens that these reserved."""
        self.limit(NONE)

    def limit(self, limits: Limits) -> None:
        """From now on these limits hold; what was used of the old ones stays used."""
        self.limits = limits
        self._request_s = WINDOW_S / limits.requests_per_minute if limits.requests_per_minute else 0.0
        self._token_s = WINDOW_S / limits.tokens_per_minute if limits.tokens_per_minute else 0.0
        self._requests_told = _told("requests", limits.requests_per_minute)
        self._tokens_told = _told("tokens", limits.tokens_per_minute)
        self._told_at, self._told_lines = -math.inf, b""

    def take(self, tokens: int, now: float) -> bool:
        """A request begins that reserves `tokens`; False: there is not so much, see `short`, and nothing is taken.

        What exceeds a whole minute's worth may go once that is there.
        """
        requests_at, tokens_at = self._requests_at, self._tokens_at
        requests_at = (requests_at if requests_at > now else now) + self._request_s
        tokens_at = (tokens_at if tokens_at > now else now) + tokens * self._token_s
        latest = now + _FULL_S
        if (requests_at > latest or tokens_at > latest) and self.short(tokens, now) is not None:
            return False
        self._requests_at, self._tokens_at = requests_at, tokens_at
        self.in_flight += 1
        self.reserved += tokens
        return True

    def settle(self, reserved: int, took: int, now: float) -> None:
        """A request ended: how many tokens it reserved, and took."""
        self.in_flight -= 1
        self.reserved -= reserved
        tokens_at = self._tokens_at
        self._tokens_at = (tokens_at if tokens_at > now else now) + (took - reserved) * self._token_s

    def take_back(self, tokens: int, now: float) -> None:
        """A request that reserved `tokens` counts for nothing."""
        self._requests_at = max(self._requests_at, now) - self._request_s
        self.settle(tokens, 0, now)

    def short(self, tokens: int, now: float) -> Short | None:
        """The rate that has too little for a request that reserves `tokens`; None: none."""
        limits = self.limits
        return _short("requests", limits.requests_per_minute, self._requests_at, 1, now) or _short(
            "tokens", limits.tokens_per_minute, self._tokens_at, tokens, now
        )

    def recently_told(self, now: float, other: Used | None) -> bytes:
        """`told`, by at most `TOLD_S` ago: what goes with every answer, of which there may be many in that time."""
        if now - self._told_at > TOLD_S or other is not self._told_with:
            self._told_at, self._told_with = now, other
            self._told_lines = self.told(now, other)
        return self._told_lines

    def told(self, now: float, other: Used | None = None) -> bytes:
        """OpenAI's ``x-ratelimit-*`` fields as lines of a head; of each kind the rate of which less is left, this
        one's or the `other`'s."""
        requests = tokens = self
        if other is not None:
            if _left(other._request_s, other._requests_at, now) < _left(self._request_s, self._requests_at, now):
                requests = other
            if _left(other._token_s, other._tokens_at, now) < _left(self._token_s, self._tokens_at, now):
                tokens = other
        lines = b""
        if requests._request_s:
            lines = _lines(requests._requests_told, requests._request_s, requests._requests_at, now)
        if tokens._token_s:
            lines += _lines(tokens._tokens_told, tokens._token_s, tokens._tokens_at, now)
        return lines


def _short(kind: str, per_minute: int, unused_at: float, cost: int, now: float) -> Short | None:
    if not per_minute:
        return None
    unit_s = WINDOW_S / per_minute
    wait_s = min(cost, per_minute) * unit_s - (_FULL_S - max(unused_at - now, 0.0))
    if wait_s <= 0:
        return None
    left = max(_left(unit_s, unused_at, now), 0.0)
    return Short(kind=kind, per_minute=per_minute, left=int(left + _ROUNDING), wait_s=wait_s)


def _left(unit_s: float, unused_at: float, now: float) -> float:
    """Units that may be taken now, below 0 where more was taken than there is; infinite where nothing limits it."""
    if not unit_s:
        return math.inf
    return (WINDOW_S - unused_at + now if unused_at > now else WINDOW_S) / unit_s


def _told(kind: str, per_minute: int) -> bytes:
    limit, left, reset = (f"x-ratelimit-{what}-{kind}".encode() for what in ("limit", "remaining", "reset"))
    return b"%b: %d\r\n%b: %%d\r\n%b: %%b\r\n" % (limit, per_minute, left, reset)


def _lines(told: bytes, unit_s: float, unused_at: float, now: float) -> bytes:
    used_s = unused_at - now
    if used_s <= 0:
        return told % (WINDOW_S / unit_s + _ROUNDING, b"0ms")
    left = (WINDOW_S - used_s) / unit_s + _ROUNDING
    return told % (left if left > 0 else 0, b"%dms" % math.ceil(used_s * 1000) if used_s < 1 else duration(used_s))


def duration(seconds: float) -> bytes:
    """As OpenAI writes it: ``120ms``, ``1.5s``, ``6m0s``. Rounded up."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    if seconds < WINDOW_S:
        return b"%gs" % (math.ceil(seconds * 100) / 100)
    return b"%dm%ds" % divmod(math.ceil(seconds), 60)
