"""How many requests engines take at once, where nobody said so. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.balance.lane import CAPACITY_DEFAULT, Lane


def suppose(lanes: Sequence[Lane]) -> None:
    """Of one model's lanes: set `Lane.supposed`.

    An engine that lets requests wait takes as many as it runs. One that was never seen to let any wait takes no fewer
    than the greatest that was: it gets more, until it runs them or lets them wait as well. Engines that are alike stay
    alike, and where none lets any wait all weigh the same.
    """
    seen = max((lane.ran for lane in lanes), default=0)
    told = any(lane.capacity != CAPACITY_DEFAULT for lane in lanes)
    for lane in lanes:
        running = lane.load.running if lane.load is not None else 0
        lane.supposed = 0 if told or not seen else lane.ran or max(seen, running)
