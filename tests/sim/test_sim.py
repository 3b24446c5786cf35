"""PROMISES R12, and that the simulator has teeth."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from math import ceil

import pytest

from orchestrator import arrive
from orchestrator import fleet as step
from orchestrator.actions import Action, Drain, Launch, Pull, Stop
from orchestrator.decide import FEWER, decide
from orchestrator.model import Deployment, Fleet, Phase, Sighting
from orchestrator.scaling import Scaling
from tests.sim.laws import Broken
from tests.sim.sim import Advance, Decide, Sim

Deployments = Mapping[str, Deployment]


@pytest.mark.parametrize("seed", range(6))
def test_nothing_breaks(seed: int) -> None:
    Sim(seed).run(500)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_breaks_in_two_hundred_long_runs() -> None:
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as processors:
        assert sum(processors.map(_long_run, range(200), chunksize=10)) > 0


def _long_run(seed: int) -> int:
    """Requests served in it."""
    sim = Sim(seed)
    sim.run(2000)
    return sim.served


# --- planted faults ---


def acts_in_the_dark(deployments: Deployments, fleet: Fleet, now: float) -> tuple[Action, ...]:
    return decide(deployments, replace(fleet, known=True), now)


def stops_without_draining(deployments: Deployments, fleet: Fleet, now: float) -> tuple[Action, ...]:
    def hasty(action: Action) -> Action:
        if isinstance(action, Drain):
            return Stop(model=action.model, replica=action.replica, reason=action.reason)
        return action

    return tuple(hasty(action) for action in decide(deployments, fleet, now))


def never_lets_go(deployments: Deployments, fleet: Fleet, now: float) -> tuple[Action, ...]:
    return tuple(action for action in decide(deployments, fleet, now) if not isinstance(action, Drain))


def leases_one_gpu_to_all(deployments: Deployments, fleet: Fleet, now: float) -> tuple[Action, ...]:
    actions = decide(deployments, fleet, now)
    return tuple(replace(a, gpus=("GPU-0",)) if isinstance(a, Launch) and a.gpus else a for a in actions)


def leaves_the_failed_lying(deployments: Deployments, fleet: Fleet, now: float) -> tuple[Action, ...]:
    failed = {key for key, replica in fleet.replicas.items() if replica.phase is Phase.FAILED}
    actions = decide(deployments, fleet, now)
    return tuple(a for a in actions if not (isinstance(a, Stop) and a.replica in failed))


def forgets_one_model(deployments: Deployments, fleet: Fleet, now: float) -> tuple[Action, ...]:
    return tuple(a for a in decide(deployments, fleet, now) if not (isinstance(a, Launch) and a.model == "m3"))


def never_more_than_one(deployments: Deployments, fleet: Fleet, now: float) -> tuple[Action, ...]:
    return decide(deployments, replace(fleet, scaling={}), now)


def all_leave_at_once(deployments: Deployments, fleet: Fleet, now: float) -> tuple[Action, ...]:
    actions = decide(deployments, fleet, now)
    fewer = {a.model for a in actions if isinstance(a, Drain) and a.reason == FEWER}
    known = {a.replica for a in actions if not isinstance(a, Pull)}
    up = [r for r in fleet.replicas.values() if r.model in fewer and r.phase is Phase.READY and r.id not in known]
    return (*actions, *(Drain(model=r.model, replica=r.id, reason=FEWER) for r in up))


def one_too_many(deployments: Deployments, fleet: Fleet, now: float) -> tuple[Action, ...]:
    return decide({n: replace(d, max_replicas=d.max_replicas + 1) for n, d in deployments.items()}, fleet, now)


def fewer_than_the_least(deployments: Deployments, fleet: Fleet, now: float) -> tuple[Action, ...]:
    return decide({n: replace(d, min_replicas=min(d.min_replicas, 1)) for n, d in deployments.items()}, fleet, now)


def forgets_the_window(fleet: Fleet, deployments: Deployments, seen: Sighting, now: float) -> Fleet:
    """It does as the last look says, up and down."""
    known = step.advance(replace(fleet, scaling={}), deployments, seen, now)
    calm = {name: replace(s, panic_at=None, panic_replicas=0) for name, s in known.scaling.items()}
    return replace(known, scaling={name: replace(s, desired=_of_the_last_look(s)) for name, s in calm.items()})


def _of_the_last_look(scaling: Scaling) -> int | None:
    return ceil(scaling.buckets[-1].work) if scaling.buckets else None


def does_not_adopt(fleet: Fleet, deployments: Deployments, seen: Sighting, now: float) -> Fleet:
    known = None if seen.instances is None else tuple(i for i in seen.instances if i.id in fleet.replicas)
    return step.advance(fleet, deployments, replace(seen, instances=known), now)


def takes_unknown_for_gone(fleet: Fleet, deployments: Deployments, seen: Sighting, now: float) -> Fleet:
    return step.advance(fleet, deployments, replace(seen, instances=seen.instances or ()), now)


def waits_for_ever(fleet: Fleet, deployments: Deployments, seen: Sighting, now: float) -> Fleet:
    patient = {name: replace(d, start_timeout_s=1e9) for name, d in deployments.items()}
    return step.advance(fleet, patient, seen, now)


@pytest.mark.parametrize(
    "fault",
    [
        acts_in_the_dark,
        stops_without_draining,
        never_lets_go,
        leases_one_gpu_to_all,
        leaves_the_failed_lying,
        forgets_one_model,
        never_more_than_one,
        all_leave_at_once,
        one_too_many,
        fewer_than_the_least,
    ],
)
def test_faults_in_decide_are_found(fault: Decide) -> None:
    assert found(decide=fault)


@pytest.mark.parametrize("fault", [does_not_adopt, takes_unknown_for_gone, waits_for_ever, forgets_the_window])
def test_faults_in_advance_are_found(fault: Advance) -> None:
    assert found(advance=fault)


def test_an_only_replica_that_makes_room_for_one_more_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrive, "awake", lambda fleet, model: [])
    assert found()


def found(*, decide: Decide = decide, advance: Advance = step.advance) -> bool:
    """Whether any of a few runs breaks."""
    for seed in range(30):
        try:
            Sim(seed, decide=decide, advance=advance).run(500)
        except Broken:
            return True
    return False
