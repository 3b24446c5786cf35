"""The limits in force: what each key and model has used of them, and a request's leave to go on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from orchestrator.access.key import Key
from orchestrator.errors import ApiError
from orchestrator.metering.limits import NONE, Limits, Used
from orchestrator.model import Deployment
from orchestrator.upstream import Headers

RETRY_AFTER_MAX_S = 120
"""OpenAI's SDK does not retry at all where Retry-After says more."""
USED_UP = "insufficient_quota"
BUSY_S = 1
"""Retry-After where another request of the key has to end first: nobody knows when."""


class Leave(msgspec.Struct, gc=False):
    """One request's. Ended once, by `settle` or `take_back`."""

    key: Used | None
    model: Used | None
    tokens: int
    """Reserved."""

    def settle(self, tokens: int, now: float) -> None:
        """It ended, and took so many tokens."""
        if self.key is not None:
            self.key.settle(self.tokens, tokens, now)
        if self.model is not None:
            self.model.settle(self.tokens, tokens, now)

    def take_back(self, now: float) -> None:
        """It was refused for another reason: it counts for nothing."""
        for used in (self.key, self.model):
            if used is not None:
                used.take_back(self.tokens, now)

    def told(self, now: float) -> bytes:
        """The ``x-ratelimit-*`` fields as lines of a head."""
        if self.key is not None:
            return self.key.recently_told(now, self.model)
        return self.model.recently_told(now, None) if self.model is not None else b""


class Gate:
    """Keys of one name share their limits; so do all the keys that use a model, the model's."""

    def __init__(self) -> None:
        self._keys: dict[str, Used] = {}
        self._models: dict[str, Used] = {}
        self._month_tokens: Counter[str] = Counter()
        self._month_ends_unix = 0.0
        self.refusals: Counter[tuple[str, str]] = Counter()
        """How often, by key and limit: requests, tokens, concurrent or month."""

    def enter(self, key: Key, deployment: Deployment, tokens: int, now: float, unix: float) -> Leave | None:
        """Leave for a request that reserves `tokens`; None where nothing limits it. Raises `ApiError` 429.

        Nothing is taken where it is refused. The model's `max_concurrent` is not looked at: see `hold.Line`.
        """
        of_key = of_model = None
        if key.limits is not NONE:
            of_key = self._keys.get(key.name)
            if of_key is None or of_key.limits is not key.limits:
                of_key = _of(self._keys, key.name, key.limits)
            self._check_key(key, of_key, unix)
        limits = deployment.limits
        if limits.requests_per_minute or limits.tokens_per_minute:
            of_model = self._models.get(deployment.name)
            if of_model is None or of_model.limits is not limits:
                of_model = _of(self._models, deployment.name, limits)
        elif of_key is None:
            return None
        if of_key is not None and not of_key.take(tokens, now):
            raise self._exceeded(key, "the key", of_key, tokens, now, _told(of_key, of_model, now))
        if of_model is not None and not of_model.take(tokens, now):
            if of_key is not None:
                of_key.take_back(tokens, now)
            raise self._exceeded(key, deployment.name, of_model, tokens, now, _told(of_key, of_model, now))
        return Leave(of_key, of_model, tokens)

    def spend(self, name: str, tokens: int, unix: float) -> None:
        """A key used tokens; counted for every key, since a budget may be given to it in the middle of a month."""
        if unix >= self._month_ends_unix:
            self.begin_month({}, unix)
        self._month_tokens[name] += tokens

    def begin_month(self, spent: Mapping[str, int], unix: float) -> None:
        """What keys have spent in the month of `unix` so far."""
        self._month_tokens = Counter(spent)
        self._month_ends_unix = month_end_unix(unix)

    def _check_key(self, key: Key, used: Used, unix: float) -> None:
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
            raise self._refusal(key, "month", message, headers, code=USED_UP)
        if spent + used.reserved >= limits.tokens_per_month:
            message = f"what the key has in hand may use up its budget of {limits.tokens_per_month} tokens a month"
            raise self._refusal(key, "month", message, {"retry-after": str(BUSY_S)})

    def _exceeded(self, key: Key, whose: str, used: Used, tokens: int, now: float, told: bytes) -> ApiError:
        short = used.short(tokens, now)
        assert short is not None
        told_s = min(max(math.ceil(short.wait_s), 1), RETRY_AFTER_MAX_S)
        limit = f"{short.per_minute} {short.kind} per minute, {short.left} left"
        message = f"rate limit of {whose} reached: {limit}; try again in {told_s} s"
        fields = {name.decode(): value.decode() for name, value in fields_of(told)}
        return self._refusal(key, short.kind, message, {"retry-after": str(told_s), **fields})

    def _refusal(
        self, key: Key, limit: str, message: str, headers: dict[str, str], *, code: str = "rate_limit_exceeded"
    ) -> ApiError:
        """OpenAI's `type` of a used-up budget is its code."""
        self.refusals[key.name, limit] += 1
        kind = code if code == USED_UP else None
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


def _of(known: dict[str, Used], name: str, limits: Limits) -> Used:
    used = known.get(name)
    if used is None:
        used = known[name] = Used()
    if used.limits is not limits:
        used.limit(limits)
    return used


def _told(key: Used | None, model: Used | None, now: float) -> bytes:
    if key is not None:
        return key.told(now, model)
    return model.told(now) if model is not None else b""
