"""From what the API shows to what a page says."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui import memory, pulse, ranks, timeline, usage, values
from ui.pulse import Pulse, Sample

GIB = 2**30


def model(**changes: Any) -> dict[str, Any]:
    """A model as ``GET /api/models`` shows it."""
    found: dict[str, Any] = {
        "id": "acme/a",
        "engine": "command",
        "phase": "ready",
        "progress": None,
        "note": "",
        "elapsed_s": 5.0,
        "eta_s": None,
        "expected_s": None,
        "start": None,
        "error": "",
        "retry_s": None,
        "in_flight": 0,
        "held": 0,
        "stops_in_s": 55.0,
        "sleeps_in_s": None,
        "min_replicas": 0,
        "pinned": False,
        "replicas": [],
        "last_replica": None,
    }
    return {**found, **changes}


def gpu(**changes: Any) -> dict[str, Any]:
    """A GPU as ``GET /api/gpus`` shows it."""
    found = {
        "uuid": "GPU-0",
        "index": 0,
        "name": "H100",
        "host": "",
        "mig": False,
        "memory_bytes": 80 * GIB,
        "free_bytes": 80 * GIB,
        "foreign_bytes": 0,
        "healthy": True,
        "fault": "",
        "holders": [],
    }
    return {**found, **changes}


def start(outcome: str = "ready", /, wake: bool = False, **seconds: float) -> dict[str, Any]:
    """A start as ``GET /api/starts`` shows it."""
    return {
        "model": "acme/a",
        "replica": "a-1",
        "started_at": 0.0,
        "outcome": outcome,
        "wake": wake,
        "error": "",
        "seconds": seconds,
        "total_s": sum(seconds.values()),
    }


# --- words ---


@pytest.mark.parametrize(
    ("given_s", "words"),
    [
        (None, "–"),
        (0.0, "0 s"),
        (0.04, "0 s"),
        (0.42, "0.4 s"),
        (0.96, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(given_s: float | None, words: str) -> None:
    assert values.seconds(given_s) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (2048, "2 KiB"), (80 * GIB, "80.0 GiB"), (None, "–")]
)
def test_sizes(count: int | None, words: str) -> None:
    assert values.size(count) == words


def test_numbers() -> None:
    assert [values.number(n) for n in (0, 1234, 12_345_678)] == ["0", "1\u202f234", "12.3 M"]
    assert [values.brief(n) for n in (0.042, 0.84, 12.0)] == ["42 ms", "0.84 s", "12 s"]


@given(st.floats(0, 1e7, allow_nan=False))
def test_a_duration_never_shows_sixty(value: float) -> None:
    assert "60" not in values.seconds(value).split(" d ")[-1].split()[::2]


# --- models ---


def test_an_idle_model_tells_when_it_leaves() -> None:
    card = values.model_card(model(), {}, 1000.0)
    assert (card["leaves"], card["leaves_unix"], card["since_unix"], card["starting"]) == (
        "stops",
        1055.0,
        995.0,
        False,
    )
    sleeper = values.model_card(model(sleeps_in_s=5.0), {}, 1000.0)
    assert (sleeper["leaves"], sleeper["leaves_unix"]) == ("sleeps", 1005.0)


def test_a_start_tells_when_it_is_ready() -> None:
    card = values.model_card(model(phase="loading", elapsed_s=10.0, eta_s=30.0, progress=0.431), {}, 1000.0)
    assert (card["starting"], card["ready_unix"], card["percent"], card["can_stop"]) == (True, 1030.0, 43, True)


def test_gpus_have_names() -> None:
    names = values.gpu_names([gpu(), gpu(uuid="GPU-1", index=1, host="node")])
    replica = {"gpus": ["GPU-0", "GPU-1", "GPU-2"], "host": ""}
    assert values.model_card(model(replicas=[replica]), names, 0.0)["gpus"] == "0, node:1, GPU-2"


def test_the_summary_counts() -> None:
    found = values.summary([model(), model(phase="failed"), model(phase="queued", held=3), model(in_flight=2)])
    assert found == {"models": 4, "ready": 2, "starting": 1, "failed": 1, "in_flight": 2, "held": 3}


def test_moments_that_jitter_are_the_same() -> None:
    """However deep they stand; others, and real changes, come through."""
    old = {"a_unix": 100.0, "b": 1, "list": [{"c_unix": 5.0}], "d_unix": None}
    new = {"a_unix": 101.4, "b": 2, "list": [{"c_unix": 9.0}], "d_unix": 3.0}
    assert values.steady(old, new) == {"a_unix": 100.0, "b": 2, "list": [{"c_unix": 9.0}], "d_unix": 3.0}
    assert values.steady(None, new) == new


# --- starts ---


def test_a_waterfall_steps_down_phase_by_phase() -> None:
    fall = timeline.waterfall({"starting": 10.0, "loading": 30.0}, {"starting": 20.0, "loading": 60.0})
    assert [(row["x"], row["width"], row["usual_x"], row["usual_width"]) for row in fall["rows"]] == [
        (0.0, 125.0, 0.0, 250.0),
        (125.0, 375.0, 250.0, 750.0),
    ]
    assert (fall["total_s"], fall["usual_s"]) == (40.0, 80.0)


def test_a_start_under_way_grows_in_its_phase() -> None:
    under_way = {"seconds": {"pulling": 4.0}, "phase_s": 6.0, "expected": {"pulling": 3.0, "starting": 10.0}}
    rows = timeline.running(under_way, "starting")["rows"]
    assert [(row["phase"], row["seconds"], row["now"]) for row in rows] == [
        ("pulling", 4.0, False),
        ("starting", 6.0, True),
    ]


def test_what_is_usual_is_the_median_of_cold_starts_that_came_through() -> None:
    starts = [
        start(starting=1.0, queued=50.0),
        start(starting=9.0),
        start(starting=2.0),
        start("failed", starting=99.0),
        start(wake=True, loading=0.1),
    ]
    assert timeline.usual(starts) == {"starting": 2.0}


times = st.dictionaries(st.sampled_from(values.START_PHASES), st.floats(0, 1e6, allow_nan=False))


@given(times, times)
def test_bars_stay_within_the_drawing(taken: dict[str, float], usual: dict[str, float]) -> None:
    slack = timeline.SHOWN_MIN + 0.2
    for row in timeline.waterfall(taken, usual)["rows"]:
        assert 0 <= row["x"] <= row["x"] + row["width"] <= timeline.WIDTH + slack
        assert 0 <= row["usual_x"] <= row["usual_x"] + row["usual_width"] <= timeline.WIDTH + slack
    for bar in timeline.history(
        [{**start(), "seconds": seconds, "total_s": sum(seconds.values())} for seconds in (taken, usual)]
    ):
        assert all(piece["x"] + piece["width"] <= timeline.WIDTH + slack for piece in bar["pieces"])


# --- GPUs ---


def test_memory_that_nobody_leases_is_a_gap() -> None:
    card = memory.gpu_card(gpu(free_bytes=70 * GIB, foreign_bytes=10 * GIB))
    assert (card["gap"], card["stranger_bytes"], card["stranger_width"]) == (True, 10 * GIB, 125.0)
    assert memory.totals([gpu(), gpu(free_bytes=70 * GIB, foreign_bytes=10 * GIB)])["gaps"] == 1


def test_the_drivers_own_is_no_gap() -> None:
    assert not memory.gpu_card(gpu(free_bytes=80 * GIB - 500 * 2**20, foreign_bytes=500 * 2**20))["gap"]


def test_leases_stand_side_by_side_and_never_beyond_the_card() -> None:
    holders = [{"model": name, "replica": name, "bytes": 50 * GIB, "phase": "ready"} for name in "ab"]
    card = memory.gpu_card(gpu(free_bytes=20 * GIB, holders=holders))
    assert [(lease["x"], lease["width"]) for lease in card["leases"]] == [(0.0, 625.0), (625.0, 375.0)]
    assert (card["used_bytes"], card["used_width"]) == (60 * GIB, 750.0)


def test_a_gpu_that_is_lost_tells_no_use() -> None:
    assert memory.gpu_card(gpu(free_bytes=0, healthy=False, fault="lost"))["used_bytes"] == 0


# --- requests ---


class Tallied:
    """A histogram."""

    def __init__(self, *counts: tuple[str, float]) -> None:
        self.counts = list(counts)

    def exposed(self) -> tuple[list[tuple[str, float]], float]:
        return self.counts, 0.0


class Counted:
    """One model's counters."""

    def __init__(self, ok: int) -> None:
        self.ok, self.failed, self.cancelled, self.refused = ok, 1, 0, 2
        self.prompt_tokens, self.completion_tokens = 10 * ok, 3 * ok
        self.first_byte_seconds = Tallied(("0.1", 0.5 * ok), ("+Inf", float(ok)))


