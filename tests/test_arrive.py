"""Who starts, wakes, waits or makes room: the line for GPUs, by table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.actions import Action, Drain, Launch, Pull, Stop, Wake
from orchestrator.arrive import BLOCKED_S, FINISH_S
from orchestrator.decide import decide, waits
from orchestrator.gpu import Gpu, Lent, Need
from orchestrator.model import Demand, Deployment, Fleet, IdleAction, Phase, Replica, Track
from orchestrator.victims import LEAVE_S, START_S
from tests.gpus import GB, gpu, holder, machine, need
from tests.values import PRESENT, deployment

NOW = 1000.0
WHOLE = need()


def model(name: str, **more: Any) -> Deployment:
    """Stays 60 s, gives way after 120 s when busy, leaves after 300 s of idleness."""
    return deployment(name, **{"gpus": None, "idle_timeout_s": 300.0, **more})


def on(name: str, *gpus: int, ready_s: float = 500, idle_s: float | None = 100, **more: Any) -> Replica:
    """A replica of `name` that has been ready, and idle, for so long; None: requests are in flight."""
    times = {"ready_at": NOW - ready_s, "idle_at": None if idle_s is None else NOW - idle_s, "created_at": NOW - 600}
    return holder(name, *gpus, **{"phase_at": NOW - ready_s, **times, **more})


def starting(name: str, *gpus: int, for_s: float = 10, **more: Any) -> Replica:
    """One that has been starting for so long."""
    times = {"created_at": NOW - for_s, "phase_at": NOW - for_s}
    return holder(name, *gpus, phase=Phase.STARTING, **{**times, **more})


def asleep(name: str, *gpus: int, for_s: float = 50, **more: Any) -> Replica:
    """A sleeper."""
    return holder(name, *gpus, phase=Phase.SLEEPING, phase_at=NOW - for_s, created_at=NOW - 600, **more)


def known(
    gpus: tuple[Gpu, ...],
    *replicas: Replica,
    waiting: Mapping[str, float] | None = None,
    needs: Mapping[str, Need] | None = None,
    models: Mapping[str, Deployment] | None = None,
    foreign: Mapping[str, float] | None = None,
    **more: Any,
) -> Fleet:
    """`waiting`: who has been in line for so many seconds. Who is not named needs one whole GPU."""
    waiting, names = waiting or {}, {*(models or {}), *(r.model for r in replicas), *(waiting or {})}
    base: dict[str, Any] = {
        "known": True,
        "gpus": gpus,
        "replicas": {r.id: r for r in replicas},
        "weights": dict.fromkeys(names, PRESENT),
        "demand": {name: Demand(asked_at=NOW - 0.5) for name in waiting},
        "tracks": {name: Track(phase=Phase.QUEUED, phase_at=NOW - since) for name, since in waiting.items()},
        "needs": {name: (needs or {}).get(name, WHOLE) for name in names},
        "lent": {uuid: Lent(foreign_bytes=int(used * GB)) for uuid, used in (foreign or {}).items()},
    }
    return Fleet(**{**base, **more})


def told(action: Action) -> str:
    match action:
        case Launch(model=name, gpus=gpus):
            return f"{name} on {' '.join(gpus)}" if gpus else f"{name} anywhere"
        case Wake(model=name):
            return f"{name} wakes"
        case Drain(model=name, patient=True, then=IdleAction.SLEEP):
            return f"{name} dozes off"
        case Drain(model=name, patient=True):
            return f"{name} leaves"
        case Stop(model=name):
            return f"{name} ends"
    return str(action)


def line(
    fleet: Fleet, models: Mapping[str, Deployment] | None = None
) -> tuple[list[str], dict[str, tuple[int, float]]]:
    """What happens, and who waits: place and seconds."""
    everyone = {name: model(name) for name in fleet.needs} | dict(models or {})
    fleet = current(fleet, everyone)
    happens = [told(action) for action in decide(everyone, fleet, NOW)]
    return happens, {name: (w.place, w.seconds) for name, w in waits(everyone, fleet, NOW).items()}


def current(fleet: Fleet, models: Mapping[str, Deployment]) -> Fleet:
    """All of them run with the settings of now."""
    return replace(fleet, replicas={r.id: replace(r, spec=models[r.model].spec) for r in fleet.replicas.values()})


def happens(fleet: Fleet, **models: Deployment) -> list[str]:
    return line(fleet, models)[0]


ONE, TWO, FOUR = machine(80), machine(80, 80), machine(80, 80, 80, 80)


# --- room ---


def test_who_fits_starts_in_turn() -> None:
    fleet = known(TWO, waiting={"a": 10, "b": 30, "c": 20})
    assert line(fleet) == (["b on G0", "c on G1"], {"a": (1, START_S + 60 + LEAVE_S)})


def test_no_gpu_is_given_twice_in_one_pass() -> None:
    needs = dict.fromkeys("abc", need(30, 35))
    assert happens(known(ONE, waiting={"a": 3, "b": 2, "c": 1}, needs=needs)) == ["a on G0", "b on G0"]


def test_those_that_need_no_gpu_never_wait() -> None:
    fleet = known(ONE, on("x", 0), waiting={"cpu": 1}, needs={"cpu": Need()})
    assert line(fleet, {"cpu": model("cpu", gpus=0)}) == (["cpu anywhere"], {})


def test_one_whose_folder_is_still_read_is_not_in_line_yet() -> None:
    fleet = known(ONE, waiting={"a": 1})
    unread = Fleet(known=True, gpus=ONE, weights=fleet.weights, demand=fleet.demand)
    assert decide({"a": model("a")}, unread, NOW) == ()
    assert [told(a) for a in decide({"a": model("a", gpus=1)}, unread, NOW)] == ["a on G0"]


def test_hosts() -> None:
    gpus = (gpu(0, host="a"), gpu(0, host="b"), gpu(1, host="b"))
    fleet = known(gpus, waiting={"one": 2, "two": 3}, needs={"two": need(60, gpus=2)}, places=("a", "b"))
    launches = [a for a in decide({"one": model("one"), "two": model("two")}, fleet, NOW) if isinstance(a, Launch)]
    assert [(a.model, a.host, a.gpus) for a in launches] == [("two", "b", ("bG0", "bG1")), ("one", "a", ("aG0",))]


def test_sick_gpus_are_not_given() -> None:
    fleet = known((gpu(0, healthy=False), gpu(1)), waiting={"a": 2, "b": 1})
    assert line(fleet) == (["a on G1"], {"b": (1, START_S + 60 + LEAVE_S)})


def test_foreign_memory_is_not_given() -> None:
    fleet = known(ONE, waiting={"a": 1}, foreign={"G0": 40})
    assert line(fleet) == ([], {"a": (1, BLOCKED_S)})


# --- eviction ---

BUSY: dict[str, Any] = {"idle_s": None}
YOUNG: dict[str, Any] = {"ready_s": 20, "idle_s": 20}


@pytest.mark.parametrize(
    ("replicas", "waited_s", "expected", "seconds"),
    [
        # idle ones, the least recently used first
        ([on("x", 0, idle_s=100), on("y", 1, idle_s=200)], 1, ["y leaves"], LEAVE_S),
        ([on("x", 0, idle_s=200), on("y", 1, idle_s=100)], 1, ["x leaves"], LEAVE_S),
        # never a young one
        ([on("x", 0, ready_s=20, idle_s=20), on("y", 1, idle_s=5)], 1, ["y leaves"], LEAVE_S),
        ([on("x", 0, ready_s=20, idle_s=20), on("y", 1, ready_s=30, idle_s=5)], 1, [], 30 + LEAVE_S),
        ([on("x", 0, ready_s=60, idle_s=60)], 1, ["x leaves"], LEAVE_S),
        ([on("x", 0, ready_s=59.5, idle_s=1)], 1, [], 0.5 + LEAVE_S),
        # never one with requests in flight, before its turn is over
        ([on("x", 0, **BUSY), on("y", 1, idle_s=0)], 1, ["y leaves"], LEAVE_S),
        ([on("x", 0, **BUSY), on("y", 1, **BUSY)], 50, [], 70 + FINISH_S),
        ([on("x", 0, **BUSY), on("y", 1, **BUSY)], 120, ["x leaves"], FINISH_S),
        ([on("x", 0, **BUSY), on("y", 1, idle_s=0)], 500, ["y leaves"], LEAVE_S),
        ([on("x", 0, idle_s=None, ready_s=20), on("y", 1, **BUSY)], 120, ["y leaves"], FINISH_S),
        ([on("x", 0, idle_s=None, ready_s=20)], 500, [], 40 + FINISH_S),
        # one that starts has its turn first
        ([starting("x", 0)], 500, [], START_S - 10 + 60 + LEAVE_S),
        ([starting("x", 0, for_s=200)], 500, [], LEAVE_S + 60 + LEAVE_S),
        # somebody is leaving already
        ([on("x", 0, phase=Phase.DRAINING, patient=True, idle_s=None), on("y", 1)], 1, [], FINISH_S),
        ([on("x", 0, phase=Phase.DRAINING, unknown=True), on("y", 1)], 1, ["y leaves"], LEAVE_S),
        # nobody knows what runs on a silent host
        ([on("x", 0, unknown=True)], 500, [], BLOCKED_S),
    ],
)
def test_one_of_the_same_priority(
    replicas: list[Replica], waited_s: float, expected: list[str], seconds: float
) -> None:
    gpus = machine(*[80] * len(replicas))
    assert line(known(gpus, *replicas, waiting={"a": waited_s})) == (expected, {"a": (1, seconds)})


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ([on("low", 0, **YOUNG)], ["low dozes off"]),
        ([on("low", 0, **BUSY)], ["low dozes off"]),
        ([starting("low", 0)], ["low ends"]),
        ([on("low", 0, **BUSY), on("same", 1, idle_s=1)], ["same leaves"]),  # nobody's requests have to end for it
        ([on("low", 0, idle_s=1), on("same", 1, idle_s=99)], ["low dozes off"]),
        ([on("low", 0, **BUSY), on("same", 1, **YOUNG)], ["low dozes off"]),
        ([on("high", 0, idle_s=290)], []),
        ([on("high", 0, idle_s=290), on("low", 1, **BUSY)], ["low dozes off"]),
        ([asleep("high", 0), on("same", 1, **YOUNG)], ["a on G0"]),
        ([asleep("low", 0), on("same", 1, **YOUNG)], ["a on G0"]),
    ],
)
def test_priorities(replicas: list[Replica], expected: list[str]) -> None:
    models = {"a": model("a", priority=1), "low": sleepy("low"), "same": model("same", priority=1)}
    models["high"] = model("high", priority=2, idle_action=IdleAction.SLEEP)
    gpus = machine(*[80] * len(replicas))
    assert happens(known(gpus, *replicas, waiting={"a": 1}, models=models), **models) == expected


def test_nobody_is_sent_away_before_it_could_serve_whatever_is_configured() -> None:
    hasty = model("x", residency_min_s=0.0, turn_max_s=0.0)
    assert happens(known(ONE, on("x", 0, ready_s=1, idle_s=None), waiting={"a": 900}), x=hasty) == []
    assert happens(known(ONE, on("x", 0, ready_s=2, idle_s=None), waiting={"a": 900}), x=hasty) == ["x leaves"]


def test_held_requests_make_a_model_busy() -> None:
    fleet = known(TWO, on("x", 0, idle_s=200), on("y", 1, idle_s=100), waiting={"a": 1})
    held = {**fleet.demand, "x": Demand(held=1)}
    assert happens(replace(fleet, demand=held)) == ["y leaves"]


def test_what_is_kept_warm_leaves_for_a_higher_priority_only() -> None:
    fleet = known(ONE, on("warm", 0), waiting={"a": 500})
    warm = model("warm", min_replicas=1)
    assert line(fleet, {"warm": warm}) == ([], {"a": (1, BLOCKED_S)})
    assert happens(fleet, warm=warm, a=model("a", priority=1)) == ["warm leaves"]


def test_a_higher_priority_leaves_when_it_is_idle_for_long() -> None:
    fleet = known(ONE, on("high", 0, idle_s=100), waiting={"a": 500})
    assert line(fleet, {"high": model("high", priority=1)}) == ([], {"a": (1, 200 + LEAVE_S)})


def test_only_those_in_the_way_leave() -> None:
    gpus = machine(24, 80)
    fleet = known(gpus, on("x", 0, idle_s=200), on("y", 1, idle_s=100), waiting={"a": 1}, needs={"a": need(50)})
    assert happens(fleet) == ["y leaves"]


def test_the_wait_is_for_those_in_the_way() -> None:
    """A young model on a GPU that is too small tells nothing."""
    gpus = machine(24, 80)
    small, large = on("x", 0, ready_s=59, idle_s=1), on("y", 1, ready_s=20, idle_s=1)
    fleet = known(gpus, small, large, waiting={"a": 1}, needs={"a": need(50)})
    assert line(fleet) == ([], {"a": (1, 40 + LEAVE_S)})


# --- two askers ---


def test_two_askers_send_two_away() -> None:
    fleet = known(TWO, on("x", 0), on("y", 1), waiting={"a": 2, "b": 1})
    assert line(fleet)[0] == ["x leaves", "y leaves"]


def test_who_comes_second_does_not_get_what_is_freed_for_the_first() -> None:
    leaving = on("x", 0, phase=Phase.DRAINING, idle_s=None, patient=True)
    fleet = known(ONE, leaving, waiting={"first": 20, "second": 10})
    assert line(fleet)[1] == {"first": (1, FINISH_S), "second": (2, FINISH_S + START_S + 60 + LEAVE_S)}
    gone = known(ONE, waiting={"first": 20, "second": 10})
    assert happens(gone) == ["first on G0"]


def test_a_higher_priority_comes_first_however_late() -> None:
    fleet = known(ONE, waiting={"first": 200, "high": 1})
    assert happens(fleet, high=model("high", priority=1)) == ["high on G0"]


@pytest.mark.parametrize(
    "replicas",
    [
        [on("x", 1, ready_s=30, idle_s=30)],  # one GPU is free, on the other somebody is young
        [on("x", 0, ready_s=500), on("y", 1, ready_s=30, idle_s=30)],
        [on("x", 0, ready_s=500), starting("y", 1)],
        [on("x", 0, ready_s=500), on("y", 1, **BUSY)],
        [on("x", 0, phase=Phase.DRAINING), on("y", 1, ready_s=30, idle_s=30)],
    ],
)
def test_a_large_model_is_not_starved_by_small_ones(replicas: list[Replica]) -> None:
    """Nothing that it waits for is given to the small one behind it, and nobody is sent away for that."""
    fleet = known(TWO, *replicas, waiting={"large": 20, "small": 10}, needs={"large": need(60, gpus=2)})
    found, waiting = line(fleet)
    assert not [said for said in found if said.startswith("small") or said.endswith("leaves")]
    assert waiting["large"][0] == 1 and waiting["small"][0] == 2
    assert waiting["small"][1] > waiting["large"][1]


def test_what_nobody_can_promise_is_not_kept_from_others() -> None:
    """The large one waits for a higher priority, perhaps for ever; the small one need not."""
    high = on("high", 1, **BUSY)
    fleet = known(TWO, high, waiting={"large": 20, "small": 10}, needs={"large": need(60, gpus=2)})
    assert happens(fleet, high=model("high", priority=1)) == ["small on G0"]


def test_places_and_seconds_grow_along_the_line() -> None:
    waiting = {f"w{n}": 50.0 - n for n in range(4)}
    found, told_waits = line(known(ONE, on("x", 0), waiting=waiting))
    assert found == ["x leaves"]
    assert [told_waits[name][0] for name in waiting] == [1, 2, 3, 4]
    turn = START_S + 60 + LEAVE_S
    assert [told_waits[name][1] for name in waiting] == [LEAVE_S + n * turn for n in range(4)]


def test_two_gpus_serve_the_line_twice_as_fast() -> None:
    waiting = {f"w{n}": 50.0 - n for n in range(4)}
    seconds = [s for _, s in line(known(TWO, on("x", 0), on("y", 1), waiting=waiting))[1].values()]
    assert seconds == [LEAVE_S, LEAVE_S, *[LEAVE_S + START_S + 60 + LEAVE_S] * 2]


# --- sleep ---


def sleepy(name: str) -> Deployment:
    return model(name, idle_action=IdleAction.SLEEP)


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
