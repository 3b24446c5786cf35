"""When a cold model will be ready: from the history of starts, pure.

The expected length of each phase is a median of what was seen (the median, since one start on a busy
machine should not move it far). What remains is counted down from it, so it shrinks with the clock and grows
only when the phase or the measured pull rate changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from orchestrator.model import EngineKind, Phase, StartRecord, Track, Weights, WeightsState

STARTS_MAX = 5
"""How many of the newest starts count: old ones tell of another engine version or disk."""
PULL_BYTES_PER_S_DEFAULT = 50e6
"""Before any pull was measured: a 400 Mbit/s line."""
DEFAULT_S: Mapping[EngineKind, Mapping[Phase, float]] = {
    EngineKind.VLLM: {Phase.STARTING: 25.0, Phase.LOADING: 10.0},
    EngineKind.SGLANG: {Phase.STARTING: 25.0, Phase.LOADING: 15.0},
    EngineKind.COMMAND: {Phase.STARTING: 5.0, Phase.LOADING: 0.0},
}
"""Before any start was seen. vLLM, SGLang: two or three rounds of imports, a small model's weights, and warm-up."""
WAKE_S_DEFAULT = 5.0
"""Before any engine was woken: weights come from the machine's memory, at some 10 GB/s."""
ORDER = (Phase.PULLING, Phase.QUEUED, Phase.STARTING, Phase.LOADING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The expected seconds of each phase of one model's next start."""

    seconds: Mapping[Phase, float] = field(default_factory=dict)
    pull_bytes_per_s: float = PULL_BYTES_PER_S_DEFAULT
    starts: int = 0
    """How many starts of this very model it rests on; 0: on similar ones, or a default."""
    wake_s: float = WAKE_S_DEFAULT
    """What it takes to wake, were it asleep."""


def expect(model: str, engine: EngineKind, spec: str, history: Sequence[StartRecord]) -> Expected:
    """What the next start should take. `history`: newest first, of all models.

    1. This model with these settings. 2. This model. 3. Any model of this engine. 4. `DEFAULT_S`.
    """
    ready = [start for start in history if start.outcome == "ready" and start.engine == engine and not start.wake]
    own = [start for start in ready if start.model == model]
    same = [start for start in own if start.spec == spec] or own or ready
    seen = _medians(same[:STARTS_MAX])
    rates = [s.pulled_bytes / s.seconds[Phase.PULLING] for s in history if s.pulled_bytes and _pulled_s(s) > 1]
    return Expected(
        seconds={**DEFAULT_S[engine], **seen},
        pull_bytes_per_s=median(rates[:STARTS_MAX]) if rates else PULL_BYTES_PER_S_DEFAULT,
        starts=len(own),
        wake_s=_wake_s(model, engine, history),
    )


def _wake_s(model: str, engine: EngineKind, history: Sequence[StartRecord]) -> float:
    """A wake is no cold start: it is measured by wakes alone, of this model or of any of this engine."""
    woken = [start for start in history if start.wake and start.outcome == "ready" and start.engine == engine]
    own = [start for start in woken if start.model == model] or woken
    seconds = [start.seconds.get(Phase.LOADING, 0.0) for start in own[:STARTS_MAX]]
    return median(seconds) if seconds else WAKE_S_DEFAULT


def remaining_s(track: Track, weights: Weights | None, expected: Expected, now: float, *, wait_s: float = 0.0) -> float:
    """Seconds until ready, were the start to go as expected; never below 1, as Retry-After can't be.

    A cold model is counted as if its start began now. A phase that overruns counts as about to end: its
    true rest is unknown, and the phases after it still count in full. `wait_s`: until its GPUs should be free.
    One that sleeps is only woken.
    """
    if track.wake and track.phase in (Phase.SLEEPING, Phase.QUEUED, Phase.LOADING):
        spent_s = now - track.phase_at if track.phase is Phase.LOADING else 0.0
        return max((wait_s if track.phase is Phase.QUEUED else 0.0) + max(expected.wake_s - spent_s, 0.0), 1.0)
    cold = track.phase not in ORDER
    at = 0 if cold else ORDER.index(track.phase)
    elapsed_s = 0.0 if cold else now - track.phase_at
    rest = sum(expected.seconds.get(phase, 0.0) for phase in ORDER[at + 1 :] if phase is not Phase.QUEUED)
    if ORDER[at] is Phase.PULLING:
        current = _pull_s(weights, expected)
    elif ORDER[at] is Phase.QUEUED:
        current = wait_s
    else:
        current = max(expected.seconds.get(ORDER[at], 0.0) - elapsed_s, 0.0)
    return max(rest + current, 1.0)


def retry_after_s(remaining: float, retry_after_max_s: int) -> int:
    """The header's whole seconds, 1 … `retry_after_max_s`."""
    return max(1, min(math.ceil(remaining), retry_after_max_s))


def _pull_s(weights: Weights | None, expected: Expected) -> float:
    if weights is None or weights.state is WeightsState.PRESENT:
        return 0.0
    if weights.total_bytes is None:
        return expected.seconds.get(Phase.PULLING, 0.0)
    rate = weights.bytes_per_s or expected.pull_bytes_per_s
    return max(weights.total_bytes - weights.done_bytes, 0) / max(rate, 1.0)


def _pulled_s(start: StartRecord) -> float:
    return start.seconds.get(Phase.PULLING, 0.0)


def _medians(starts: Iterable[StartRecord]) -> dict[Phase, float]:
    """Per phase, over the starts that had it at all; waiting for a GPU tells nothing of the next start."""
    seconds: dict[Phase, list[float]] = {}
    for start in starts:
        for phase, spent in start.seconds.items():
            if phase is not Phase.QUEUED:
                seconds.setdefault(phase, []).append(spent)
    return {phase: median(spent) for phase, spent in seconds.items()}
