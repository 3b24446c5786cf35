"""Which lane a request takes."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.balance.affinity import FIRST_PART_BYTES, response_id, thread
from orchestrator.balance.capacity import suppose
from orchestrator.balance.lane import SLOW_START_MIN, SLOW_START_S, Lane, request_cost
from orchestrator.balance.names import Balance
from orchestrator.balance.policy import BOUND, POLICIES, Policy
from orchestrator.model import Load
from orchestrator.upstream import Pool, Timeouts

MINUTE = Timeouts(connect_timeout_s=1, first_byte_timeout_s=1, stream_idle_timeout_s=1, request_timeout_s=1)


def lanes(*capacities: int, loads: Sequence[Load | None] = (), grown: bool = True) -> list[Lane]:
    """One for each capacity, weighed at 100 s; `grown`: past their slow start."""
    found = [Lane(f"r{n}", Pool("h", 1, MINUTE), capacity=capacity) for n, capacity in enumerate(capacities)]
    for lane, load in zip(found, loads, strict=False):
        lane.heard(load)
    for lane in found:
        lane.ramp_at = 100.0 - SLOW_START_S if grown else None
        lane.weigh(100.0, 0.5)
    return found


def laid(balance: Balance, over: list[Lane], seed: int = 1) -> Policy:
    policy = POLICIES[balance](random.Random(seed).random)
    policy.lay(over)
    return policy


def told(running: int, waiting: int, at: float = 100.0) -> Load:
    return Load(running=running, waiting=waiting, kv_use=None, at=at)


def chat(*said: str, **more: Any) -> bytes:
    roles = ["system", *["user", "assistant"] * len(said)]
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


# --- least loaded ---


@pytest.mark.parametrize(
    "capacities, loads, in_flight, chosen",
    [
        ((1, 1), (), (1, 0), 1),
        ((1, 3), (), (1, 2), 1),
        ((4, 4), (told(2, 0), told(0, 5)), (0, 0), 1),
        ((4, 4), (told(2, 0), told(0, 7)), (0, 0), 0),
        ((8, 4), (told(6, 0), told(4, 0)), (0, 0), 0),
        ((1, 1), (told(5, 0), None), (0, 1), 1),
    ],
)
def test_the_least_loaded_is_chosen(
    capacities: tuple[int, ...], loads: tuple[Load | None, ...], in_flight: tuple[int, ...], chosen: int
) -> None:
    over = lanes(*capacities, loads=loads)
    for lane, count in zip(over, in_flight, strict=True):
        for _ in range(count):
            lane.enter(100.0)
    assert laid(Balance.LEAST_LOADED, over).choose(b"") is over[chosen]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 100), st.integers(1, 64))
def test_the_score_is_the_formula_when_the_engine_tells(running: int, waiting: int, ours: int, capacity: int) -> None:
    """`ours` of what it tells came by this lane."""
    ours = min(ours, running + waiting)
    (lane,) = lanes(capacity)
    for _ in range(ours):
        lane.enter(100.0)
    lane.heard(told(running, waiting))
    lane.weigh(100.0, 0.0)
    assert lane.score == pytest.approx((running * 3 + waiting) / capacity)
    assert lane.others == running + waiting - ours


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 8))
def test_the_score_follows_each_request_in_between(events: list[bool], capacity: int) -> None:
    (lane,) = lanes(capacity)
    for entering in events:
        if entering:
            lane.enter(100.0)
        elif lane.in_flight:
            lane.leave(100.0, 0.0)
    assert lane.score == pytest.approx(3 * lane.in_flight / capacity, abs=1e-3)
    assert lane.in_flight == 0 or lane.score > 0


def test_what_was_told_long_ago_is_unknown_not_nothing() -> None:
    (lane,) = lanes(1, loads=[told(9, 0, at=80.0)])
    assert (lane.load, lane.others) == (None, 0)


@pytest.mark.parametrize(
    ("tellings", "supposed"),
    [
        ([(told(4, 6), told(8, 0))], (0, 0)),
        ([(told(4, 6), told(8, 0)), (told(4, 9), told(8, 0))], (4, 8)),
        ([(told(4, 6), told(2, 0)), (told(4, 9), told(3, 0))], (4, 4)),
        ([(told(4, 6), None), (told(4, 9), None)], (4, 4)),
        ([(told(4, 6), told(8, 1)), (None, told(8, 1)), (told(4, 9), told(8, 0))], (8, 8)),
        ([(told(2, 1), told(2, 1)), (told(2, 1), told(2, 1)), (told(5, 0), told(1, 0))], (5, 2)),
        ([(told(5, 1), told(9, 0)), (told(5, 1), told(9, 0)), (told(3, 2), told(9, 0))], (3, 9)),
        ([(told(0, 1), told(9, 0)), (told(0, 1), told(9, 0))], (0, 0)),
    ],
)
def test_an_engine_that_lets_requests_wait_takes_as_many_as_it_runs(
    tellings: list[tuple[Load | None, ...]], supposed: tuple[int, ...]
) -> None:
    over = lanes(1, 1)
    for telling in tellings:
        for lane, load in zip(over, telling, strict=True):
            lane.heard(load)
    suppose(over)
    assert tuple(lane.supposed for lane in over) == supposed


def test_what_is_configured_is_not_supposed() -> None:
    over = lanes(4, 8)
    for lane in over:
        lane.heard(told(2, 5))
        lane.heard(told(2, 5))
    suppose(over)
    assert [lane.takes for lane in over] == [4, 8]


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_request_costs_from_one_to_three(running: int, waiting: int) -> None:
    assert 1 <= request_cost(told(running, waiting)) <= 3


@pytest.mark.parametrize("balance", [Balance.LEAST_LOADED, Balance.ROUND_ROBIN])
def test_idle_lanes_take_turns(balance: Balance) -> None:
    """One request after the other: none of them runs to the first."""
    over = lanes(1, 1, 1, 1)
    policy, seen = laid(balance, over), Counter[str]()
    for _ in range(400):
        lane = policy.choose(b"")
        lane.leave(100.0, lane.enter(100.0))
        seen[lane.replica] += 1
    assert set(seen.values()) == {100}


@pytest.mark.parametrize("balance", list(Balance))
def test_the_load_is_in_proportion_to_capacity(balance: Balance) -> None:
    over = lanes(2, 4, 8)
    policy = laid(balance, over)
    for number in range(140):
        policy.choose(chat("system", f"question {number}")).enter(100.0)
    shares = [lane.in_flight / lane.capacity for lane in over]
    slack = 1.6 if balance is Balance.RANDOM_TWO else BOUND + 0.05  # with two of three, the small one is drawn often
    assert max(shares) <= slack * 10


@pytest.mark.parametrize("balance", list(Balance))
def test_a_new_lane_begins_slowly(balance: Balance) -> None:
    """Of concurrent requests a tenth of its part, and all of it later."""
    over = lanes(1, 1)
    over[1].ramp_at = 100.0
    over[1].weigh(100.0, 0.5)
    policy = laid(balance, over)
    for number in range(220):
        policy.choose(chat("system", f"question {number}")).enter(100.0)
    assert over[1].in_flight <= 220 * SLOW_START_MIN * 1.5
    over[1].weigh(100.0 + SLOW_START_S, 0.5)
    assert over[1].share == 1.0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.sampled_from(list(Balance)), st.integers(0, 2**32))
def test_a_choice_is_always_one_of_the_lanes(capacities: list[int], balance: Balance, seed: int) -> None:
    over = lanes(*capacities)
    policy = laid(balance, over, seed)
    for body in (b"", b"not json", chat("s", "u"), chat(), b"[]", json.dumps({"prompt": [1, 2]}).encode()):
        assert policy.choose(body) in over
    policy.lay(over[:1])
    assert policy.choose(chat("s", "u")) is over[0]


def test_round_robin_goes_on_where_it_was_when_a_lane_comes() -> None:
    over = lanes(1, 1, 1)
    policy = laid(Balance.ROUND_ROBIN, over[:2])
    for _ in range(1000):
        policy.choose(b"")
    policy.lay(over)
    assert Counter(policy.choose(b"").replica for _ in range(30)) == {"r0": 10, "r1": 10, "r2": 10}


# --- prefix ---


def test_a_conversation_stays_where_it_is() -> None:
    over = lanes(*[4] * 8)
    policy, turns = laid(Balance.PREFIX, over), ["you are kind", "hello"]
    first = policy.choose(chat(*turns))
    for number in range(10):
        turns += [f"answer {number}", f"question {number}"]
        assert policy.choose(chat(*turns)) is first


@pytest.mark.parametrize(
    "fields", [{"user": "ada"}, {"prompt_cache_key": "k"}, {"prompt_cache_key": "k", "user": "somebody else"}]
)
def test_what_a_client_says_goes_before_what_it_asks(fields: dict[str, str]) -> None:
    assert len({thread(chat("s", f"question {number}", **fields)) for number in range(10)}) == 1


def test_one_system_prompt_does_not_bring_all_to_one_lane() -> None:
    over = lanes(*[4] * 8)
    policy = laid(Balance.PREFIX, over)
    chosen = {policy.choose(chat("x" * FIRST_PART_BYTES, f"question {number}")).replica for number in range(200)}
    assert len(chosen) == 8


def test_an_answer_is_gone_on_with_where_it_is_kept() -> None:
    over = lanes(*[4] * 8)
    policy = laid(Balance.PREFIX, over)
    for number, lane in enumerate(over):
        policy.answered(lane, b'{"id":"resp_%d","object":"response"' % number)
        body = json.dumps({"model": "m", "input": "more", "previous_response_id": f"resp_{number}"}).encode()
        assert policy.choose(body) is lane
    policy.lay(over[1:])
    assert policy.choose(json.dumps({"previous_response_id": "resp_0"}).encode()) in over[1:]


@given(st.integers(2, 16), st.integers(1, 300), st.integers(0, 5))
def test_no_lane_has_more_than_its_bound(count: int, requests: int, conversations: int) -> None:
    over = lanes(*[1] * count)
    policy = laid(Balance.PREFIX, over)
    for number in range(requests):
        policy.choose(chat("s", f"{number % (conversations + 1)}")).enter(100.0)
    assert max(lane.in_flight for lane in over) <= BOUND * requests / count + 1


@pytest.mark.parametrize(("capacity", "there"), [(1, 1), (4, 4), (8, 8), (64, 8)])
def test_few_requests_stay_together_where_there_is_room(capacity: int, there: int) -> None:
    over = lanes(*[capacity] * 8)
    policy, chosen = laid(Balance.PREFIX, over), list[str]()
    for _ in range(there + 1):
        lane = policy.choose(chat("s", "u"))
        lane.enter(100.0)
        chosen.append(lane.replica)
    assert len(set(chosen[:there])) == 1 and chosen[there] != chosen[0]


@given(st.integers(2, 24), st.integers(0, 23))
def test_a_lane_that_leaves_moves_few_conversations(count: int, gone: int) -> None:
    over = lanes(*[1] * count)
    policy, bodies = laid(Balance.PREFIX, over), [chat("s", f"{number}") for number in range(200)]
    before = [policy.choose(body) for body in bodies]
    left = [lane for lane in over if lane is not over[gone % count]]
    policy.lay(left)
    after = [policy.choose(body) for body in bodies]
    assert all(was is now for was, now in zip(before, after, strict=True) if was in left)


@given(
    st.binary(max_size=300)
    | st.text().map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["messages", "role", "content", "prompt", "input", "user", "system"]), inner
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_body_is_too_odd(body: bytes) -> None:
    assert isinstance(thread(body), bytes)
    assert isinstance(response_id(body), bytes)


def test_turns_are_told_apart_by_their_beginning_only() -> None:
    names = [thread(chat("s", "q", *["more"] * count)) for count in range(5)]
    assert all(one == other for one, other in pairwise(names))
    assert thread(chat("s", "q")) != thread(chat("s", "other"))
