"""Which lanes of a model are in rotation. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.balance.breaker import Fault, State
from orchestrator.balance.lane import Lane

_ORDER = (Fault.REFUSED, Fault.SILENT, Fault.BROKEN, Fault.ERRORS, Fault.SLOW)


def rotation(lanes: Sequence[Lane], now: float) -> tuple[tuple[Lane, ...], tuple[Lane, ...]]:
    """The lanes that get new requests, and those that get none, for a while.

    1. Where a breaker is open because nothing takes connections, its lane is out, and be it the last.
    2. Where one does not answer, it is out as long as another is left: all of them together are more likely to be
       overloaded than gone, or it is the way to them.
    3. Where one only does worse than others, it is out as long as no more than half of them are out: what is left
       has to bear the load. Envoy's `max_ejection_percent` and panic threshold.
    """
    opened = [lane for lane in lanes if lane.breaker is not None and lane.breaker.settle(now) is State.OPEN]
    if not opened:
        return tuple(lanes), ()
    out: set[Lane] = set()
    for lane in sorted(opened, key=_severity):
        if len(out) < _out_max(lane, len(lanes)):
            out.add(lane)
    return tuple(lane for lane in lanes if lane not in out), tuple(lane for lane in lanes if lane in out)


def _severity(lane: Lane) -> tuple[int, float]:
    """The worst first, of these the first to open."""
    breaker = lane.breaker
    assert breaker is not None and breaker.fault is not None
    return _ORDER.index(breaker.fault), breaker.opened_at


def _out_max(lane: Lane, count: int) -> int:
    """How many lanes may be out, this one included."""
    fault = lane.breaker.fault if lane.breaker is not None else None
    if fault is Fault.REFUSED:
        return count
    return count - 1 if fault in (Fault.SILENT, Fault.BROKEN) else count // 2
