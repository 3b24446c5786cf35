"""Figures as a table, as markdown, as JSON lines; and the goals that they meet or miss. Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.table import Table

from bench.measure import Figures

RUST = ("sglang-router", "vllm-router")
OURS = "orchestrator"
COLUMNS = (
    ("CPU ms / 1,000 requests", "cpu_ms_per_1000_requests", ".1f"),
    ("CPU ms / 1,000 chunks", "cpu_ms_per_1000_chunks", ".2f"),
    ("one by one", "cpu_ms_per_1000_single_chunks", ".2f"),
    ("added median ms", "added_median_ms", ".3f"),
    ("MB at 1,000 streams", "rss_mb_at_1000_streams", ".0f"),
)
"""Title, field of `Figures`, form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One goal and what this run says of it."""

    what: str
    limit: float
    unit: str
    value: float | None
    """None: not measured, which is neither met nor missed."""

    @property
    def verdict(self) -> str:
        """PASS, MISS, or SKIP if it was not measured."""
        if self.value is None:
            return "SKIP"
        return "PASS" if self.value <= self.limit else "MISS"

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.2f} {self.unit}"
        return f"{self.verdict}  {self.what}: {value} (goal: at most {self.limit:g} {self.unit})"


def goals(all_figures: list[Figures], starts_s: list[float]) -> list[Goal]:
    """Every goal, met, missed or not measured. Ratios are taken round by round, then their median."""
    by_name = {each.name: each for each in all_figures if not each.wrong}
    ours = by_name.get(OURS, Figures(name=OURS))
    rust = [by_name[name] for name in RUST if name in by_name and by_name[name].cpu_ms_per_1000_requests]

    def ratio(name: str) -> float | None:
        values = [getattr(each, name) for each in rust]
        return _median(
            [mine / min(theirs) for mine, *theirs in zip(getattr(ours, name), *values, strict=False)] if values else []
        )

    peers = f"of the better of {len(rust)} Rust routers"
    return [
        Goal(what=f"CPU per request, {peers}", limit=1, unit="×", value=ratio("cpu_ms_per_1000_requests")),
        Goal(what=f"CPU per chunk, {peers}", limit=0.6, unit="×", value=ratio("cpu_ms_per_1000_chunks")),
        Goal(what="the same, one by one", limit=0.6, unit="×", value=ratio("cpu_ms_per_1000_single_chunks")),
        Goal(what="added median latency", limit=0.3, unit="ms", value=_median(ours.added_median_ms)),
        Goal(what="memory at 1,000 streams", limit=100, unit="MB", value=_median(ours.rss_mb_at_1000_streams)),
        Goal(what="import to listening", limit=1, unit="s", value=_median(starts_s)),
    ]


def json_lines(all_figures: list[Figures], starts_s: list[float]) -> Iterator[str]:
    """A line for each subject, one for the starts, one for each goal."""
    for each in all_figures:
        yield json.dumps(asdict(each))
    yield json.dumps({"name": "import to listening", "seconds": starts_s})
    for goal in goals(all_figures, starts_s):
        yield json.dumps({**asdict(goal), "verdict": goal.verdict})


def markdown(all_figures: list[Figures]) -> str:
    """The README's table."""
    head = ["", *(title for title, _, _ in COLUMNS)]
    rows = [head, ["---", *["--:"] * len(COLUMNS)], *(_row(each) for each in all_figures)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def table(all_figures: list[Figures]) -> Table:
    """The table for a terminal."""
    drawn = Table(caption="medians over the rounds (smallest to largest)")
    drawn.add_column("")
    for title, _, _ in COLUMNS:
        drawn.add_column(title, justify="right")
    for each in all_figures:
        drawn.add_row(*_row(each))
    return drawn


def _row(each: Figures) -> list[str]:
    name = each.name + (f" ({each.note})" if each.note else "")
    return [name, *(_cell(getattr(each, attribute), form) for _, attribute, form in COLUMNS)]


def _cell(values: list[float], form: str) -> str:
    if not values:
        return ""
    middle = f"{statistics.median(values):,{form}}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,{form}}–{max(values):,{form}})"


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
