"""Limits: what a minute lets through, honest waits, corrections, months. PROMISES S14."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.access.key import Key
from orchestrator.errors import ApiError
from orchestrator.metering.gate import RETRY_AFTER_MAX_S, Gate, fields_of, month_end_unix, month_start_unix
from orchestrator.metering.limits import NONE, WINDOW_S, Limits, Used, duration
from orchestrator.metering.meter import reserve
from orchestrator.model import Deployment, EngineKind, Scope
from orchestrator.reader import peek

PER_MINUTE = st.integers(1, 10**6)
STEPS = st.lists(st.tuples(st.floats(0, 90), st.integers(1, 50)), max_size=60)


def used(**limits: int) -> Used:
    made = Used()
    made.limit(Limits(**limits))
    return made


def wait_s(what: Used, tokens: int, now: float) -> float:
    short = what.short(tokens, now)
    return 0.0 if short is None else short.wait_s


def left(what: Used, kind: bytes, now: float) -> int:
    return int(dict(fields_of(what.told(now)))[b"x-ratelimit-remaining-" + kind])


def test_a_minutes_worth_at_once_then_evenly() -> None:
    rate = used(requests_per_minute=60)
    for _ in range(60):
        assert rate.take(0, 100.0)
    assert not rate.take(0, 100.0)
    assert wait_s(rate, 0, 100.0) == pytest.approx(1, abs=1e-5)
    assert left(rate, b"requests", 100.0) == 0
    assert wait_s(rate, 0, 101.0) <= 1e-9
    assert left(rate, b"requests", 130.0) == 30


@given(PER_MINUTE, STEPS)
def test_no_window_has_more_than_twice_a_minutes_worth(per_minute: int, steps: list[tuple[float, int]]) -> None:
    rate, now, taken = used(tokens_per_minute=per_minute), 0.0, list[tuple[float, int]]()
    for pause_s, cost in steps:
        now += pause_s
        if cost <= per_minute and rate.take(cost, now):
            taken.append((now, cost))
    for start, _ in taken:
        assert sum(cost for at, cost in taken if start <= at < start + WINDOW_S) <= 2 * per_minute + 1e-6


@given(PER_MINUTE, STEPS)
def test_waits_are_honest(per_minute: int, steps: list[tuple[float, int]]) -> None:
    """Not a moment before it, and at once after it."""
    rate, now = used(tokens_per_minute=per_minute), 1000.0
    for pause_s, cost in steps:
        now += pause_s
        waited_s = wait_s(rate, cost, now)
        if waited_s > 1e-3:
            assert not rate.take(cost, now + waited_s * 0.99)
        now += waited_s * (1 + 1e-9) + 1e-6
        assert rate.take(cost, now)


@given(PER_MINUTE, st.integers(0, 10**6), st.integers(0, 10**6))
def test_what_was_reserved_is_corrected(per_minute: int, reserved: int, real: int) -> None:
    corrected, plain = used(tokens_per_minute=per_minute), used(tokens_per_minute=per_minute)
    assert corrected.take(reserved, 50.0)
    corrected.settle(reserved, real, 50.0)
    assert plain.take(real, 50.0)
    assert left(corrected, b"tokens", 50.0) == pytest.approx(left(plain, b"tokens", 50.0), abs=1)


def test_more_than_a_minutes_worth_goes_once_all_is_there() -> None:
    rate = used(tokens_per_minute=100)
    assert rate.take(1000, 0.0)
    assert wait_s(rate, 1, 0.0) == pytest.approx(540.6)
    assert not rate.take(1000, 539.0)
    assert rate.take(1000, 600.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, b"0ms"), (0.12, b"120ms"), (1.5, b"1.5s"), (59.999, b"60s"), (60.0, b"1m0s"), (360.2, b"6m1s")],
)
def test_durations_as_openai_writes_them(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text


def key(name: str = "a", **limits: int) -> Key:
    return Key(name=name, scopes=frozenset({Scope.REALTIME}), limits=Limits(**limits))


def model(**limits: int) -> Deployment:
    return Deployment(name="m", engine=EngineKind.VLLM, source="", limits=Limits(**limits) if limits else NONE)


def refused(gate: Gate, who: Key, what: Deployment, tokens: int = 0, now: float = 0.0, unix: float = 0.0) -> ApiError:
    with pytest.raises(ApiError) as caught:
        gate.enter(who, what, tokens, now, unix)
    assert caught.value.status == 429
    return caught.value


def test_nothing_is_kept_of_who_has_no_limits() -> None:
    assert Gate().enter(Key(name="a", scopes=frozenset()), model(), 5, 0.0, 0.0) is None


def test_requests_a_minute() -> None:
    gate, who = Gate(), key(requests_per_minute=2)
    for _ in range(2):
        leave = gate.enter(who, model(), 0, 0.0, 0.0)
        assert leave is not None
        leave.settle(0, 0.0)
    told = refused(gate, who, model())
    assert (told.code, told.kind) == ("rate_limit_exceeded", "rate_limit_error")
    assert told.headers["retry-after"] == "30"
    assert told.headers["x-ratelimit-limit-requests"] == "2"
    assert told.headers["x-ratelimit-remaining-requests"] == "0"
    assert told.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert gate.enter(key("b", requests_per_minute=2), model(), 0, 0.0, 0.0), "another key has its own"
    assert gate.enter(who, model(), 0, 30.0, 0.0)
    assert gate.refusals == {("a", "requests"): 1}


def test_tokens_are_reserved_and_corrected() -> None:
    gate, who = Gate(), key(tokens_per_minute=100)
    first = gate.enter(who, model(), 90, 0.0, 0.0)
    assert refused(gate, who, model(), 20).headers["retry-after"] == "6"
    assert first is not None
    first.settle(10, 0.0)
    assert dict(fields_of(first.told(0.0)))[b"x-ratelimit-remaining-tokens"] == b"90"
    assert gate.enter(who, model(), 90, 0.0, 0.0)


def test_a_long_debt_is_told_within_what_clients_honour() -> None:
    gate, who = Gate(), key(tokens_per_minute=10)
    leave = gate.enter(who, model(), 1, 0.0, 0.0)
    assert leave is not None
    leave.settle(10_000, 0.0)
    assert refused(gate, who, model(), 1).headers["retry-after"] == str(RETRY_AFTER_MAX_S)


def test_what_is_taken_back_was_never_taken() -> None:
    gate, who, what = Gate(), key(requests_per_minute=1, tokens_per_minute=5, max_concurrent=1), model()
    for _ in range(5):
        leave = gate.enter(who, what, 5, 0.0, 0.0)
        assert leave is not None
        leave.take_back(0.0)


def test_a_refusal_at_one_limit_takes_nothing_of_another() -> None:
    gate, what = Gate(), model(tokens_per_minute=10)
    who = key(requests_per_minute=1)
    assert gate.enter(key("b"), what, 10, 0.0, 0.0)
    refused(gate, who, what, 10)
    assert gate.enter(who, model(), 0, 0.0, 0.0), "the request was not spent"


def test_concurrent_requests() -> None:
    gate, who = Gate(), key(max_concurrent=2)
    leaves = [gate.enter(who, model(), 0, 0.0, 0.0) for _ in range(2)]
    told = refused(gate, who, model())
    assert (told.code, told.headers["retry-after"]) == ("rate_limit_exceeded", "1")
    assert leaves[0] is not None
    leaves[0].settle(0, 0.0)
    assert gate.enter(who, model(), 0, 0.0, 0.0)


def test_a_models_limits_hold_for_all_keys_together_and_the_tighter_is_told() -> None:
    gate, what = Gate(), model(requests_per_minute=2)
    leave = gate.enter(key("a", requests_per_minute=60), what, 0, 0.0, 0.0)
    assert leave is not None
    assert dict(fields_of(leave.told(0.0)))[b"x-ratelimit-limit-requests"] == b"2"
    assert gate.enter(key("b"), what, 0, 0.0, 0.0)
    assert "rate limit of m " in refused(gate, key("c"), what).message


def test_changed_limits_keep_what_was_used() -> None:
    gate = Gate()
    for _ in range(2):
        gate.enter(key(requests_per_minute=2, max_concurrent=9), model(), 0, 0.0, 0.0)
    assert gate.enter(key(requests_per_minute=4), model(), 0, 30.0, 0.0)
    told = refused(gate, key(requests_per_minute=4, max_concurrent=1), model(), now=30.0)
    assert "3 requests in hand" in told.message


def test_a_months_budget() -> None:
    december = datetime(2026, 12, 31, 23, 0, tzinfo=UTC).timestamp()
    gate, who = Gate(), key(tokens_per_month=100)
    gate.begin_month({"a": 60}, december)
    leave = gate.enter(who, model(), 10**6, 0.0, december)
    assert leave is not None, "what it has not spent it may spend"
    leave.settle(40, 0.0)
    gate.spend("a", 40, december)
    told = refused(gate, who, model(), unix=december)
    assert (told.code, told.kind) == ("insufficient_quota", "insufficient_quota")
    assert told.headers == {"retry-after": "3600", "x-should-retry": "false"}
    assert gate.enter(who, model(), 0, 0.0, december + 3600)


def test_what_is_in_hand_counts_for_a_months_budget() -> None:
    """Or a burst would spend it many times."""
    gate, who = Gate(), key(tokens_per_month=100)
    gate.begin_month({}, 0.0)
    leaves = [gate.enter(who, model(), 50, 0.0, 0.0) for _ in range(2)]
    told = refused(gate, who, model(), 1)
    assert (told.code, told.headers["retry-after"]) == ("rate_limit_exceeded", "1")
    assert leaves[0] is not None
    leaves[0].settle(5, 0.0)
    gate.spend("a", 5, 0.0)
    assert gate.enter(who, model(), 1, 0.0, 0.0), "it took less than it reserved"


@pytest.mark.parametrize(
    ("said", "tokens"), [("64", 64), ('"64"', 64), ("64.0", 64), ("1e30", 10**9), ("-5", 0), ("null", 0), ('"x"', 0)]
)
def test_a_length_is_reserved_however_it_is_written(said: str, tokens: int) -> None:
    assert reserve(peek(f'{{"model": "m", "max_tokens": {said}}}'.encode()), 0) == tokens


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)))
def test_months_follow_each_other(when: datetime) -> None:
    unix = when.replace(tzinfo=UTC).timestamp()
    assert month_start_unix(unix) <= unix < month_end_unix(unix)
    assert month_start_unix(month_end_unix(unix)) == month_end_unix(unix)
    assert math.isclose(month_start_unix(month_end_unix(unix) - 1), month_start_unix(unix))
