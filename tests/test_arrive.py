"""Who starts, waits or makes room: the line for GPUs, by table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.actions import Launch
from orchestrator.arrive import BLOCKED_S, FINISH_S
from orchestrator.decide import decide
from orchestrator.gpu import Need
from orchestrator.model import Demand, Fleet, IdleAction, Phase, Replica
from orchestrator.victims import LEAVE_S, START_S
from tests.gpu_line import (
    BUSY,
    NOW,
    ONE,
    TWO,
    asleep,
    happens,
    known,
    line,
    model,
    on,
    sleepy,
    starting,
    told,
)
from tests.gpus import gpu, machine, need

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
