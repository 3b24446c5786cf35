"""Starts as bars over time. Pure: all places and widths are parts of a drawing that is `WIDTH` wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from ui.ports import Json
from ui.values import START_PHASES, dom_id

WIDTH = 1000.0
MEDIAN_OF = 20
"""How many of the newest starts tell what is usual."""
SHOWN_MIN = 2.0
"""The width of what took no time: it is there."""


def waterfall(taken: Mapping[str, float], usual: Mapping[str, float], *, now_in: str = "") -> Json:
    """One start, a row for each phase, each beginning where the last ended; beside what is usual.

    `now_in`: the phase that is going on.
    """
    phases = [phase for phase in START_PHASES if phase in taken or usual.get(phase)]
    scale = max(sum(taken.values()), sum(usual.get(phase, 0.0) for phase in phases), 0.1)
    rows, at, usual_at = [], 0.0, 0.0
    for phase in phases:
        spent, expected = taken.get(phase), usual.get(phase, 0.0)
        rows.append(
            {
                "phase": phase,
                "seconds": spent,
                "usual": expected,
                "x": _place(at, scale),
                "width": _width(spent or 0.0, scale) if spent is not None else 0.0,
                "usual_x": _place(usual_at, scale),
                "usual_width": _width(expected, scale) if expected else 0.0,
                "now": phase == now_in,
            }
        )
        at, usual_at = at + (spent or 0.0), usual_at + expected
    return {"rows": rows, "total_s": at, "usual_s": usual_at, "scale_s": scale}


def running(start: Json, phase: str) -> Json:
    """The waterfall of a start under way."""
    taken = {**start["seconds"]}
    taken[phase] = taken.get(phase, 0.0) + start["phase_s"]
    usual = {name: seconds for name, seconds in start["expected"].items() if name != "pulling" or name in taken}
    return waterfall(taken, usual, now_in=phase)


def usual(starts: Sequence[Json]) -> dict[str, float]:
    """The median of each phase over the newest cold starts that came to be ready; of waits for a GPU, none."""
    good = [start for start in starts if start["outcome"] == "ready" and not start["wake"]][:MEDIAN_OF]
    seen: dict[str, list[float]] = {}
    for start in good:
        for phase, seconds in start["seconds"].items():
            if phase != "queued":
                seen.setdefault(phase, []).append(seconds)
    return {phase: median(values) for phase, values in seen.items()}


def history(starts: Sequence[Json]) -> list[Json]:
    """Each start one bar of its phases, all on one scale, so that they can be compared."""
    scale = max((start["total_s"] for start in starts), default=0.0) or 0.1
    return [_bar(start, scale) for start in starts]


def _bar(start: Json, scale: float) -> Json:
    pieces, at = [], 0.0
    for phase in START_PHASES:
        if (spent := start["seconds"].get(phase)) is not None:
            pieces.append({"phase": phase, "seconds": spent, "x": _place(at, scale), "width": _width(spent, scale)})
            at += spent
    return {
        "dom": dom_id("s", f"{start['replica']} {start['started_at']}"),
        "model": start["model"],
        "replica": start["replica"],
        "started_at": start["started_at"],
        "outcome": start["outcome"],
        "wake": start["wake"],
        "error": start["error"],
        "total_s": start["total_s"],
        "pieces": pieces,
    }


def _place(at: float, scale: float) -> float:
    return round(WIDTH * at / scale, 1)


def _width(spent: float, scale: float) -> float:
    return max(round(WIDTH * spent / scale, 1), SHOWN_MIN)
