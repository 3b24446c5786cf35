"""The limits in force: what each key and model has used of them, and a request's leave to go on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from orchestrator.errors import ApiError
from orchestrator.key import Key
from orchestrator.limits import NONE, Limits, Rate, Standing
from orchestrator.model import Deployment
from orchestrator.upstream import Headers

RETRY_AFTER_MAX_S = 120
"""OpenAI's SDK does not retry at all where Retry-After says more."""
BUSY_S = 1
"""Retry-After where another request of the key has to end first: nobody knows when."""


class _Used:
    """What one key or one model has used."""

    __slots__ = ("in_flight", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = Rate()
        self.tokens = Rate()
        self.in_flight = 0


class Leave:
    """One request's. Settled once, by `settle` or `take_back`; later calls do nothing."""

    __slots__ = ("_parties", "_reserved_tokens")

    def __init__(self, parties: list[tuple[Limits, _Used]], reserved_tokens: int) -> None:
        self._parties = parties
        self._reserved_tokens = reserved_tokens

    def settle(self, tokens: int, now: float) -> None:
        """It ended, and took so many tokens."""
        for limits, used in self._parties:
            used.in_flight -= 1
            if limits.tokens_per_minute:
                used.tokens.correct(limits.tokens_per_minute, tokens - self._reserved_tokens, now)
        self._parties = []

    def take_back(self, now: float) -> None:
        """It was refused for another reason: it counts for nothing."""
        for limits, used in self._parties:
            if limits.requests_per_minute:
                used.requests.correct(limits.requests_per_minute, -1, now)
        self.settle(0, now)

    def headers(self, now: float) -> Headers:
        """The ``x-ratelimit-*`` fields, where anything is limited by the minute."""
        return _standing_headers(self._parties, now)


class Gate:
    """Keys of one name share their limits; so do all the keys that use a model, the model's."""

    def __init__(self) -> None:
        self._keys: dict[str, _Used] = {}
        self._models: dict[str, _Used] = {}
        self._month_tokens: Counter[str] = Counter()
        self._month_ends_unix = 0.0
        self.refusals: Counter[tuple[str, str]] = Counter()
        """How often, by key and limit."""

    def enter(self, key: Key, deployment: Deployment, tokens: int, now: float, unix: float) -> Leave | None:
        """Leave for a request that reserves `tokens`; None where nothing limits it. Raises `ApiError` 429.

        Nothing is taken where it is refused. The model's `max_concurrent` is not looked at: see `hold.Line`.
        """
        key_limits, model_limits = key.limits, deployment.limits
        if key_limits is NONE and model_limits is NONE:
            return None
        parties = []
        if key_limits is not NONE:
            used = self._keys.get(key.name) or self._keys.setdefault(key.name, _Used())
            self._check_key(key, used, unix)
            parties.append((key_limits, used))
        if model_limits is not NONE:
            used = self._models.get(deployment.name) or self._models.setdefault(deployment.name, _Used())
            parties.append((model_limits, used))
        for limits, used in parties:
            self._check_rates(key, deployment.name, limits, used, tokens, now, parties)
        for limits, used in parties:
            used.in_flight += 1
            if limits.requests_per_minute:
                used.requests.take(limits.requests_per_minute, 1, now)
            if limits.tokens_per_minute:
                used.tokens.take(limits.tokens_per_minute, tokens, now)
        return Leave(parties, tokens)

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
            wait_s = math.ceil(self._month_ends_unix - unix)
            message = f"the key's budget of {limits.tokens_per_month} tokens a month is used up: {spent} spent"
            headers = {"retry-after": str(wait_s), "x-should-retry": "false"}
            raise self._refusal(key, "month", message, headers, code="insufficient_quota")

    def _check_rates(
        self,
        key: Key,
        model: str,
        limits: Limits,
        used: _Used,
        tokens: int,
        now: float,
        parties: list[tuple[Limits, _Used]],
    ) -> None:
        what = "the key" if limits is key.limits else model
        rates = (
            ("requests", used.requests, limits.requests_per_minute, 1),
            ("tokens", used.tokens, limits.tokens_per_minute, tokens),
        )
        for kind, rate, per_minute, cost in rates:
            wait_s = rate.wait_s(per_minute, cost, now) if per_minute else 0.0
            if wait_s > 0:
                told_s = min(max(math.ceil(wait_s), 1), RETRY_AFTER_MAX_S)
                left = rate.standing(per_minute, now).left
                message = (
                    f"rate limit of {what} reached: {per_minute} {kind} per minute, {left} left, {cost} asked for; "
                    f"try again in {told_s} s"
                )
                fields = {name.decode(): value.decode() for name, value in _standing_headers(parties, now)}
                raise self._refusal(key, kind, message, {"retry-after": str(told_s), **fields})

    def _refusal(
        self, key: Key, kind: str, message: str, headers: dict[str, str], *, code: str = "rate_limit_exceeded"
    ) -> ApiError:
        self.refusals[key.name, kind] += 1
        return ApiError(
            429,
            message,
            code=code,
            kind="insufficient_quota" if code != "rate_limit_exceeded" else None,
            headers=headers,
        )


def month_end_unix(unix: float) -> float:
    """When the calendar month of `unix` ends (UTC)."""
    now = datetime.fromtimestamp(unix, UTC)
    month = (now.year + now.month // 12, now.month % 12 + 1)
    return datetime(*month, 1, tzinfo=UTC).timestamp()


def month_start_unix(unix: float) -> float:
    """When the calendar month of `unix` began (UTC)."""
    now = datetime.fromtimestamp(unix, UTC)
    return datetime(now.year, now.month, 1, tzinfo=UTC).timestamp()


def _standing_headers(parties: list[tuple[Limits, _Used]], now: float) -> Headers:
    """Of each kind the rate of which least is left."""
    fields: Headers = []
    for kind in (b"requests", b"tokens"):
        standings = [s for limits, used in parties if (s := _standing(kind, limits, used, now)) is not None]
        if standings:
            tightest = min(standings, key=lambda standing: standing.left) if len(standings) > 1 else standings[0]
            fields += [
                (b"x-ratelimit-limit-" + kind, b"%d" % tightest.limit),
                (b"x-ratelimit-remaining-" + kind, b"%d" % tightest.left),
                (b"x-ratelimit-reset-" + kind, duration(tightest.reset_s)),
            ]
    return fields


def _standing(kind: bytes, limits: Limits, used: _Used, now: float) -> Standing | None:
    if kind == b"requests":
        return used.requests.standing(limits.requests_per_minute, now) if limits.requests_per_minute else None
    return used.tokens.standing(limits.tokens_per_minute, now) if limits.tokens_per_minute else None


def duration(seconds: float) -> bytes:
    """As OpenAI writes it: ``120ms``, ``1.5s``, ``6m0s``."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    if seconds < 60:
        return b"%gs" % (math.ceil(seconds * 100) / 100)
    return b"%dm%ds" % divmod(math.ceil(seconds), 60)
