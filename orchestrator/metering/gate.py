"""The limits in force: what each key and model has used of them, and a request's leave to go on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from orchestrator.access.key import Key
from orchestrator.errors import ApiError
from orchestrator.metering.limits import NONE, Limits, Rate
from orchestrator.model import Deployment
from orchestrator.upstream import Headers

RETRY_AFTER_MAX_S = 120
"""OpenAI's SDK does not retry at all where Retry-After says more."""
BUSY_S = 1
"""Retry-After where another request of the key has to end first: nobody knows when."""


class _Used:
    """What one key or one model has used of its limits."""

    __slots__ = ("in_flight", "limits", "requests", "tokens")

    def __init__(self) -> None:
        self.limits = NONE
        self.requests: Rate | None = None
        self.tokens: Rate | None = None
        self.in_flight = 0

    def limit(self, limits: Limits) -> None:
        """From now on these limits hold; what was used of the old ones stays used."""
        self.limits = limits
        self.requests = _changed(self.requests, "requests", limits.requests_per_minute)
        self.tokens = _changed(self.tokens, "tokens", limits.tokens_per_minute)


class Leave:
    """One request's. Ended once, by `settle` or `take_back`."""

    __slots__ = ("_key", "_model", "_tokens")

    def __init__(self, key: _Used | None, model: _Used | None, tokens: int) -> None:
        self._key = key
        self._model = model
        self._tokens = tokens

    def settle(self, tokens: int, now: float) -> None:
        """It ended, and took so many tokens."""
        for used in (self._key, self._model):
            if used is not None:
                used.in_flight -= 1
                if used.tokens is not None:
                    used.tokens.take(tokens - self._tokens, now)

    def take_back(self, now: float) -> None:
        """It was refused for another reason: it counts for nothing."""
        for used in (self._key, self._model):
            if used is not None and used.requests is not None:
                used.requests.take(-1, now)
        self.settle(0, now)

    def told(self, now: float) -> bytes:
        """The ``x-ratelimit-*`` fields as lines of a head: of each kind the rate of which less is left."""
        key, model = self._key, self._model
        if key is None or model is None:
            used = key or model
            return _told(used.requests, used.tokens, now) if used is not None else b""
        return _told(_tighter(key.requests, model.requests, now), _tighter(key.tokens, model.tokens, now), now)