def test_the_pulse_counts_what_came_since() -> None:
    kept = Pulse()
    for ok in range(30):
        kept.take({"acme/a": Counted(ok)})
    row = pulse.row(kept.of("acme/a"), model(held=1))
    assert (row["requests"], row["per_minute"], row["errors"], row["refused"], row["held"]) == (30, 12, 1, 2, 1)
    assert row["first_p50_s"] == pytest.approx(0.1)
    assert pulse.totals([row, row])["per_minute"] == 24
    assert pulse.row(kept.of("unknown"), model())["requests"] == 0


def test_the_pulse_is_bounded() -> None:
    kept = Pulse()
    for _ in range(3 * pulse.SAMPLES_MAX):
        kept.take({"acme/a": Counted(1)})
    assert len(kept.of("acme/a")) == pulse.SAMPLES_MAX
    kept.take({f"m{n}": Counted(1) for n in range(pulse.MODELS_MAX + 5)})
    assert kept.of(f"m{pulse.MODELS_MAX + 1}") == (Sample(), Sample())


def test_quantiles_by_bucket() -> None:
    after = ((0.1, 50.0), (1.0, 90.0), (math.inf, 100.0))
    assert pulse.quantile((), after, 0.5) == pytest.approx(0.1)
    assert pulse.quantile((), after, 0.7) == pytest.approx(0.55)
    assert pulse.quantile((), after, 0.99) == 1.0
    assert pulse.quantile(after, after, 0.5) is None


