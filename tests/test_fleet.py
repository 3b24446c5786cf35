"""How sightings change what we know: the table in `fleet`, row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator import fleet as step
from orchestrator.actions import Launch, Sleep, Stop
from orchestrator.decide import decide, wanted
from orchestrator.model import (
    Backoff,
    Demand,
    Fleet,
    IdleAction,
    InstanceState,
    Phase,
    Progress,
    Replica,
    Sighting,
    StartRecord,
    Traffic,
    Weights,
    WeightsState,
)
from orchestrator.starts import ended_starts, newest
from orchestrator.tracks import phase_of, tracked
from tests.values import deployment, fleet, instance, replica

MODELS = {"m": deployment(start_timeout_s=30.0)}


def after(known: Fleet, now: float = 10.0, **seen: Any) -> Fleet:
    return step.advance(known, MODELS, Sighting(**{"instances": (instance(),), **seen}), now)


def one(known: Fleet) -> Replica:
    [found] = known.replicas.values()
    return found


def test_silence_changes_nothing() -> None:
    known = fleet(replica(Phase.READY), replica(Phase.STARTING, "b", seen=False))
    silent = after(known, 1e6, instances=None)
    assert not silent.known
    assert {r.phase for r in silent.replicas.values()} == {Phase.READY, Phase.STARTING}


def test_a_launch_that_never_shows_is_forgotten_in_the_end() -> None:
    known = fleet(replica(Phase.STARTING, seen=False))
    assert one(after(known, 1e6, instances=())).phase is Phase.STARTING
    known = step.landed(known, "m-b-0", 0.0)
    assert one(after(known, step.LAUNCH_GRACE_S - 0.1, instances=())).phase is Phase.STARTING
    assert not after(known, step.LAUNCH_GRACE_S, instances=()).replicas


def test_one_that_is_gone_before_its_launch_returned_fails_once_and_for_the_launchs_own_reason() -> None:
    launch = Launch(model="m", replica="m-b-0")
    known = after(step.launched(fleet(), launch, MODELS["m"], 0.0))
    assert one(known).seen
    known = after(known, instances=())
    assert (one(known).phase, known.backoff) == (Phase.STARTING, {})
    known = after(step.launch_failed(known, launch, "no such device", 10.0, sure=True), instances=())
    assert (known.replicas, known.backoff["m"].failures, known.backoff["m"].error) == ({}, 1, "no such device")


@pytest.mark.parametrize(("phase", "failures"), [(Phase.READY, 1), (Phase.LOADING, 1), (Phase.DRAINING, 0)])
def test_gone_is_a_failure_unless_it_was_leaving(phase: Phase, failures: int) -> None:
    known = after(fleet(replica(phase)), instances=())
    assert not known.replicas
    assert sum(b.failures for b in known.backoff.values()) == failures


def test_an_end_is_told_with_its_cause() -> None:
    ended = instance(state=InstanceState.EXITED)
    known = after(fleet(replica(Phase.LOADING)), instances=(ended,), failures={"m-b-0": "out of memory"})
    assert one(known).phase is Phase.FAILED
    assert known.backoff["m"].error == "out of memory"
    again = after(known, 11.0, instances=(ended,))
    assert again.backoff["m"].failures == 1  # counted once


def test_ready_by_its_probe_only() -> None:
    known = fleet(replica(Phase.STARTING))
    assert one(after(known)).phase is Phase.STARTING
    assert one(after(known, healthy={"m-b-0": False})).phase is Phase.STARTING
    ready = one(after(known, healthy={"m-b-0": True}))
    assert (ready.phase, ready.ready_at, ready.idle_at) == (Phase.READY, 10.0, 10.0)


def test_loading_when_the_log_says_so_and_never_back() -> None:
    loading = after(fleet(replica(Phase.STARTING)), progress={"m-b-0": Progress(phase=Phase.LOADING, fraction=0.5)})
    assert one(loading).phase is Phase.LOADING
    assert one(after(loading, progress={"m-b-0": Progress()})).phase is Phase.LOADING


def test_a_start_that_takes_too_long_has_failed() -> None:
    known = fleet(replica(Phase.LOADING))
    assert one(after(known, 29.9)).phase is Phase.LOADING
    failed = after(known, 30.0)
    assert one(failed).phase is Phase.FAILED
    assert "30 s" in failed.backoff["m"].error


def test_three_bad_probes_in_a_row_take_it_out() -> None:
    known = fleet(replica(Phase.READY))
    for healthy, phase in ((False, "ready"), (False, "ready"), (True, "ready"), (False, "ready"), (False, "ready")):
        known = after(known, healthy={"m-b-0": healthy})
        assert one(known).phase == phase
    assert one(after(known, healthy={"m-b-0": False})).phase is Phase.FAILED


def test_strangers_with_our_mark_are_adopted() -> None:
    adopted = one(after(fleet(), healthy={"m-b-0": True}))
    assert (adopted.phase, adopted.adopted) == (Phase.READY, True)
    ended = one(after(fleet(), instances=(instance(state=InstanceState.EXITED),)))
    assert ended.phase is Phase.DRAINING


def test_backoff_doubles_and_is_capped_and_forgotten() -> None:
    known, waits = fleet(), []
    for _ in range(10):
        known = step.failed(known, "m", "x", 100.0)
        waits.append(known.backoff["m"].retry_at - 100.0)
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    served = step.failed(fleet(), "m", "x", 100.0, served=True)
    assert served.backoff["m"].retry_at == 100.0
    assert step.failed(served, "m", "x", 100.0, served=True).backoff["m"].retry_at == 102.0
    ready = fleet(replica(Phase.READY), backoff={"m": Backoff(failures=3)})
    assert after(ready, step.STABLE_S - 0.1).backoff
    assert not after(ready, step.STABLE_S).backoff
    assert not step.forgiven(known, "m").backoff


def test_idle_counts_from_the_latest_use() -> None:
    known = fleet(replica(Phase.READY))
    assert one(after(known, 50.0, traffic={"m-b-0": Traffic(in_flight=1, last_byte_at=5.0)})).idle_at is None
    assert one(after(known, 50.0, traffic={"m-b-0": Traffic(last_byte_at=40.0)})).idle_at == 40.0
    assert one(after(known, 50.0, demand={"m": Demand(expected_at=70.0)})).idle_at == 70.0


def test_a_failed_launch_is_forgotten_and_adopted_if_it_happened() -> None:
    launch = Launch(model="m", replica="m-b-0")
    known = step.launched(fleet(), launch, MODELS["m"], 1.0)
    assert known.serial == 1
    known = step.launch_failed(known, launch, "no such program", 2.0, sure=True)
    assert not known.replicas
    assert one(after(known, 3.0)).adopted


def test_a_launch_that_may_have_happened_keeps_its_lease_until_it_is_stopped() -> None:
    launch = Launch(model="m", replica="m-b-0", gpus=("GPU-1",))
    known = step.launch_failed(step.launched(fleet(), launch, MODELS["m"], 1.0), launch, "cut off", 2.0, sure=False)
    known = after(known, 3.0, instances=())
    assert (one(known).phase, one(known).gpus) == (Phase.FAILED, ("GPU-1",))
    assert known.backoff["m"].failures == 1
    assert not step.stopped(known, "m-b-0").replicas
    shown = after(known, 3.0)
    assert one(shown).phase is Phase.FAILED
    assert step.stopped(shown, "m-b-0") == shown


def track(known: Fleet, now: float) -> Fleet:
    return tracked(known, MODELS, now)


def test_a_start_is_timed_by_phase_and_recorded_once() -> None:
    pulling = Weights(state=WeightsState.PULLING)
    before = track(fleet(), 0.0)
    known = track(fleet(weights=pulling, tracks=before.tracks), 1.0)
    known = track(fleet(replica(Phase.STARTING, created_at=4.0), tracks=known.tracks), 4.0)
    known = track(fleet(replica(Phase.LOADING, created_at=4.0), tracks=known.tracks), 6.0)
    assert known.tracks["m"].start_at == 1.0
    ready = track(fleet(replica(Phase.READY, created_at=4.0), tracks=known.tracks), 9.5)
    [record] = ended_starts(known, ready, MODELS, 1000.0, 9.5)
    assert record.seconds == {Phase.PULLING: 3.0, Phase.STARTING: 2.0, Phase.LOADING: 3.5}
    assert (record.outcome, record.started_at_unix) == ("ready", 991.5)
    assert not ended_starts(ready, track(ready, 10.0), MODELS, 1000.0, 10.0)


def test_an_adoption_is_no_start() -> None:
    before = track(fleet(replica(Phase.STARTING, adopted=True)), 0.0)
    ready = track(fleet(replica(Phase.READY, adopted=True), tracks=before.tracks), 1.0)
    assert not ended_starts(before, ready, MODELS, 1000.0, 1.0)


@pytest.mark.parametrize(
    ("known", "phase"),
    [
        (fleet(), Phase.COLD),
        (fleet(demand=Demand(held=1)), Phase.QUEUED),
        (fleet(weights=Weights(state=WeightsState.PULLING)), Phase.PULLING),
        (fleet(replica(Phase.STARTING)), Phase.STARTING),
        (fleet(replica(Phase.DRAINING)), Phase.DRAINING),
        (fleet(replica(Phase.FAILED), backoff={"m": Backoff(failures=1, retry_at=99.0)}), Phase.FAILED),
        (fleet(backoff={"m": Backoff(failures=1, retry_at=5.0)}, demand=Demand(held=1)), Phase.QUEUED),
        (fleet(backoff={"m": Backoff(failures=1, retry_at=5.0)}), Phase.FAILED),
    ],
)
def test_the_phase_that_users_see(known: Fleet, phase: Phase) -> None:
    assert phase_of(known, MODELS["m"], 10.0) is phase


# --- sleep ---


def sleeper(**more: Any) -> Replica:
    return replica(Phase.SLEEPING, ready_at=1.0, idle_at=1.0, **more)


def waking(known: Fleet) -> Fleet:
    return step.woken(known, "m-b-0", 10.0)


def test_a_wake_is_recorded_as_one_and_no_cold_start() -> None:
    asleep = track(fleet(sleeper()), 5.0)
    assert asleep.tracks["m"].phase is Phase.SLEEPING and asleep.tracks["m"].wake
    loading = track(waking(asleep), 10.0)
    assert loading.tracks["m"].phase is Phase.LOADING and loading.tracks["m"].wake
    ready = track(after(loading, 12.0, healthy={"m-b-0": True}), 12.0)
    [record] = ended_starts(loading, ready, MODELS, 1000.0, 12.0)
    assert record.wake and record.outcome == "ready" and record.seconds == {Phase.LOADING: 2.0}
    gone = track(fleet(tracks=ready.tracks), 20.0)
    assert not gone.tracks["m"].wake


def test_a_wake_that_fails_is_recorded_and_made_good_at_once() -> None:
    loading = track(waking(fleet(sleeper())), 10.0)
    failed = track(step.broken(loading, "m-b-0", "it did not wake", 13.0), 13.0)
    assert failed.backoff["m"].retry_at == 13.0
    assert not ended_starts(loading, loading, MODELS, 1000.0, 13.0)
    anew = track(fleet(backoff=failed.backoff, tracks=loading.tracks, demand=Demand(held=1)), 13.0)
    assert anew.tracks["m"].phase is Phase.QUEUED and anew.tracks["m"].start_at == 13.0
    [record] = ended_starts(loading, anew, MODELS, 1000.0, 13.0)
    assert record.wake and record.outcome == "failed" and record.error == "it did not wake"
    assert record.seconds == {Phase.LOADING: 3.0}


def test_a_wake_that_was_stopped_by_hand_has_not_failed() -> None:
    loading = track(waking(fleet(sleeper())), 10.0)
    leaving = track(step.drained(loading, "m-b-0", "stopped by hand", 11.0), 11.0)
    assert not ended_starts(loading, leaving, MODELS, 1000.0, 11.0)


def test_what_its_log_said_of_its_start_is_not_told_of_its_wake() -> None:
    known = waking(fleet(sleeper()))
    seen = after(known, 11.0, progress={"m-b-0": Progress(phase=Phase.LOADING, fraction=1.0, note="starting")})
    assert one(seen).progress.note == "waking up"
    assert one(after(known, 11.0, asleep={"m-b-0": True})).phase is Phase.LOADING
    late = after(known, 40.0)
    assert one(late).error == "the engine did not wake within 30 s"


def test_one_that_was_woken_is_seen_to_sleep_again() -> None:
    ready = after(waking(fleet(sleeper())), 11.0, healthy={"m-b-0": True}, asleep={"m-b-0": False})
    assert one(ready).phase is Phase.READY
    again = after(ready, 20.0, healthy={"m-b-0": False}, asleep={"m-b-0": True}, traffic={"m-b-0": Traffic()})
    assert one(again).phase is Phase.SLEEPING
    assert not wanted(MODELS["m"], again, 20.0)
    hangs = after(ready, 20.0, asleep={"m-b-0": True}, traffic={"m-b-0": Traffic(in_flight=1)})
    assert wanted(MODELS["m"], hangs, 20.0)
    told = {"m": Demand(stop_at=19.0)}
    assert not wanted(MODELS["m"], after(hangs, 20.0, demand=told, traffic={"m-b-0": Traffic(in_flight=1)}), 20.0)


def test_one_that_is_ended_while_it_falls_asleep_does_not_count_as_asleep() -> None:
    drains = step.drained(fleet(replica(Phase.READY)), "m-b-0", "idle", 5.0, then=IdleAction.SLEEP)
    assert one(step.slept(drains, "m-b-0", 6.0)).phase is Phase.SLEEPING
    ended = step.drained(drains, "m-b-0", "stopped by hand", 5.5)
    assert one(step.slept(ended, "m-b-0", 6.0)).phase is Phase.DRAINING


def test_one_about_to_sleep_is_stopped_when_there_is_a_reason_to() -> None:
    drains = step.drained(fleet(replica(Phase.READY)), "m-b-0", "idle", 5.0, then=IdleAction.SLEEP)
    assert [type(action) for action in decide(MODELS, drains, 6.0)] == [Sleep]
    by_hand = replace(drains, demand={"m": Demand(stop_at=5.5)})
    assert [type(action) for action in decide(MODELS, by_hand, 6.0)] == [Stop]
    assert [type(action) for action in decide({}, drains, 6.0)] == [Stop]
    changed = {"m": replace(MODELS["m"], args=("-x",))}
    assert [type(action) for action in decide(changed, drains, 6.0)] == [Stop]


def test_wakes_which_are_many_displace_no_cold_start() -> None:
    start = StartRecord(
        model="m", replica="r", spec="s", engine="vllm", started_at_unix=0.0, seconds={}, outcome="ready"
    )
    wake = replace(start, wake=True)
    assert newest((wake, wake, wake, start, start), 2) == (wake, wake, start, start)


# --- several replicas of a model ---


def test_failures_beside_one_that_serves_are_forgotten_when_another_has_served() -> None:
    old = replica(Phase.READY, ready_at=0.0)
    known = step.failed(fleet(old), "m", "no memory", 100.0)
    both = (instance(), instance("m-b-1"))
    assert after(known, 500.0).backoff["m"].failures == 1
    new = replica(Phase.READY, "m-b-1", ready_at=150.0)
    known = replace(known, replicas={**known.replicas, new.id: new})
    assert after(known, 209.9, instances=both).backoff
    assert not after(known, 210.0, instances=both).backoff


def test_one_that_served_for_long_is_made_good_at_once_whatever_others_did() -> None:
    known = fleet(replica(Phase.READY, ready_at=0.0))
    for at in (100.0, 110.0, 120.0):
        known = step.failed(known, "m", "no memory", at)
    assert known.backoff["m"].retry_at == 128.0
    gone = after(known, 121.0, instances=())
    assert (gone.backoff["m"].failures, gone.backoff["m"].retry_at) == (1, 121.0)


def test_settings_that_changed_are_noted_with_their_time() -> None:
    known = after(fleet(replica(Phase.READY, spec="old")), 10.0, instances=(instance(spec="old"),))
    assert one(after(known, 20.0, instances=(instance(spec="old"),))).stale_at == 10.0
    assert one(after(fleet(replica(Phase.READY)))).stale_at is None


def test_a_model_is_ready_while_one_of_its_replicas_is() -> None:
    pair = fleet(replica(Phase.READY), replica(Phase.STARTING, "m-b-1"))
    assert phase_of(pair, MODELS["m"], 10.0) is Phase.READY
    before = track(pair, 10.0)
    assert before.tracks["m"].start_at is None
    now_ready = track(after(before, 20.0, instances=(instance(), instance("m-b-1")), healthy={"m-b-1": True}), 20.0)
    assert not ended_starts(before, now_ready, MODELS, 0.0, 20.0)


def test_one_more_that_takes_over_in_mid_start_is_no_start_to_measure_by() -> None:
    second = replica(Phase.STARTING, "m-b-1", created_at=5.0)
    before = track(fleet(replica(Phase.READY), second), 10.0)
    alone = track(after(before, 20.0, instances=(instance("m-b-1"),)), 20.0)
    assert alone.tracks["m"].phase is Phase.STARTING
    ready = track(after(alone, 21.0, instances=(instance("m-b-1"),), healthy={"m-b-1": True}), 21.0)
    assert ready.tracks["m"].phase is Phase.READY
    assert not ended_starts(alone, ready, MODELS, 0.0, 21.0)


def test_a_launch_that_did_not_begin_leaves_its_name_unused() -> None:
    known = step.launched(fleet(), Launch(model="m", replica="m-b-4", serial=4), MODELS["m"], 0.0)
    assert known.serial == 5
