"""When an engine is left alone, and when it is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.balance.breaker import (
    BACKOFF_MAX_S,
    BACKOFF_S,
    ERRORS_MAX,
    FAILURES_MAX,
    FORGIVEN_S,
    JITTER,
    SAMPLES_MIN,
    Breaker,
    Fault,
    State,
    outliers,
)


def told(breaker: Breaker, what: str, now: float = 0.0) -> bool:
    match what:
        case "ok" | "400" | "429" | "500" | "503":
            status = 200 if what == "ok" else int(what)
            return breaker.answered(status, 0.1, now, 0.0, streamed=False)
        case "refused" | "lost":
            return breaker.missed(now, 0.0, refused=what == "refused")
        case "probe":
            return breaker.probed(True, now, 0.0)
        case "silence" | "no port":
            return breaker.probed(False, now, 0.0, refused=what == "no port")
    raise AssertionError(what)


OPENS = {
    "one that is refused": (["refused"], Fault.REFUSED),
    "one failure": (["lost"], None),
    "failures in a row": (["lost"] * FAILURES_MAX, Fault.BROKEN),
    "an answer between": (["lost", "ok", "lost"], None),
    "a refusal of the request between": (["lost", "400", "lost"], None),
    "a run of errors": (["500"] * ERRORS_MAX, Fault.ERRORS),
    "a run with an answer in it": (["500"] * (ERRORS_MAX - 1) + ["ok", "500"], None),
    "a full engine": (["429"] * 20, None),
    "a missed probe": (["silence"], None),
    "two in a row": (["silence", "silence"], Fault.SILENT),
    "two, not in a row": (["silence", "probe", "silence"], None),
    "a probe that is refused": (["no port"], Fault.REFUSED),
    "requests go on while probes are missed": (["silence", "ok", "silence"], Fault.SILENT),
}


@pytest.mark.parametrize("case", OPENS)
def test_what_opens_it(case: str) -> None:
    events, fault = OPENS[case]
    breaker = Breaker()
    turned = [told(breaker, event) for event in events]
    assert (breaker.state is State.OPEN, breaker.fault) == (fault is not None, fault)
    assert sum(turned) == (fault is not None)


def opened(fault: str = "lost") -> Breaker:
    breaker = Breaker()
    for _ in range(ERRORS_MAX):
        told(breaker, fault)
    assert breaker.state is State.OPEN
    return breaker


def test_it_is_tried_again_after_its_time() -> None:
    breaker = opened()
    assert breaker.settle(BACKOFF_S * 0.99) is State.OPEN
    assert breaker.settle(BACKOFF_S) is State.HALF_OPEN
    assert told(breaker, "ok", BACKOFF_S)
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize("event", ["lost", "refused", "500"])
def test_one_failure_opens_a_half_open_one_for_longer(event: str) -> None:
    breaker = opened()
    breaker.settle(1.0)
    assert told(breaker, event, 1.0)
    assert (breaker.state, breaker.retry_s(1.0)) == (State.OPEN, 2 * BACKOFF_S)


def test_late_answers_do_not_close_an_open_one() -> None:
    breaker = opened("refused")
    assert not told(breaker, "ok", 0.5)
    assert breaker.state is State.OPEN


@pytest.mark.parametrize("fault, comes_back", [("refused", True), ("silence", True), ("lost", False), ("500", False)])
def test_an_answered_probe_disproves_what_probes_can_see(fault: str, comes_back: bool) -> None:
    breaker = opened(fault)
    assert told(breaker, "probe", 0.1) is comes_back
    assert (breaker.state is State.HALF_OPEN) is comes_back


def test_it_stays_open_while_probes_are_missed() -> None:
    breaker = opened()
    told(breaker, "silence", 0.5)
    assert breaker.settle(100.0) is State.OPEN
    told(breaker, "probe", 101.0)
    assert breaker.settle(101.0) is State.HALF_OPEN


def test_what_was_long_ago_is_forgiven() -> None:
    breaker = opened()
    for _ in range(3):
        now = breaker.opened_at + BACKOFF_MAX_S
        breaker.settle(now)
        told(breaker, "lost", now)
    breaker.settle(now + BACKOFF_MAX_S)
    told(breaker, "ok", now + BACKOFF_MAX_S)
    later = now + BACKOFF_MAX_S + FORGIVEN_S + 1
    told(breaker, "refused", later)
    assert breaker.retry_s(later) == BACKOFF_S


EVENTS = st.sampled_from(["ok", "400", "500", "refused", "lost", "probe", "silence", "no port"])


@given(st.lists(st.tuples(EVENTS, st.floats(0, 100), st.booleans())))
def test_whatever_comes_it_is_tried_again_within_the_bound(events: list[tuple[str, float, bool]]) -> None:
    """And it says so each time that its state turns, never otherwise."""
    breaker, now = Breaker(), 0.0
    for event, elapsed_s, looked in events:
        now += elapsed_s
        before = breaker.settle(now) if looked else breaker.state
        assert told(breaker, event, now) is (breaker.state is not before)
        assert (breaker.retry_s(now) or 0.0) <= BACKOFF_MAX_S * (1 + JITTER)
        assert (breaker.state is State.CLOSED) or breaker.fault is not None
    told(breaker, "probe", now)
    assert breaker.settle(now + BACKOFF_MAX_S * (1 + JITTER)) is not State.OPEN


@given(st.floats(0, 1))
def test_the_chance_makes_it_longer_never_shorter(chance: float) -> None:
    breaker = Breaker()
    breaker.missed(0.0, chance, refused=True)
    assert BACKOFF_S <= (breaker.retry_s(0.0) or 0.0) <= BACKOFF_S * (1 + JITTER)


def paces(*whole_s: float, streams_s: float | None = None) -> list[Breaker]:
    """One breaker for each time that its answers take."""
    found = []
    for seconds in whole_s:
        breaker = Breaker()
        for _ in range(SAMPLES_MIN):
            breaker.answered(200, seconds, 0.0, 0.0, streamed=False)
            if streams_s is not None:
                breaker.paced(streams_s * 10, 10)
        found.append(breaker)
    return found


@pytest.mark.parametrize(
    "seconds, slow",
    [
        ((0.1, 0.1, 1.0), [2]),
        ((0.1, 1.0), [1]),
        ((0.1, 0.1, 0.4), []),
        ((0.001, 0.001, 0.05), []),
        ((30.0, 31.0, 160.0), [2]),
        ((1.0,), []),
        ((0.1, 1.0, 1.0), []),
        ((), []),
    ],
)
def test_who_is_much_slower_than_the_others_stands_out(seconds: tuple[float, ...], slow: list[int]) -> None:
    breakers = paces(*seconds, streams_s=0.02)
    assert outliers(breakers) == [breakers[index] for index in slow]


def test_one_long_answer_is_no_outlier() -> None:
    breakers = paces(0.1, 0.1, 0.1)
    breakers[0].answered(200, 60.0, 0.0, 0.0, streamed=False)
    assert outliers(breakers) == []