@given(st.lists(st.integers(0, 10**6), max_size=pulse.SAMPLES_MAX - 1))
def test_a_line_stays_within_its_drawing(counts: list[int]) -> None:
    for point in pulse.spark(counts).split():
        x, y = map(float, point.split(","))
        assert -0.2 <= x <= 120.2 and 0 <= y <= 24


# --- usage, search ---


def test_bars_stack_completion_on_prompt() -> None:
    rows = [
        {"day": "2026-11-02", "prompt_tokens": 30, "completion_tokens": 10},
        {"day": "2026-11-01", "prompt_tokens": 10, "completion_tokens": 10},
    ]
    drawn, peak = usage.bars(rows, "day")
    assert peak == 40
    assert [bar["label"] for bar in drawn] == ["2026-11-01", "2026-11-02"]
    assert (drawn[1]["completion_y"], drawn[1]["prompt_y"], drawn[1]["prompt_height"]) == (0.0, 30.0, 90.0)
    assert usage.bars([], "day") == ([], 0)


def test_three_rankings_side_by_side() -> None:
    def result(name: str, text: int | None, embedding: int | None) -> dict[str, Any]:
        return {
            "filename": name,
            "score": 0.5,
            "content": [{"type": "text", "text": name * 1000}],
            "place": {"page": None, "headings": []},
            "ranks": {"text": text, "embedding": embedding},
        }

    shown = ranks.hits([result("a", 2, 1), result("b", 1, None), result("c", None, 2)])
    words, vectors, fused = ranks.side_by_side(shown)
    assert [place["filename"] for place in words["places"]] == ["b", "a"]
    assert [place["filename"] for place in vectors["places"]] == ["a", "c"]
    assert [place["filename"] for place in fused["places"]] == ["a", "b", "c"]
    assert all(len(hit["passage"]) <= ranks.PASSAGE_CHARS_MAX + 2 for hit in shown)
