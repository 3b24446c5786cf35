"""Whose turn it is: a long line of one owner's delays nobody else's."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.fair import FairQueue

OWNERS = st.sampled_from("abcd")


def drained(queue: FairQueue[tuple[str, int]]) -> list[tuple[str, int]]:
    found = []
    while (owner := queue.next(lambda _: True)) is not None:
        found.append(queue.take(owner))
    return found


def test_who_comes_late_goes_next() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for number in range(100):
        queue.push("noisy", ("noisy", number))
    for _ in range(10):
        queue.take("noisy")
    queue.push("quiet", ("quiet", 0))
    assert [name for name, _ in drained(queue)][:3].count("quiet") == 1


@given(st.lists(OWNERS, max_size=60))
def test_each_owners_own_go_in_order_and_all_go(pushes: list[str]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for number, owner in enumerate(pushes):
        queue.push(owner, (owner, number))
    assert len(queue) == len(pushes)
    order = drained(queue)
    for owner in "abcd":
        assert [item for item in order if item[0] == owner] == [(o, n) for n, o in enumerate(pushes) if o == owner]
    assert not queue


@given(st.dictionaries(OWNERS, st.integers(-3, 3), min_size=2), st.integers(1, 60))
def test_turns_follow_the_weights(priorities: dict[str, int], turns: int) -> None:
    """Of those who all wait, none is ahead of its share by more than a turn, or behind by more than one."""
    queue: FairQueue[int] = FairQueue()
    for owner, priority in priorities.items():
        for number in range(turns * 64):
            queue.push(owner, number, 2.0**priority)
    went: Counter[str] = Counter()
    for _ in range(turns):
        chosen = queue.next(lambda _: True)
        assert chosen is not None
        queue.take(chosen)
        went[chosen] += 1
    rounds = [went[owner] / 2.0**priority for owner, priority in priorities.items()]
    longest = 2.0 ** -min(priorities.values())
    assert max(rounds) - min(rounds) <= 2 * longest


@given(st.lists(st.tuples(OWNERS, st.booleans()), max_size=60))
def test_who_leaves_is_not_waited_for(steps: list[tuple[str, bool]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    left: set[tuple[str, int]] = set()
    for number, (owner, leaves) in enumerate(steps):
        queue.push(owner, (owner, number))
        if leaves:
            queue.discard(owner, (owner, number))
            left.add((owner, number))
    assert len(queue) == len(steps) - len(left)
    assert not left & set(drained(queue))


def test_who_may_not_is_passed_over() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    queue.push("a", ("a", 0))
    queue.push("b", ("b", 0))
    assert queue.next(lambda owner: owner == "b") == "b"
    assert queue.next(lambda owner: False) is None
