"""Which lanes are in rotation, and what is tried again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.balance.balancer import Balancer
from orchestrator.balance.breaker import ERRORS_MAX, Breaker
from orchestrator.balance.lane import Lane
from orchestrator.balance.names import Balance
from orchestrator.balance.retry import (
    RETRIES_PER_S_MIN,
    RETRY_SHARE,
    TRIES_MAX,
    WINDOW_S,
    RetryBudget,
    may_repeat,
)
from orchestrator.balance.rotation import rotation
from orchestrator.errors import UpstreamBroken, UpstreamError, UpstreamLost, UpstreamTimeout, UpstreamUnreachable
from orchestrator.proxy import TARGETS
from tests.balance.test_policy import lanes


def refuse(breaker: Breaker) -> None:
    breaker.missed(0.0, 0.0, refused=True)


def fall_silent(breaker: Breaker) -> None:
    for _ in range(2):
        breaker.probed(False, 0.0, 0.0)


def fail(breaker: Breaker) -> None:
    for _ in range(ERRORS_MAX):
        breaker.answered(500, 0.1, 0.0, 0.0, streamed=False)


def slow_down(breaker: Breaker) -> None:
    breaker.slow(0.0, 0.0)


SPOIL: dict[str, Callable[[Breaker], None]] = {"r": refuse, "s": fall_silent, "e": fail, "l": slow_down}


def pool(faults: str) -> list[Lane]:
    """A lane for each letter: ``.`` is well."""
    found = lanes(*[1] * len(faults))
    for lane, fault in zip(found, faults, strict=True):
        lane.breaker = Breaker()
        if fault != ".":
            SPOIL[fault](lane.breaker)
    return found


@pytest.mark.parametrize(
    "faults, out",
    [
        ("...", ""),
        ("r..", "0"),
        ("rrr", "012"),
        ("s..", "0"),
        ("ss.", "01"),
        ("sss", "01"),
        ("srr", "12"),
        ("e.", "0"),
        ("ee", "0"),
        ("ee.", "0"),
        ("eeee", "01"),
        ("lle.", "01"),
        ("er.", "1"),
        ("e", ""),
        ("r", "0"),
    ],
)
def test_who_is_out(faults: str, out: str) -> None:
    """Of as many as may be, those that are worst; of the slow and failing ones never more than half."""
    over = pool(faults)
    gone = rotation(over, 0.5)[1]
    if faults == "lle.":  # failing is worse than slow
        assert {over.index(lane) for lane in gone} == {2, 0}
    else:
        assert "".join(str(over.index(lane)) for lane in gone) == out


@given(st.text("..rsel", min_size=1, max_size=12))
def test_one_that_takes_connections_is_always_left(faults: str) -> None:
    over = pool(faults)
    rotating, out = rotation(over, 0.5)
    assert sorted([*rotating, *out], key=over.index) == over
    assert rotating or set(faults) == {"r"}
    worse = sum(faults[over.index(lane)] in "el" for lane in out)
    assert worse == 0 or len(out) <= len(over) // 2
    assert all(faults[over.index(lane)] != "r" for lane in rotating)


def balancer(over: list[Lane]) -> Balancer:
    found = Balancer(Balance.LEAST_LOADED, lambda: 0.5)
    found.lay(tuple(over), 100.0)
    return found


def test_another_lane_is_one_that_was_not_tried() -> None:
    over = lanes(1, 1, 1, 1)
    chosen, tried = balancer(over), list[Lane]()
    while (lane := chosen.another(tried, 100.0)) is not None:
        assert lane not in tried
        tried.append(lane)
    assert len(tried) == TRIES_MAX
    assert balancer(over[:1]).another(over[:1], 100.0) is None


def test_a_lane_that_leaves_is_looked_after_until_it_is_done() -> None:
    over = lanes(1, 1, 1)
    found = balancer(over)
    since = over[0].enter(100.0)
    rotating, out = found.lay(tuple(over[1:]), 101.0)
    assert (rotating, out) == (tuple(over[1:]), (over[0],))
    assert over[0].breaker is not None
    over[0].leave(102.0, since)
    assert found.lay(tuple(over[1:]), 102.0)[1] == ()
    assert over[0].breaker is None


def test_the_only_lane_so_far_is_warm_and_those_that_come_are_not() -> None:
    old, new, newer = lanes(1, 1, 1, grown=False)
    old.last_byte_at = 1.0
    found = balancer([old, new])
    assert (old.share, new.share) == (1.0, 0.1)
    found.lay((old, new, newer), 105.0)
    assert (new.share, newer.share) == (0.5, 0.1)


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=300))
def test_retries_are_a_share_of_the_requests(events: list[tuple[float, bool]]) -> None:
    budget, now, requests, taken = RetryBudget(), 0.0, 0, 0
    for elapsed_s, retried in events:
        now += elapsed_s
        if retried:
            taken += budget.take(now)
        else:
            budget.earn()
            requests += 1
    assert taken <= RETRY_SHARE * requests + RETRIES_PER_S_MIN * (now + WINDOW_S) + 1
    assert budget.taken == taken


def test_there_are_always_some_retries_again() -> None:
    budget = RetryBudget()
    while budget.take(0.0):
        pass
    assert budget.taken == RETRIES_PER_S_MIN * WINDOW_S
    assert budget.left(2.0) == 2 * RETRIES_PER_S_MIN


@pytest.mark.parametrize(
    "error, chats, responses",
    [
        (UpstreamUnreachable("no port"), True, True),
        (UpstreamLost("closed"), True, False),
        (UpstreamTimeout("silent"), True, False),
        (UpstreamBroken("garbage"), True, False),
        (None, True, False),
    ],
)
def test_what_may_be_sent_twice(error: UpstreamError | None, chats: bool, responses: bool) -> None:
    for target in set(TARGETS.values()) - {b"/v1/responses"}:
        assert may_repeat(target, error) is chats
    assert may_repeat(b"/v1/responses", error) is responses
