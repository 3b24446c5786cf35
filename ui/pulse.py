"""The last minutes of requests: what the counters said every few seconds, and what follows from that. Pure but for
being kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ui.ports import Counts, Json

SAMPLE_S = 5.0
SAMPLES_MAX = 121
"""Ten minutes."""
MINUTE = 12
"""Samples of a minute."""
MODELS_MAX = 1000
"""More are not followed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One model's counters at one moment."""

    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first: tuple[tuple[float, float], ...] = ()
    """Cumulative counts of the seconds to the first byte, by upper bound."""

    @property
    def requests(self) -> int:
        """All that ended, but for the refused."""
        return self.ok + self.failed + self.cancelled


class Pulse:
    """The samples of all models, newest last."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[Sample]] = {}

    def take(self, counters: Mapping[str, Counts]) -> None:
        """Remember what the counters say now. Called every `SAMPLE_S`."""
        for model, counts in list(counters.items())[:MODELS_MAX]:
            kept = self._samples.setdefault(model, deque([Sample()], SAMPLES_MAX))
            kept.append(_sample(counts))

    def of(self, model: str) -> Sequence[Sample]:
        """One model's samples; two at least."""
        return self._samples.get(model) or (Sample(), Sample())


def row(samples: Sequence[Sample], model: Json) -> Json:
    """One model's requests. `model`: as the API shows it."""
    last, first, minute = samples[-1], samples[0], samples[-min(len(samples), MINUTE + 1)]
    return {
        "model": model["id"],
        "phase": str(model["phase"]),
        "in_flight": model["in_flight"],
        "held": model["held"],
        "per_minute": last.requests - minute.requests,
        "requests": last.requests,
        "errors": last.failed,
        "refused": last.refused,
        "cancelled": last.cancelled,
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "first_p50_s": quantile(first.first, last.first, 0.5),
        "first_p95_s": quantile(first.first, last.first, 0.95),
        "spark": spark([b.requests - a.requests for a, b in zip(samples, list(samples)[1:], strict=False)]),
    }


def totals(rows: Sequence[Json]) -> Json:
    """All models together."""
    names = ("per_minute", "in_flight", "held", "errors", "refused", "completion_tokens")
    return {name: sum(row[name] for row in rows) for name in names}


def quantile(before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]], part: float) -> float | None:
    """The value below which that part of what was observed between lies, by the bounds of its bucket; None: nothing
    was. What lies above the last bound counts as that bound."""
    past = dict(before)
    counts = [(bound, count - past.get(bound, 0.0)) for bound, count in after]
    if not counts or counts[-1][1] <= 0:
        return None
    wanted, below, below_bound = part * counts[-1][1], 0.0, 0.0
    for bound, count in counts:
        if count >= wanted:
            if bound == float("inf"):
                return below_bound
            inside = (wanted - below) / (count - below) if count > below else 1.0
            return below_bound + inside * (bound - below_bound)
        below, below_bound = count, bound
    return below_bound


def spark(values: Sequence[int], *, width: float = 120.0, height: float = 24.0) -> str:
    """The points of a line through the values, the newest at the right."""
    peak, step = max([*values, 1]), width / (SAMPLES_MAX - 2)
    start = width - step * (len(values) - 1)
    return " ".join(
        f"{start + step * at:.1f},{height - 1 - (height - 2) * v / peak:.1f}" for at, v in enumerate(values)
    )


def _sample(counts: Counts) -> Sample:
    buckets, _ = counts.first_byte_seconds.exposed()
    return Sample(
        ok=counts.ok,
        failed=counts.failed,
        cancelled=counts.cancelled,
        refused=counts.refused,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        first=tuple((float("inf") if bound == "+Inf" else float(bound), count) for bound, count in buckets),
    )
