"""Every branch of `decide`, at the edges of its bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.actions import Action, Drain, Launch, Pull, Stop
from orchestrator.decide import DEMAND_S_MIN, ORPHAN_GRACE_S, decide, wanted
from orchestrator.gpu import Gpu
from orchestrator.model import Backoff, Demand, Deployment, Fleet, Phase, Weights, WeightsState
from tests.values import PRESENT, deployment, fleet, replica

ABSENT = Weights(state=WeightsState.ABSENT)
ASKED = Demand(asked_at=50.0)
GB = 10**9


def actions(known: Fleet, now: float = 60.0, **settings: Any) -> tuple[Action, ...]:
    return decide({"m": deployment(**settings)}, known, now)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (fleet(demand=ASKED), [Launch]),
        (fleet(demand=ASKED, weights=ABSENT), [Pull]),
        (fleet(demand=ASKED, weights=Weights(state=WeightsState.PULLING)), []),
        (fleet(demand=ASKED, weights=Weights(state=WeightsState.FAILED)), [Pull]),
        (fleet(demand=Demand()), []),
        (fleet(demand=Demand(held=1)), [Launch]),
        (fleet(demand=Demand(held=1), known=False), []),
        (fleet(demand=Demand(pull_at=50.0), weights=ABSENT), [Pull]),
        (fleet(demand=Demand(pull_at=50.0), weights=ABSENT, backoff={"m": Backoff(failed_at=55.0)}), []),
        (fleet(demand=ASKED, backoff={"m": Backoff(failures=1, retry_at=61.0)}), []),
        (fleet(demand=ASKED, backoff={"m": Backoff(failures=1, retry_at=60.0)}), [Launch]),
        (fleet(replica(Phase.STARTING), demand=ASKED), []),
        (fleet(replica(Phase.FAILED, error="x"), demand=ASKED), [Stop]),
        (fleet(replica(Phase.READY, idle_at=0.0)), []),
        (fleet(replica(Phase.DRAINING, idle_at=0.0)), [Stop]),
        (fleet(replica(Phase.DRAINING, idle_at=None, phase_at=59.0)), []),
        (fleet(replica(Phase.DRAINING, idle_at=None, phase_at=30.0)), [Stop]),
        (fleet(replica(Phase.READY, spec="other")), [Drain]),
        (fleet(replica(Phase.STARTING, spec="other")), [Stop]),
        (fleet(replica(Phase.READY), demand=Demand(stop_at=10.0)), [Drain]),
        (fleet(replica(Phase.READY, created_at=20.0), demand=Demand(stop_at=10.0)), []),
        (fleet(replica(Phase.READY, "a"), replica(Phase.READY, "b", created_at=1.0)), [Drain]),
    ],
)
def test_actions(known: Fleet, expected: list[type]) -> None:
    assert [type(action) for action in actions(known)] == expected


def test_idle_is_drained_at_the_timeout_and_not_before() -> None:
    known = fleet(replica(Phase.READY, idle_at=0.0))
    assert actions(known, now=99.9) == ()
    assert actions(known, now=100.0) == (Drain(model="m", replica="m-b-0", reason="idle"),)


@pytest.mark.parametrize(
    "known",
    [
        fleet(replica(Phase.READY, idle_at=None)),
        fleet(replica(Phase.READY, idle_at=0.0), demand=Demand(held=1)),
    ],
)
def test_used_or_awaited_replicas_are_never_idle(known: Fleet) -> None:
    assert actions(known, now=1e6) == ()


def test_min_replicas_keeps_it_warm_until_stopped_by_hand() -> None:
    assert actions(fleet(replica(Phase.READY, idle_at=0.0)), now=1e6, min_replicas=1) == ()
    assert [type(a) for a in actions(fleet(), min_replicas=1)] == [Launch]
    assert actions(fleet(demand=Demand(stop_at=10.0)), min_replicas=1) == ()
    assert [type(a) for a in actions(fleet(demand=Demand(stop_at=10.0, asked_at=11.0)), min_replicas=1)] == [Launch]


def test_demand_is_met_by_being_ready_and_forgotten_in_the_end() -> None:
    model = deployment()
    assert wanted(model, fleet(demand=ASKED), 149.9)
    assert not wanted(model, fleet(demand=ASKED), 150.0)
    assert not wanted(model, fleet(demand=ASKED, served_at={"m": 50.0}), 60.0)
    assert wanted(model, fleet(demand=ASKED, weights_at={"m": 900.0}), 999.0)  # the pull took long
    hasty = replace(model, idle_timeout_s=0.0)
    assert wanted(hasty, fleet(demand=ASKED), 50.0 + DEMAND_S_MIN - 0.1)


def test_a_model_that_is_no_longer_configured_leaves() -> None:
    assert [type(a) for a in decide({}, fleet(replica(Phase.READY)), 1.0)] == [Drain]


def test_an_orphan_is_left_alone_for_its_grace() -> None:
    known = fleet(replica(Phase.STARTING, adopted=True, created_at=10.0))
    assert decide({}, known, 10.0 + ORPHAN_GRACE_S - 0.1) == ()
    assert [type(a) for a in decide({}, known, 10.0 + ORPHAN_GRACE_S)] == [Stop]
    assert [type(a) for a in decide({}, known, 10.0, orphan_grace_s=0.0)] == [Stop]


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.DRAINING])
def test_an_orphan_that_has_ended_is_cleared_at_once(phase: Phase) -> None:
    known = fleet(replica(phase, adopted=True, ready_at=None))
    assert [type(a) for a in decide({}, known, 1.0)] == [Stop]


def test_grace_is_for_orphans_only() -> None:
    """Not for what we started, nor for what was configured when we found it, nor for what is configured otherwise."""
    assert [type(a) for a in decide({}, fleet(replica(Phase.STARTING)), 1.0)] == [Stop]
    assert [type(a) for a in decide({}, fleet(replica(Phase.READY, adopted=True)), 1.0)] == [Drain]
    other = fleet(replica(Phase.STARTING, adopted=True, spec="other"))
    assert [type(a) for a in actions(other, now=1.0)] == [Stop]


def test_gpus_are_leased_once_by_priority_then_patience() -> None:
    models = {
        name: deployment(name, gpus=1, priority=priority)
        for name, priority in (("late", 0), ("early", 0), ("urgent", 5), ("big", 9))
    }
    models["big"] = replace(models["big"], gpus=4)
    gpus = (*(Gpu(uuid=f"G{n}", memory_bytes=80 * GB, free_bytes=80 * GB) for n in range(3)),)
    gpus = (*gpus, Gpu(uuid="G3", memory_bytes=80 * GB, free_bytes=80 * GB, healthy=False))
    asked = {"late": 30.0, "early": 10.0, "urgent": 40.0, "big": 1.0}
    busy = replica(Phase.READY, "other", of=deployment("other"), gpus=("G0",), idle_at=None)
    known = Fleet(
        known=True,
        replicas={"other": busy},
        weights=dict.fromkeys(models, PRESENT),
        demand={name: Demand(asked_at=at) for name, at in asked.items()},
        gpus=gpus,
    )
    launches = [a for a in decide({**models, "other": deployment("other")}, known, 50.0) if isinstance(a, Launch)]
    assert [(a.model, a.gpus) for a in launches] == [("urgent", ("G1",)), ("early", ("G2",))]
    assert len({a.replica for a in launches}) == 2


def test_same_values_same_actions() -> None:
    models: dict[str, Deployment] = {"m": deployment()}
    known = fleet(demand=ASKED)
    assert decide(models, known, 60.0) == decide(models, known, 60.0)
