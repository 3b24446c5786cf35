"""One more replica of a model that is served, in the line for GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.actions import Drain, Stop
from orchestrator.decide import decide
from orchestrator.model import Deployment, Fleet, Replica
from orchestrator.scaling import Scaling
from tests.gpu_line import FOUR, NOW, TWO, asleep, current, known, line, model, on, starting, told
from tests.gpus import machine, need


def many(name: str, desired: int = 2, **more: Any) -> dict[str, Any]:
    """A model that may have three replicas, and the load that asks for so many."""
    return {"models": {name: model(name, max_replicas=3, **more)}, "scaling": {name: Scaling(desired=desired)}}


def pair(name: str, *gpus: int, **more: Any) -> list[Replica]:
    """Replicas of a model, the oldest first."""
    return [replace(on(name, gpu, created_at=NOW - 600 + gpu, **more), id=f"{name}-{gpu}") for gpu in gpus]


def what(fleet: Fleet, models: Mapping[str, Deployment]) -> list[str]:
    """What happens, by replica where somebody leaves; nobody waits."""
    everyone = {name: model(name) for name in fleet.needs} | dict(models)
    actions = decide(everyone, current(fleet, everyone), NOW)
    return [f"{told(a)} ({a.replica})" if isinstance(a, Drain | Stop) else told(a) for a in actions]


def test_one_more_starts_where_there_is_room() -> None:
    busy = many("m")
    fleet = known(TWO, on("m", 0, idle_s=None), scaling=busy["scaling"])
    assert line(fleet, busy["models"]) == (["m on G1"], {})


@pytest.mark.parametrize("priority", [0, 9])
def test_one_more_has_nobodys_only_replica_make_room(priority: int) -> None:
    busy = many("m", priority=priority)
    other = on("other", 1, ready_s=9999, idle_s=200)
    assert line(known(TWO, on("m", 0, idle_s=None), other, scaling=busy["scaling"]), busy["models"]) == ([], {})


def test_one_more_has_sleepers_and_spare_ones_of_a_lower_priority_make_room() -> None:
    busy = many("m", priority=1)
    mine = on("m", 0, idle_s=None)
    others = pair("other", 1, 2, idle_s=None)
    two = model("other", max_replicas=2)
    models = busy["models"] | {"other": two}
    fleet = known(machine(80, 80, 80), mine, *others, scaling=busy["scaling"])
    assert what(fleet, models) == ["other leaves (other-2)"]
    assert what(fleet, models | {"other": replace(two, priority=1)}) == []
    assert what(fleet, models | {"other": replace(two, min_replicas=2)}) == []
    dozing = known(TWO, mine, asleep("other", 1), needs={"m": need(79)}, scaling=busy["scaling"])
    assert what(dozing, models) == ["other ends (other)"]


def test_spare_replicas_make_room_first_and_at_once() -> None:
    """Not the idle only one of another model, however long it has been idle."""
    both = {"pair": model("pair", max_replicas=2)}
    spare = pair("pair", 0, 1, idle_s=None, ready_s=1)
    fleet = known(machine(80, 80, 80), *spare, on("idle", 2, idle_s=250), waiting={"w": 0.0})
    assert what(fleet, both) == ["pair leaves (pair-1)"]
    lower = known(machine(80, 80, 80), *spare, on("idle", 2, idle_s=250), waiting={"w": 0.0})
    assert what(lower, {"pair": replace(both["pair"], priority=1)}) == ["idle leaves (idle)"]


def test_one_that_starts_beside_one_that_serves_is_spare() -> None:
    both = {"pair": model("pair", max_replicas=2)}
    fleet = known(TWO, *pair("pair", 0), replace(starting("pair", 1), id="b"), waiting={"w": 0.0})
    assert what(fleet, both) == ["pair ends (b)"]


def test_who_has_none_comes_before_who_wants_one_more() -> None:
    busy = many("m", priority=9)
    fleet = known(TWO, on("m", 0, idle_s=None), waiting={"w": 0.0}, scaling=busy["scaling"])
    assert line(fleet, busy["models"]) == (["w on G1"], {})


def test_one_more_wakes_before_another_is_started() -> None:
    busy = many("m")
    mine = [*pair("m", 0), replace(asleep("m", 1), id="b")]
    assert line(known(FOUR, *mine, scaling=busy["scaling"]), busy["models"]) == (["m wakes"], {})
