"""How many replicas a load asks for: windows, panic, delay, and what is not known."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.autoscale import (
    LOAD_AGE_S_MAX,
    SCALE_UP_RATE_MAX,
    STABLE_S,
    TARGET_DEFAULT,
    default_target,
    followed,
    sampled,
    scaled,
)
from orchestrator.model import Demand, Load, Phase, Replica, Sighting, Traffic
from orchestrator.scaling import Sample, Scaling
from tests.values import deployment, fleet, replica

NOW = 1000.0
A, B = replica(Phase.READY, "a"), replica(Phase.READY, "b")


def load(running: int, waiting: int = 0, kv_use: float | None = None, at: float = NOW) -> Load:
    return Load(running=running, waiting=waiting, kv_use=kv_use, at=at)


def work_of(
    *replicas: Replica, in_flight: dict[str, int], loads: dict[str, Load] | None = None, held: int = 0
) -> tuple[float, float | None] | None:
    """Of a model whose replicas should have 10 requests each."""
    traffic = {id: Traffic(in_flight=count) for id, count in in_flight.items()}
    sample = sampled(replicas, Demand(held=held), traffic, loads or {}, 10.0, NOW)
    return None if sample is None else (sample.work, sample.memory)


@pytest.mark.parametrize(
    ("in_flight", "loads", "held", "expected"),
    [
        ({"a": 5, "b": 5}, {}, 0, (1.0, None)),
        ({"a": 5, "b": 5}, {}, 20, (3.0, None)),
        ({"a": 5, "b": 0}, {"a": load(4, 11)}, 0, (1.5, None)),  # others than we send to it
        ({"a": 5, "b": 0}, {"a": load(1)}, 0, (0.5, None)),  # it does not count yet what we have just sent
        ({"a": 5}, {}, 0, None),  # nothing is known of b
        ({"a": 5}, {"b": load(5)}, 0, (1.0, None)),
        ({"a": 5}, {"b": load(5, at=NOW - LOAD_AGE_S_MAX - 0.1)}, 0, None),  # too old to be known
        ({"a": 0, "b": 0}, {"a": load(0, kv_use=0.45)}, 0, (0.0, 1.0)),  # b is taken to be as full
        ({"a": 4, "b": 0}, {"a": load(4, 0, 0.95), "b": load(0, 0, 0.0)}, 0, (0.4, pytest.approx(0.95 / 0.9))),
        ({"a": 6, "b": 0}, {"a": load(4, 2, 0.95), "b": load(0, 0, 0.0)}, 0, (1.5, pytest.approx(0.95 / 0.9))),
        ({"a": 3, "b": 0}, {"a": load(0, 3, 1.0), "b": load(0, 0, 0.8)}, 0, (3.0, 2.0)),
    ],
)
def test_work(
    in_flight: dict[str, int], loads: dict[str, Load], held: int, expected: tuple[float, float | None] | None
) -> None:
    assert work_of(A, B, in_flight=in_flight, loads=loads, held=held) == expected


def test_only_those_that_serve_count() -> None:
    others = [replica(phase, phase.value) for phase in (Phase.STARTING, Phase.DRAINING, Phase.SLEEPING, Phase.FAILED)]
    assert work_of(A, *others, in_flight={"a": 3, "draining": 9}) == (0.3, None)
    assert work_of(in_flight={}, held=5) == (0.5, None)
    assert work_of(replica(Phase.READY, "far", unknown=True), in_flight={}) == (0.0, None)


@pytest.mark.parametrize(
    ("args", "limit", "target"),
    [
        ((), 0, TARGET_DEFAULT),
        (("--max-num-seqs", "100"), 0, 70.0),
        (("--max-num-seqs=100", "--max-num-seqs=10"), 0, 7.0),
        (("--max-running-requests", "20"), 0, 14.0),
        (("--max-num-seqs", "100"), 10, 7.0),
        (("--max-num-seqs", "many"), 0, TARGET_DEFAULT),
        (("--max-num-seqs", "0"), 0, TARGET_DEFAULT),
        (("--max-num-seqs",), 0, TARGET_DEFAULT),
    ],
)
def test_the_target_follows_what_the_engine_takes(args: tuple[str, ...], limit: int, target: float) -> None:
    assert default_target(args, limit) == pytest.approx(target)


def after(
    *stretches: tuple[int, float | None], ready: int = 1, old: Scaling | None = None, delay_s: float = 0.0
) -> Scaling:
    """So many seconds of so much work each, None being unknown; with so many replicas ready."""
    state = old or Scaling()
    now = state.buckets[-1].second + 1.0 if state.buckets else NOW
    for seconds, work in stretches:
        for _ in range(seconds):
            sample = None if work is None else Sample(at=now, work=work)
            state = scaled(state, sample, ready, now, delay_s=delay_s)
            now += 1.0
    return state


@pytest.mark.parametrize(
    ("stretches", "ready", "desired"),
    [
        ([(60, 0.0)], 1, 0),
        ([(60, 1.0)], 1, 1),
        ([(60, 1.01)], 1, 2),
        ([(60, 1.0), (1, 2.0)], 1, 2),  # the mean of the panic window is 1.2
        ([(60, 1.0), (30, 1.9)], 1, 2),
        ([(60, 0.0), (6, 6.0)], 1, 4),  # no more than four times what is ready
        ([(60, 0.0), (6, 6.0)], 2, 6),
        ([(60, 2.0), (6, 3.9)], 2, 4),  # in panic
        ([(60, 2.0), (6, 2.9)], 2, 3),  # not in panic: the stable mean is 2.1
        ([(20, 3.0), (40, 0.0)], 3, 3),  # just begun, with three ready: no fewer for a stable window
        ([(120, 3.0), (59, 0.0)], 3, 1),
        ([(120, 3.0), (60, 0.0)], 3, 0),
        ([(60, 0.0), (6, 9.0), (40, 0.0)], 1, 4),  # in panic never down
        ([(60, 0.0), (6, 9.0), (140, 0.0)], 1, 0),
    ],
)
def test_desired(stretches: list[tuple[int, float | None]], ready: int, desired: int) -> None:
    assert after(*stretches, ready=ready).desired == desired


def test_nothing_known_is_not_nothing_to_do() -> None:
    assert after((10, None)).desired is None
    busy = after((120, 3.0), ready=3)
    assert after((600, None), ready=3, old=busy).desired == 3
    # and after a long silence no fewer than there are, until there is a window of data again
    again = after((600, None), (30, 0.0), ready=3, old=busy)
    assert again.desired == 3
    assert after((90, 0.0), ready=3, old=again).desired == 0


def test_seconds_without_data_are_left_out_of_the_mean() -> None:
    steady = after((120, 3.0), ready=3)
    gaps = after(*[(1, 3.0), (5, None)] * 20, ready=3)
    assert (steady.desired, gaps.desired) == (3, 3)


def test_less_is_wanted_only_after_the_delay() -> None:
    busy = after((120, 3.0), ready=3, delay_s=100.0)
    assert after((59 + 99, 0.0), ready=3, old=busy, delay_s=100.0).desired > 0  # type: ignore[operator]  # not None here
    assert after((60 + 100, 0.0), ready=3, old=busy, delay_s=100.0).desired == 0


def test_more_is_wanted_at_once() -> None:
    calm = after((120, 0.5), ready=1, delay_s=1000.0)
    assert after((3, 4.0), ready=1, old=calm, delay_s=1000.0).desired == 3


def test_full_caches_keep_replicas_that_the_requests_would_not() -> None:
    state = Scaling()
    for second in range(120):
        sample = Sample(at=NOW + second, work=0.5, memory=1.5)
        state = scaled(state, sample, 2, NOW + second, delay_s=0.0)
    assert state.desired == 2
    assert scaled(state, Sample(at=NOW + 120, work=0.5, memory=9.0), 2, NOW + 120, delay_s=0.0).desired == 2


def test_many_looks_in_one_second_count_once() -> None:
    state = after((60, 0.0))
    for part in range(100):
        now = NOW + 60 + part / 101
        state = scaled(state, Sample(at=now, work=5.0), 1, now, delay_s=0.0)
    assert len(state.buckets) == STABLE_S
    assert state.desired == 1


def test_histories_are_kept_of_models_that_may_have_several() -> None:
    models = {"one": deployment("one"), "m": deployment(max_replicas=2, target_concurrency=2.0)}
    seen = Sighting(traffic={"a": Traffic(in_flight=3)}, demand={"m": Demand(held=1)})
    found = followed(fleet(A), models, seen, NOW)
    assert {name: state.desired for name, state in found.items()} == {"m": 2}


WORK = st.one_of(st.none(), st.floats(0, 50))
LOOKS = st.lists(st.tuples(st.floats(0.01, 20), WORK, st.integers(0, 8)), max_size=80)


@given(looks=LOOKS, delay_s=st.sampled_from((0.0, 10.0, 300.0)))
def test_what_always_holds(looks: list[tuple[float, float | None, int]], delay_s: float) -> None:
    state, now = Scaling(), NOW
    for dt, work, ready in looks:
        now += dt
        old = state
        state = scaled(old, None if work is None else Sample(at=now, work=work), ready, now, delay_s=delay_s)
        assert len(state.buckets) <= STABLE_S
        if work is None:
            assert state.desired == old.desired
            continue
        assert state.desired is not None
        held = max(old.panic_replicas, *(count for _, count in old.wishes), 0, 0)
        assert state.desired <= max(ceil(SCALE_UP_RATE_MAX * max(ready, 1)), held, ready)
        if old.panic_at is not None and state.panic_at is not None:
            assert state.desired >= old.panic_replicas
        counts = [count for _, count in state.wishes]
        assert counts == sorted({*counts}, reverse=True)
        assert all(now - at <= delay_s for at, _ in state.wishes)


@given(work=st.floats(0, 4), delay_s=st.sampled_from((0.0, 30.0)), ready=st.integers(1, 5))
def test_a_load_that_stays_gets_what_it_needs(work: float, delay_s: float, ready: int) -> None:
    state = after((4 * STABLE_S, work), ready=ready, delay_s=delay_s)
    most = SCALE_UP_RATE_MAX * ready
    assert state.desired in (min(ceil(work), most), min(ceil(work - 1e-6), most))