class Gate:
    """Keys of one name share their limits; so do all the keys that use a model, the model's."""

    def __init__(self) -> None:
        self._keys: dict[str, _Used] = {}
        self._models: dict[str, _Used] = {}
        self._month_tokens: Counter[str] = Counter()
        self._month_ends_unix = 0.0
        self.refusals: Counter[tuple[str, str]] = Counter()
        """How often, by key and limit: requests, tokens, concurrent or month."""

    def enter(self, key: Key, deployment: Deployment, tokens: int, now: float, unix: float) -> Leave | None:
        """Leave for a request that reserves `tokens`; None where nothing limits it. Raises `ApiError` 429.

        Nothing is taken where it is refused. The model's `max_concurrent` is not looked at: see `hold.Line`.
        """
        of_key = None if key.limits is NONE else _of(self._keys, key.name, key.limits)
        of_model = None
        if deployment.limits.requests_per_minute or deployment.limits.tokens_per_minute:
            of_model = _of(self._models, deployment.name, deployment.limits)
        if of_key is None and of_model is None:
            return None
        leave = Leave(of_key, of_model, tokens)
        if of_key is not None:
            self._check_key(key, of_key, unix)
            self._check_rates(key, "the key", of_key, tokens, now, leave)
        if of_model is not None:
            self._check_rates(key, deployment.name, of_model, tokens, now, leave)
        for used in (of_key, of_model):
            if used is not None:
                used.in_flight += 1
                if used.requests is not None:
                    used.requests.take(1, now)
                if used.tokens is not None:
                    used.tokens.take(tokens, now)
        return leave

    def spend(self, name: str, tokens: int, unix: float) -> None:
        """A key used tokens; counted for every key, since a budget may be given to it in the middle of a month."""
        if unix >= self._month_ends_unix:
            self.begin_month({}, unix)
        self._month_tokens[name] += tokens

    def begin_month(self, spent: Mapping[str, int], unix: float) -> None:
        """What keys have spent in the month of `unix` so far."""
        self._month_tokens = Counter(spent)
        self._month_ends_unix = month_end_unix(unix)

    def _check_key(self, key: Key, used: _Used, unix: float) -> None:
        limits = key.limits
        if limits.max_concurrent and used.in_flight >= limits.max_concurrent:
            message = f"the key has {used.in_flight} requests in hand and may have {limits.max_concurrent} at a time"
            raise self._refusal(key, "concurrent", message, {"retry-after": str(BUSY_S)})
        if not limits.tokens_per_month:
            return
        if unix >= self._month_ends_unix:
            self.begin_month({}, unix)
        spent = self._month_tokens[key.name]
        if spent >= limits.tokens_per_month:
            message = f"the key's budget of {limits.tokens_per_month} tokens a month is used up: {spent} spent"
            wait_s = math.ceil(self._month_ends_unix - unix)
            headers = {"retry-after": str(wait_s), "x-should-retry": "false"}
            raise self._refusal(key, "month", message, headers, code="insufficient_quota")

    def _check_rates(self, key: Key, whose: str, used: _Used, tokens: int, now: float, leave: Leave) -> None:
        if used.requests is not None and (wait_s := used.requests.wait_s(1, now)) > 0:
            raise self._exceeded(key, "requests", whose, used.requests, wait_s, now, leave)
        if used.tokens is not None and (wait_s := used.tokens.wait_s(tokens, now)) > 0:
            raise self._exceeded(key, "tokens", whose, used.tokens, wait_s, now, leave)

    def _exceeded(
        self, key: Key, kind: str, whose: str, rate: Rate, wait_s: float, now: float, leave: Leave
    ) -> ApiError:
        told_s = min(max(math.ceil(wait_s), 1), RETRY_AFTER_MAX_S)
        limit = f"{rate.per_minute} {kind} per minute, {rate.left(now)} left"
        message = f"rate limit of {whose} reached: {limit}; try again in {told_s} s"
        fields = {name.decode(): value.decode() for name, value in fields_of(leave.told(now))}
        return self._refusal(key, kind, message, {"retry-after": str(told_s), **fields})

    def _refusal(
        self, key: Key, limit: str, message: str, headers: dict[str, str], *, code: str = "rate_limit_exceeded"
    ) -> ApiError:
        """OpenAI's `type` of a used-up budget is its code."""
        self.refusals[key.name, limit] += 1
        kind = code if limit == "month" else None
        return ApiError(429, message, code=code, kind=kind, headers=headers)


def fields_of(lines: bytes) -> Headers:
    """Lines of a head as fields."""
    pairs = (line.partition(b": ") for line in lines.split(b"\r\n") if line)
    return [(name, value) for name, _, value in pairs]


def month_end_unix(unix: float) -> float:
    """When the calendar month of `unix` ends (UTC)."""
    now = datetime.fromtimestamp(unix, UTC)
    return datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC).timestamp()


def month_start_unix(unix: float) -> float:
    """When the calendar month of `unix` began (UTC)."""
    now = datetime.fromtimestamp(unix, UTC)
    return datetime(now.year, now.month, 1, tzinfo=UTC).timestamp()


def _of(known: dict[str, _Used], name: str, limits: Limits) -> _Used:
    used = known.get(name)
    if used is None:
        used = known[name] = _Used()
    if used.limits is not limits:
        used.limit(limits)
    return used


def _changed(rate: Rate | None, kind: str, per_minute: int) -> Rate | None:
    return Rate(kind, per_minute, rate.unused_at if rate is not None else 0.0) if per_minute else None


def _tighter(one: Rate | None, other: Rate | None, now: float) -> Rate | None:
    if one is None or other is None:
        return one or other
    return one if one.left(now) <= other.left(now) else other


def _told(requests: Rate | None, tokens: Rate | None, now: float) -> bytes:
    lines = requests.told(now) if requests is not None else b""
    return lines + tokens.told(now) if tokens is not None else lines
