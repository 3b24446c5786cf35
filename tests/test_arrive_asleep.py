"""Who wakes, and whom sleepers make room for: by table; and what holds in every line for GPUs, by property."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.actions import Drain, Launch, Pull, Stop
from orchestrator.arrive import BLOCKED_S, FINISH_S
from orchestrator.decide import decide, waits
from orchestrator.gpu import Gpu
from orchestrator.model import Deployment, Fleet, IdleAction, Phase, Replica
from orchestrator.victims import LEAVE_S, START_S
from tests.gpu_line import (
    BUSY,
    NOW,
    ONE,
    TWO,
    WHOLE,
    asleep,
    current,
    happens,
    known,
    line,
    model,
    on,
    sleepy,
    starting,
)
from tests.gpus import gpu, machine, need


@pytest.mark.parametrize(
    ("gpus", "replicas", "foreign", "expected"),
    [
        (ONE, [asleep("a", 0)], {}, ["a wakes"]),
        (ONE, [asleep("a", 0)], {"G0": 0.3}, ["a wakes"]),  # a sleeper that keeps a little more than it should
        (ONE, [asleep("a", 0, gigabytes=79.4)], {"G0": 0.3}, ["a wakes"]),
        (ONE, [asleep("a", 0), on("x", 0, gigabytes=20)], {}, ["x dozes off"]),
        (ONE, [asleep("a", 0, gigabytes=30), on("x", 0, gigabytes=40)], {}, ["a wakes"]),
        (TWO, [asleep("a", 0), on("x", 0)], {}, ["a ends"]),  # to start on the other
        (TWO, [asleep("a", 0), on("x", 0), on("y", 1, idle_s=250)], {}, ["y dozes off"]),
        (ONE, [asleep("a", 0, unknown=True)], {}, []),
        ((gpu(0, healthy=False), gpu(1)), [asleep("a", 0)], {}, ["a ends"]),
        (ONE, [asleep("a", 0), asleep("x", 0)], {}, ["a wakes"]),
    ],
)
def test_a_sleeper_that_is_wanted(
    gpus: tuple[Gpu, ...], replicas: list[Replica], foreign: dict[str, float], expected: list[str]
) -> None:
    fleet = known(gpus, *replicas, waiting={"a": 1}, foreign=foreign)
    assert happens(fleet, a=sleepy("a"), x=sleepy("x"), y=sleepy("y")) == expected


def test_of_two_sleepers_on_one_gpu_the_second_does_not_end_the_first_that_wakes() -> None:
    fleet = known(ONE, asleep("a", 0), asleep("b", 0), waiting={"a": 20, "b": 10})
    found, waiting = line(fleet, {"a": sleepy("a"), "b": sleepy("b")})
    assert found == ["a wakes"]
    assert waiting == {"b": (1, START_S + 60 + LEAVE_S)}


def test_nobody_behind_takes_the_gpu_for_which_a_sleeper_ends() -> None:
    fleet = known(TWO, asleep("a", 0), on("x", 0, **BUSY), waiting={"a": 20, "b": 10})
    found, waiting = line(fleet, {"a": sleepy("a")})
    assert found == ["a ends"]
    assert [*waiting] == ["a", "b"]


def test_victims_that_can_sleep_do_where_that_is_enough() -> None:
    fleet = known(ONE, on("x", 0), waiting={"a": 1})
    assert happens(fleet, x=sleepy("x")) == ["x dozes off"]
    tight = known(ONE, on("x", 0), waiting={"a": 1}, needs={"a": need(78)})
    assert happens(tight, x=sleepy("x")) == ["x leaves"]


def test_one_that_falls_asleep_leaves_less_than_one_that_ends() -> None:
    dozing = on("x", 0, phase=Phase.DRAINING, then=IdleAction.SLEEP, idle_s=None, patient=True)
    assert line(known(ONE, dozing, waiting={"a": 1}))[1] == {"a": (1, FINISH_S)}
    tight = known(ONE, dozing, waiting={"a": 1}, needs={"a": need(78)})
    assert line(tight) == ([], {"a": (1, BLOCKED_S)})


def test_a_sleeper_with_requests_in_flight_is_not_cut() -> None:
    fleet = known(ONE, asleep("s", 0, idle_at=None), waiting={"a": 900}, needs={"a": need(78)})
    assert happens(fleet, s=sleepy("s"), a=model("a", priority=1)) == ["s wakes"]


def test_sleepers_in_the_way_end_before_anybody_else_leaves() -> None:
    fleet = known(TWO, asleep("s", 0), on("x", 1, idle_s=250), waiting={"a": 1}, needs={"a": need(78)})
    assert happens(fleet, s=sleepy("s")) == ["s ends"]


# --- properties ---

WAITED = st.sampled_from((0.0, 1.0, 59.0, 119.0, 121.0, 700.0))


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Fleet, dict[str, Deployment]]:
    gpus = machine(*draw(st.lists(st.sampled_from((24, 80)), min_size=1, max_size=4)))
    replicas, models = [], {}
    for n, one in enumerate(gpus):
        name = f"r{n}"
        priority, warm = draw(st.integers(0, 2)), draw(st.sampled_from((0, 0, 1)))
        models[name] = model(name, priority=priority, min_replicas=warm, idle_action=IdleAction.SLEEP)
        kind = draw(st.sampled_from(("none", "idle", "busy", "starting", "asleep", "draining", "silent")))
        ready_s = draw(st.sampled_from((1, 59, 61, 500)))
        match kind:
            case "idle":
                replicas.append(on(name, one.index, ready_s=ready_s, idle_s=draw(st.integers(0, ready_s))))
            case "busy":
                replicas.append(on(name, one.index, ready_s=ready_s, idle_s=None))
            case "starting":
                replicas.append(starting(name, one.index))
            case "asleep":
                replicas.append(asleep(name, one.index))
            case "draining":
                replicas.append(on(name, one.index, phase=Phase.DRAINING, idle_s=None, patient=True))
            case "silent":
                replicas.append(on(name, one.index, unknown=True))
    waiting = {f"w{n}": draw(WAITED) for n in range(draw(st.integers(1, 5)))}
    models |= {name: model(name, priority=draw(st.integers(0, 2))) for name in waiting}
    wanted = {r.model: draw(WAITED) for r in replicas if r.phase is Phase.SLEEPING and draw(st.booleans())}
    dozes = [n for n in range(len(gpus)) if draw(st.integers(0, 3)) == 0]
    for n in dozes:
        models[f"s{n}"] = sleepy(f"s{n}")
        replicas.append(asleep(f"s{n}", n))
        wanted |= {f"s{n}": draw(WAITED)} if draw(st.booleans()) else {}
    waiting |= wanted
    sizes = st.sampled_from((WHOLE, need(10, 14), need(10, 30), need(50), need(20, None, 2), need(60, None, 2)))
    needs = {name: draw(sizes) for name in waiting}
    return current(known(gpus, *replicas, waiting=waiting, needs=needs, models=models), models), models


@settings(deadline=None)
@given(crowd=crowds())
def test_victims_may_go(crowd: tuple[Fleet, dict[str, Deployment]]) -> None:
    """Whoever is sent away has a lower priority than somebody in line, or is of the same and has had its turn."""
    fleet, models = crowd
    waiting = {name: NOW - t.phase_at for name, t in fleet.tracks.items()}
    for action in decide(models, fleet, NOW):
        if not isinstance(action, Drain | Stop):
            continue
        victim = fleet.replicas[action.replica]
        owner = models[victim.model]
        if action.reason == "idle" or not action.reason.startswith("making room for "):
            continue
        asker = action.reason.removeprefix("making room for ")
        assert models[asker].priority >= owner.priority
        assert not victim.unknown
        if models[asker].priority > owner.priority or victim.phase is Phase.SLEEPING:
            continue
        assert victim.phase is Phase.READY and victim.ready_at is not None and not owner.min_replicas
        assert NOW - victim.ready_at >= owner.residency_min_s
        assert victim.idle_at is not None or waiting[asker] >= owner.turn_max_s
        assert isinstance(action, Drain) and action.patient


@settings(deadline=None)
@given(crowd=crowds())
def test_nobody_starts_or_wakes_and_is_sent_away_in_one_pass(crowd: tuple[Fleet, dict[str, Deployment]]) -> None:
    fleet, models = crowd
    replicas = [action.replica for action in decide(models, fleet, NOW) if not isinstance(action, Pull)]
    assert len(replicas) == len({*replicas})


@settings(deadline=None)
@given(crowd=crowds())
def test_no_gpu_is_promised_twice_and_everybody_in_line_is_told(crowd: tuple[Fleet, dict[str, Deployment]]) -> None:
    fleet, models = crowd
    actions = decide(models, fleet, NOW)
    assert actions == decide(models, fleet, NOW)
    launches = {a.model: a for a in actions if isinstance(a, Launch)}
    for one in fleet.gpus:
        held = [r for r in fleet.replicas.values() if one.uuid in r.gpus]
        leased = sum(launch.gpu_bytes for launch in launches.values() if one.uuid in launch.gpus)
        rest = sum(2 * 2**30 if r.phase is Phase.SLEEPING else one.memory_bytes for r in held)
        assert leased + rest <= one.memory_bytes or not leased
    found = waits(models, fleet, NOW)
    assert sorted(w.place for w in found.values()) == list(range(1, len(found) + 1))
    in_line = {name for name in fleet.tracks if not fleet.of(name)}
    assert in_line <= {*found, *launches}
    assert all(wait.seconds > 0 for wait in found.values())
