"""Every branch of `decide`, at the edges of its bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.actions import Action, Drain, Launch, Pull, Stop, Wake
from orchestrator.decide import DEMAND_S_MIN, FEWER, ORPHAN_GRACE_S, decide, wanted, wished
from orchestrator.gpu import Gpu
from orchestrator.model import Backoff, Demand, Deployment, Fleet, IdleAction, Phase, Replica, Weights, WeightsState
from orchestrator.scaling import Scaling
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
        (fleet(replica(Phase.READY, created_at=20.0, adopted=True), demand=Demand(stop_at=10.0)), [Drain]),
        (fleet(replica(Phase.READY, created_at=20.0, adopted=True), demand=Demand(stop_at=10.0, asked_at=11.0)), []),
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


# --- several replicas ---


def ready(id: str, created_at: float = 0.0, idle_at: float | None = None, **more: Any) -> Replica:
    """One with requests in flight, unless told since when it has none."""
    busy = {"in_flight": 1} if idle_at is None else {}
    return replica(Phase.READY, id, created_at=created_at, idle_at=idle_at, **{**busy, **more})


def asks(desired: int | None, *replicas: Replica, **more: Any) -> Fleet:
    """A fleet whose load asks for so many."""
    return fleet(*replicas, scaling={"m": Scaling(desired=desired)}, **more)


A, B, C = ready("a"), ready("b", 1.0), ready("c", 2.0)


def said(known: Fleet, now: float = 60.0, **settings: Any) -> list[str]:
    """`+` for a start, else who leaves, or wakes, and how."""
    told = []
    for action in actions(known, now, **{"max_replicas": 3, **settings}):
        match action:
            case Launch():
                told.append("+")
            case Drain(replica=id, reason=reason):
                told.append(f"drain {id}: {reason}")
            case Stop(replica=id, reason=reason):
                told.append(f"stop {id}: {reason}")
            case Wake(replica=id):
                told.append(f"wake {id}")
            case _:
                told.append(str(action))
    return told


FAILING = Backoff(failures=3, failed_at=50.0, retry_at=70.0, error="no")


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (asks(1, A), []),
        (asks(2, A), ["+"]),
        (asks(9, A, B), ["+"]),  # one launch at a time: the next when this one has landed
        (asks(9, A, B, C), []),  # no more than max_replicas
        (asks(2, A, replica(Phase.STARTING, "b", seen=False, landed_at=None)), []),
        (asks(3, A, replica(Phase.STARTING, "b", seen=False, landed_at=None)), []),
        (asks(3, A, replica(Phase.STARTING, "b")), ["+"]),
        (asks(3, A, B, replica(Phase.DRAINING, "c", idle_at=None, phase_at=59.0)), []),  # three engines are there
        (asks(2, A, replica(Phase.FAILED, "b", error="x")), ["stop b: x", "+"]),
        (asks(2, A, backoff={"m": FAILING}), []),  # and a stays
        (asks(2, A, replica(Phase.SLEEPING, "b")), ["wake b"]),
        (asks(2, A, demand=Demand(stop_at=5.0, asked_at=4.0)), ["drain a: stopped by hand"]),
        (asks(None, A, B), []),  # nothing is known of its load: as many as there are
        (asks(0, A), []),  # the last leaves when it is idle for long
        (asks(1, A, B, C), [f"drain c: {FEWER}"]),  # the newest of equals, and only one
        (asks(2, A, ready("b", 1.0, in_flight=9), C), [f"drain c: {FEWER}"]),
        (asks(2, A, ready("b", 1.0, in_flight=9), ready("c", 2.0, in_flight=9)), [f"drain a: {FEWER}"]),
        (asks(1, A, B, replica(Phase.STARTING, "c")), [f"stop c: {FEWER}"]),  # who starts is missed least
        (asks(1, A, B, replica(Phase.DRAINING, "c", idle_at=None, phase_at=59.0)), []),  # one leaves at a time
        (asks(3, A, B, C, ready("d", 3.0)), ["drain d: one more than max_replicas"]),
        (asks(1, A, B, C, ready("d", 3.0)), ["drain d: one more than max_replicas"]),
        (
            asks(4, ready("a", in_flight=1), *(ready(id, 1.0, in_flight=2) for id in "bcd")),
            ["drain a: one more than max_replicas"],
        ),
        (asks(2, ready("a", idle_at=0.0), B), []),  # a has nothing to do since b had room
        (asks(2, A, B, demand=Demand(held=3)), []),
    ],
)
def test_several(known: Fleet, expected: list[str]) -> None:
    assert said(known) == expected


def test_an_idle_model_goes_as_a_whole_but_for_what_is_kept_warm() -> None:
    idle = asks(2, ready("a", idle_at=0.0), ready("b", 1.0, idle_at=50.0))
    assert said(idle, now=149.9) == []
    assert said(idle, now=150.0) == ["drain a: idle", "drain b: idle"]
    assert said(idle, now=150.0, min_replicas=1) == ["drain b: idle"]
    assert said(idle, now=150.0, min_replicas=2) == []


@pytest.mark.parametrize(("minimum", "expected"), [(1, ["+"]), (2, ["+"]), (3, ["+"])])
def test_from_nothing_one_start_after_the_other(minimum: int, expected: list[str]) -> None:
    assert said(fleet(), min_replicas=minimum) == expected
    assert said(fleet(A), min_replicas=minimum) == ([] if minimum == 1 else ["+"])


def test_who_leaves_for_want_of_work_sleeps_where_it_can() -> None:
    models = {"m": deployment(max_replicas=2, idle_action=IdleAction.SLEEP)}
    known = asks(1, *(replace(r, spec=models["m"].spec) for r in (A, B)))
    [drain] = decide(models, known, 60.0)
    assert isinstance(drain, Drain) and (drain.replica, drain.then) == ("b", IdleAction.SLEEP)


def test_replicas_with_settings_of_old_are_replaced_one_by_one() -> None:
    old: dict[str, Any] = {"spec": "old", "stale_at": 10.0}
    a, b = ready("a", **old), ready("b", 1.0, **old)
    changed = "its settings changed"
    assert said(asks(2, a, b)) == [f"drain b: {changed}"]
    assert said(asks(2, a, replica(Phase.DRAINING, "b", idle_at=None, phase_at=59.0))) == ["+"]
    assert said(asks(2, a)) == ["+"]
    assert said(asks(2, a, replica(Phase.STARTING, "c"))) == []
    assert said(asks(2, a, C)) == [f"drain a: {changed}"]
    assert said(asks(2, a, replica(Phase.STARTING, "b", **old))) == [f"stop b: {changed}"]
    assert said(asks(1, a)) == [f"drain a: {changed}"]  # the only one
    assert said(asks(2, a), max_replicas=1) == [f"drain a: {changed}"]
    late = asks(2, a, backoff={"m": FAILING})
    assert said(late, now=69.0) == []  # those that serve do, while the new settings fail
    assert said(late, now=69.0, start_timeout_s=50.0) == [f"drain a: {changed}"]
    assert said(asks(2, a, b, demand=Demand(stop_at=5.0))) == ["drain a: stopped by hand", "drain b: stopped by hand"]


@pytest.mark.parametrize(
    ("known", "settings", "count"),
    [
        (asks(5), {}, 0),
        (asks(5, demand=ASKED), {}, 3),
        (asks(None, demand=ASKED), {}, 1),
        (asks(None), {"min_replicas": 2}, 2),
        (asks(5, A), {}, 3),
        (asks(0, A), {}, 1),
        (asks(2, A), {"max_replicas": 1}, 1),
        (asks(3, A, demand=Demand(stop_at=5.0)), {}, 0),
        (asks(2, A, demand=Demand(stop_at=5.0, held=1)), {}, 2),
    ],
)
def test_wished(known: Fleet, settings: dict[str, Any], count: int) -> None:
    assert wished(deployment(**{"max_replicas": 3, **settings}), known, 60.0) == count


LIVE = (Phase.STARTING, Phase.LOADING, Phase.READY, Phase.SLEEPING)


@st.composite
def crews(draw: st.DrawFn) -> tuple[Fleet, Deployment]:
    """Up to six replicas of one model, in any state."""
    most = draw(st.integers(1, 5))
    model = deployment(max_replicas=most, min_replicas=draw(st.integers(0, most)))
    replicas = []
    for n in range(draw(st.integers(0, 6))):
        phase = draw(st.sampled_from((*LIVE, Phase.READY, Phase.DRAINING, Phase.FAILED)))
        stale = {"spec": "old", "stale_at": 50.0} if draw(st.integers(0, 4)) == 0 else {}
        busy = {"idle_at": draw(st.sampled_from((None, 0.0, 55.0)))} if phase is Phase.READY else {}
        replicas.append(replica(phase, f"r{n}", of=model, **{"created_at": float(n), **stale, **busy}))
    demand = draw(st.sampled_from((Demand(), ASKED, Demand(held=2), Demand(stop_at=2.0))))
    backoff = {"m": FAILING} if draw(st.booleans()) else {}
    return asks(draw(st.sampled_from((None, 0, 1, 2, 9))), *replicas, demand=demand, backoff=backoff), model


@given(crew=crews())
def test_replicas_come_and_go_one_by_one(crew: tuple[Fleet, Deployment]) -> None:
    known, model = crew
    found = decide({"m": model}, known, 60.0)
    starts = [a for a in found if isinstance(a, Launch)]
    reasons = {a.replica: a.reason for a in found if isinstance(a, Drain | Stop)}
    fewer = [id for id, reason in reasons.items() if reason == FEWER]
    assert len(starts) + len([a for a in found if isinstance(a, Wake)]) <= 1
    assert not starts or len(known.replicas) < model.max_replicas
    assert not starts or not known.backoff
    assert len(fewer) <= 1
    live = [r for r in known.replicas.values() if r.phase in LIVE]
    if fewer:
        assert len(live) == len(known.replicas)  # nobody is leaving yet
        assert [r for r in live if r.id not in reasons and r.phase is not Phase.SLEEPING]
    if not known.demand["m"].stop_at:
        stay = [r for r in live if r.id not in reasons]
        assert len(stay) >= min(model.min_replicas, len([r for r in live if r.spec == model.spec]), model.max_replicas)
