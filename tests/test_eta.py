"""Retry-After: honest, shrinking, and near the truth on a replay. PROMISES C3."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.eta import DEFAULT_S, WAKE_S_DEFAULT, Expected, expect, remaining_s, retry_after_s
from orchestrator.model import EngineKind, Phase, StartRecord, Track, Weights, WeightsState
from tests.values import PRESENT

# Seconds (starting, loading) of eight real starts in a row, as GET /api/starts gave them: vLLM 0.32 on two cores that
# were also running other tests, SmolLM2-135M-Instruct. Oldest first.
RECORDED = (
    (19.106, 11.986),
    (17.993, 2.607),
    (17.189, 3.620),
    (16.882, 3.998),
    (16.827, 5.810),
    (17.839, 3.742),
    (19.059, 3.592),
    (19.024, 8.899),
)


def start(starting: float, loading: float, *, model: str = "m", spec: str = "s", pulled: float = 0.0) -> StartRecord:
    seconds = {Phase.STARTING: starting, Phase.LOADING: loading}
    return StartRecord(
        model=model,
        replica="r",
        spec=spec,
        engine=EngineKind.VLLM,
        started_at_unix=0.0,
        seconds={Phase.PULLING: pulled, **seconds} if pulled else seconds,
        outcome="ready",
        pulled_bytes=int(pulled * 1e6),
    )


def test_nearest_history_wins() -> None:
    other, own, same = start(100, 100, model="x"), start(50, 50, spec="old"), start(10, 5)
    assert expect("m", EngineKind.VLLM, "s", [other, own, same]).seconds[Phase.STARTING] == 10
    assert expect("m", EngineKind.VLLM, "s", [other, own]).seconds[Phase.STARTING] == 50
    assert expect("m", EngineKind.VLLM, "s", [other]).seconds[Phase.STARTING] == 100
    assert expect("m", EngineKind.VLLM, "s", []).seconds == DEFAULT_S[EngineKind.VLLM]


def test_wakes_are_measured_by_wakes_alone() -> None:
    wakes = [replace(start(0, seconds), seconds={Phase.LOADING: seconds}, wake=True) for seconds in (2.0, 4.0, 3.0)]
    expected = expect("m", EngineKind.VLLM, "s", [*wakes, start(10, 5)])
    assert (expected.seconds[Phase.LOADING], expected.wake_s, expected.starts) == (5, 3.0, 1)
    assert expect("other", EngineKind.VLLM, "s", wakes).wake_s == 3.0
    assert expect("m", EngineKind.VLLM, "s", [start(10, 5)]).wake_s == WAKE_S_DEFAULT
    asleep = Track(phase=Phase.SLEEPING, wake=True)
    assert remaining_s(asleep, PRESENT, expected, 9.0) == 3.0
    assert remaining_s(replace(asleep, phase=Phase.QUEUED), PRESENT, expected, 9.0, wait_s=7.0) == 10.0
    assert remaining_s(replace(asleep, phase=Phase.LOADING, phase_at=8.0), PRESENT, expected, 9.5) == 1.5
    assert remaining_s(replace(asleep, phase=Phase.LOADING, phase_at=1.0), PRESENT, expected, 9.0) == 1.0


def test_pull_time_follows_bytes_and_rate() -> None:
    track = Track(phase=Phase.PULLING, phase_at=0.0, start_at=0.0)
    expected = Expected(seconds={Phase.STARTING: 10.0}, pull_bytes_per_s=1e6)
    half = Weights(state=WeightsState.PULLING, done_bytes=50_000_000, total_bytes=100_000_000)
    assert remaining_s(track, half, expected, 5.0) == 60.0
    fast = Weights(state=WeightsState.PULLING, done_bytes=50_000_000, total_bytes=100_000_000, bytes_per_s=10e6)
    assert remaining_s(track, fast, expected, 5.0) == 15.0
    measured = expect("m", EngineKind.VLLM, "s", [start(10, 5, pulled=20.0)])
    assert measured.pull_bytes_per_s == 1e6


@given(
    st.floats(0, 500), st.floats(0, 500), st.lists(st.floats(0, 1000), min_size=2, max_size=20),
    st.sampled_from([Phase.STARTING, Phase.LOADING, Phase.COLD]),
)  # fmt: skip
def test_it_never_grows_within_a_phase(starting: float, loading: float, times: list[float], phase: Phase) -> None:
    expected = Expected(seconds={Phase.STARTING: starting, Phase.LOADING: loading})
    track = Track(phase=phase, phase_at=0.0, start_at=0.0)
    rest = [remaining_s(track, PRESENT, expected, now) for now in sorted(times)]
    assert rest == sorted(rest, reverse=True)
    assert all(each >= 1 for each in rest)


@given(st.floats(-10, 1e9), st.integers(1, 120))
def test_retry_after_is_whole_and_bounded(rest: float, limit: int) -> None:
    assert 1 <= retry_after_s(rest, limit) <= limit
    assert isinstance(retry_after_s(rest, limit), int)


def replay(starts: list[tuple[float, float]]) -> float:
    """The median error of the estimates over a replay: asked at four moments of each start but the first."""
    errors, history = [], [start(*starts[0])]
    for starting, loading in starts[1:]:
        expected = expect("m", EngineKind.VLLM, "s", history)
        for share in (0.0, 0.25, 0.5, 0.75):
            now = share * (starting + loading)
            in_loading = now >= starting
            track = Track(phase=Phase.LOADING if in_loading else Phase.STARTING, phase_at=starting if in_loading else 0)
            truth = starting + loading - now
            errors.append(abs(remaining_s(track, PRESENT, expected, now) - truth) / truth)
        history.insert(0, start(starting, loading))
    return median(errors)


def test_replay_of_real_starts_is_within_a_quarter() -> None:
    """C3."""
    error = replay(list(RECORDED))
    print(f'{{"replayed_starts": {len(RECORDED)}, "median_error": {error:.3f}}}')
    assert error <= 0.25


def test_replay_of_noisy_starts_is_within_a_quarter() -> None:
    dice = random.Random(3)
    noisy = [(25 * dice.uniform(0.8, 1.2), 8 * dice.uniform(0.8, 1.2)) for _ in range(50)]
    assert replay(noisy) <= 0.25
