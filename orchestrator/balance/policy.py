"""Which of several lanes a request takes. Pure: chances are handed in.

A policy is laid over the lanes whenever these change, and at least once a second; in between it chooses, at each
request, by what `Lane` counts. Choosing among 64 lanes takes a few microseconds.
"""

from __future__ import annotations

from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from operator import attrgetter
from typing import Protocol

from orchestrator.balance.affinity import point, response_id, thread
from orchestrator.balance.lane import Lane
from orchestrator.balance.names import Balance

BOUND = 1.25
"""No lane gets more than this many times its part; see `Prefix`."""
EASY = 8
"""So many requests are never too many for an engine that takes them: of few requests, one more or less would otherwise
move conversations about."""
POINTS = 40
"""Places of one lane on the ring."""
RESPONSES_MAX = 10_000
"""Answers whose lanes are remembered."""

_SCORE = attrgetter("score")
_TURN = attrgetter("turn")
_IN_FLIGHT = attrgetter("in_flight")


class Policy(Protocol):
    """Chooses among the lanes that were laid last; there is at least one."""

    def lay(self, lanes: Sequence[Lane]) -> None:
        """From now on choose among these, just weighed."""

    def choose(self, body: bytes) -> Lane:
        """The lane for a request with this body."""

    def answered(self, lane: Lane, answer: bytes) -> None:
        """The first bytes of an answer that came by a lane."""


class LeastLoaded:
    """The lane with the lowest score; see `Lane.score`. Ties go by `lane.TIE`."""

    def __init__(self) -> None:
        self._lanes: Sequence[Lane] = ()

    def lay(self, lanes: Sequence[Lane]) -> None:
        """See `Policy`."""
        self._lanes = lanes

    def choose(self, body: bytes) -> Lane:
        """See `Policy`."""
        return min(self._lanes, key=_SCORE)

    def answered(self, lane: Lane, answer: bytes) -> None:
        """See `Policy`."""


class RandomTwo(LeastLoaded):
    """The less loaded of two at random (M. Mitzenmacher, The power of two choices, 2001)."""

    def __init__(self, chance: Callable[[], float]) -> None:
        super().__init__()
        self._chance = chance

    def choose(self, body: bytes) -> Lane:
        """See `Policy`."""
        lanes, count = self._lanes, len(self._lanes)
        if count < 2:
            return lanes[0]
        first = int(self._chance() * count)
        other = (first + 1 + int(self._chance() * (count - 1))) % count
        return min(lanes[first], lanes[other], key=_SCORE)


class RoundRobin(LeastLoaded):
    """Each in turn, as often as its share says: stride scheduling (C. Waldspurger, W. Weihl, 1995)."""

    def lay(self, lanes: Sequence[Lane]) -> None:
        """One that is new takes its place where the round stands."""
        known = set(self._lanes)
        at = min((lane.turn for lane in lanes if lane in known), default=0.0)
        for lane in lanes:
            if lane not in known:
                lane.turn = at
        super().lay(lanes)

    def choose(self, body: bytes) -> Lane:
        """See `Policy`."""
        lane = min(self._lanes, key=_TURN)
        lane.turn += 1 / lane.share
        return lane


class Prefix(LeastLoaded):
    """One conversation, one lane: that which comes next on a ring of hashes, unless it has more than `BOUND` times
    its part of all requests, and more than `EASY`; then the one after it. A lane that comes or goes moves few of the
    others' conversations.

    Consistent hashing with bounded loads (V. Mirrokni, M. Thorup, M. Zadimoghaddam, 2016), the bounds by `Lane.share`.
    An answer that can be gone on with by its id is held by the engine that gave it, so its lane is remembered.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: list[int] = []
        self._owners: list[Lane] = []
        self._others = 0
        self._shares = 1.0
        self._responses: OrderedDict[bytes, Lane] = OrderedDict()

    def lay(self, lanes: Sequence[Lane]) -> None:
        """See `Policy`."""
        if set(lanes) != set(self._lanes):
            ring = sorted(
                (point(f"{lane.replica} {n}".encode()), lane.replica, n) for lane in lanes for n in range(POINTS)
            )
            by_name = {lane.replica: lane for lane in lanes}
            self._places = [place for place, _, _ in ring]
            self._owners = [by_name[replica] for _, replica, _ in ring]
        self._others = sum(lane.others for lane in lanes)
        self._shares = sum(lane.share for lane in lanes)
        super().lay(lanes)

    def choose(self, body: bytes) -> Lane:
        """See `Policy`."""
        name = thread(body)
        if not name:
            return super().choose(body)
        held = self._responses.get(name)
        if held is not None and held in self._lanes:
            return held
        total = sum(map(_IN_FLIGHT, self._lanes)) + self._others + 1
        start, full = bisect(self._places, point(name)), set[Lane]()
        for step in range(len(self._owners)):
            lane = self._owners[(start + step) % len(self._owners)]
            if lane in full:
                continue
            part = ceil(BOUND * total * lane.share / self._shares)
            if lane.in_flight + lane.others < max(part, min(lane.takes, lane.share, EASY)):
                return lane
            full.add(lane)
        return super().choose(body)

    def answered(self, lane: Lane, answer: bytes) -> None:
        """See `Policy`."""
        if name := response_id(answer):
            self._responses[name] = lane
            if len(self._responses) > RESPONSES_MAX:
                self._responses.popitem(last=False)


POLICIES: Mapping[Balance, Callable[[Callable[[], float]], Policy]] = {
    Balance.LEAST_LOADED: lambda chance: LeastLoaded(),
    Balance.PREFIX: lambda chance: Prefix(),
    Balance.ROUND_ROBIN: lambda chance: RoundRobin(),
    Balance.RANDOM_TWO: RandomTwo,
}
"""What makes each, given a source of chances (0 … 1)."""
