"""Who of many goes next, fairly. Pure.

Start-time fair queuing (P. Goyal, H. Vin, H. Cheng, SIGCOMM 1996): each who waits has a start tag, at least the tag of
whoever went last, and behind its own last by 1 / weight; the least tag goes first. With equal weights that is a round
in turn, whatever the length of anybody's own line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _Flow(Generic[T]):
    __slots__ = ("items", "step", "tag")

    def __init__(self, tag: float) -> None:
        self.items: deque[T] = deque()
        self.step = 1.0
        self.tag = tag
        """The start tag of its first item; of an empty one, that of the next to come, unless others are beyond it."""


class FairQueue(Generic[T]):
    """Items of several owners, each owner's own in the order of their coming."""

    def __init__(self) -> None:
        self._flows: dict[str, _Flow[T]] = {}
        self._now = 0.0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        return (item for flow in self._flows.values() for item in flow.items)

    def count(self, owner: str) -> int:
        """How many of an owner's wait."""
        flow = self._flows.get(owner)
        return len(flow.items) if flow else 0

    def push(self, owner: str, item: T, weight: float = 1.0) -> None:
        """Wait behind the owner's others. From now on they go `weight` times as often as another's of weight 1."""
        flow = self._flows.get(owner)
        if flow is None:
            flow = self._flows[owner] = _Flow(self._now)
        elif not flow.items:
            flow.tag = max(flow.tag, self._now)
        flow.items.append(item)
        flow.step = 1 / weight
        self._size += 1

    def next(self, may: Callable[[str], bool]) -> str | None:
        """Whose turn it is among the owners that `may`; None: nobody's. Linear in the owners."""
        waiting = ((flow.tag, place, owner) for place, (owner, flow) in enumerate(self._flows.items()) if flow.items)
        return min((found for found in waiting if may(found[2])), default=(0.0, 0, None))[2]

    def take(self, owner: str) -> T:
        """Take the first of an owner's; there must be one."""
        flow = self._flows.pop(owner)
        item = flow.items.popleft()
        self._now = max(self._now, flow.tag)
        flow.tag += flow.step
        self._flows[owner] = flow  # behind the others of the same tag
        self._size -= 1
        if not self._size:
            self._flows.clear()
            self._now = 0.0
        return item

    def discard(self, owner: str, item: T) -> None:
        """Leave, if it still waits."""
        flow = self._flows.get(owner)
        if flow is not None and item in flow.items:
            flow.items.remove(item)
            self._size -= 1
