"""What to do next: one pure function of what is wanted, what is known, and the time.

It reads no clock, does no I/O and does not log. Repeating it on the same values gives the same actions, and
doing an action twice is harmless, so a lost or failed action is simply decided again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from orchestrator.actions import Action, Drain, Launch, Pull, Stop
from orchestrator.model import Backoff, Demand, Deployment, Fleet, Phase, Replica, Weights, WeightsState

DEMAND_S_MIN = 60.0
"""A request's wish for its model lives at least this long after it was told to come back."""

DRAIN_S_DEFAULT = 30.0
"""For engines whose model is no longer configured: their requests may end all the same."""


def decide(deployments: Mapping[str, Deployment], fleet: Fleet, now: float) -> tuple[Action, ...]:
    """The actions that bring what is closer to what is wanted.

    1. The runtime is silent: nothing. What we don't know we neither stop nor start twice.
    2. Every replica that should go: drained while it serves, stopped once nothing holds it (`_leaving`).
    3. Every model that is wanted and has no replica: pulled, then launched (`_arriving`), higher
       priority and longer wait first, as far as free GPUs reach.
    """
    if not fleet.known:
        return ()
    leaving = [action for replica in fleet.replicas.values() for action in _leaving(deployments, fleet, replica, now)]
    return (*leaving, *_arriving(deployments, fleet, now))


def wanted(deployment: Deployment, fleet: Fleet, now: float) -> bool:
    """Whether the model should run although nobody is served by it now.

    1. Requests are held for it.
    2. Stopped by hand, and nobody has asked since: no.
    3. `min_replicas` keeps it warm.
    4. Somebody asked after it was last ready, not too long ago. The time that the pull took does not
       count: who asked before an hour of download still wants it at the end.
    """
    demand = fleet.demand.get(deployment.name, Demand())
    if demand.held:
        return True
    asked_at = demand.asked_at
    if demand.stop_at is not None and (asked_at is None or asked_at <= demand.stop_at):
        return False
    if deployment.min_replicas:
        return True
    if asked_at is None or asked_at <= fleet.served_at.get(deployment.name, float("-inf")):
        return False
    since = max(asked_at, fleet.weights_at.get(deployment.name, asked_at))
    return now - since < max(deployment.idle_timeout_s, DEMAND_S_MIN)


def _leaving(deployments: Mapping[str, Deployment], fleet: Fleet, replica: Replica, now: float) -> Iterator[Action]:
    """What a replica that should go is due.

    1. on a silent host: nothing.
    2. failed: stopped, so that its traces and leases are cleared.
    3. draining: stopped once nothing is in flight, or its time is up.
    4. ready and no longer due: drained.
    5. starting and no longer due: stopped.
    """
    model, deployment = replica.model, deployments.get(replica.model)
    if replica.unknown:
        return
    if replica.phase is Phase.FAILED:
        yield Stop(model=model, replica=replica.id, reason=replica.error)
    elif replica.phase is Phase.DRAINING:
        drain_s = deployment.drain_timeout_s if deployment else DRAIN_S_DEFAULT
        if replica.ready_at is None or replica.idle_at is not None or now - replica.phase_at >= drain_s:
            yield Stop(model=model, replica=replica.id, reason=replica.leaving)
    elif reason := _why_leave(deployment, fleet, replica, now):
        if replica.phase is Phase.READY:
            yield Drain(model=model, replica=replica.id, reason=reason)
        else:
            yield Stop(model=model, replica=replica.id, reason=reason)


def _why_leave(deployment: Deployment | None, fleet: Fleet, replica: Replica, now: float) -> str:
    """Why a live replica should go; empty: it stays."""
    if deployment is None:
        return "its model is no longer configured"
    if deployment.spec != replica.spec:
        return "its settings changed"
    demand = fleet.demand.get(deployment.name, Demand())
    if demand.stop_at is not None and replica.created_at <= demand.stop_at:
        return "stopped by hand"
    older = [r for r in fleet.of(deployment.name) if (r.created_at, r.id) < (replica.created_at, replica.id)]
    if sum(r.phase not in (Phase.DRAINING, Phase.FAILED) for r in older) >= deployment.max_replicas:
        return "one more than max_replicas"
    if replica.phase is not Phase.READY or replica.idle_at is None or demand.held:
        return ""
    if len(older) < deployment.min_replicas:
        return ""
    return "idle" if now - replica.idle_at >= deployment.idle_timeout_s else ""


def _arriving(deployments: Mapping[str, Deployment], fleet: Fleet, now: float) -> Iterator[Action]:
    leased = {gpu for replica in fleet.replicas.values() for gpu in replica.gpus}
    free = [gpu.uuid for gpu in fleet.gpus if gpu.healthy and gpu.uuid not in leased]
    launches = 0
    for deployment in sorted(deployments.values(), key=lambda d: _turn(d, fleet)):
        if fleet.of(deployment.name) or now < fleet.backoff.get(deployment.name, Backoff()).retry_at:
            continue
        weights = fleet.weights.get(deployment.name, Weights(state=WeightsState.ABSENT))
        present = weights.state is WeightsState.PRESENT
        want = wanted(deployment, fleet, now)
        if not present and weights.state is not WeightsState.PULLING and (want or _pull_asked(deployment, fleet)):
            yield Pull(model=deployment.name)
        if not want or not present or (deployment.gpus or 0) > len(free):
            continue
        gpus, free = tuple(free[: deployment.gpus or 0]), free[deployment.gpus or 0 :]
        name = f"{_slug(deployment.name)}-{fleet.boot}-{fleet.serial + launches}"
        launches += 1
        yield Launch(model=deployment.name, replica=name, gpus=gpus)


def _turn(deployment: Deployment, fleet: Fleet) -> tuple[int, float, str]:
    """Sort key: higher priority first, then who has waited longest."""
    asked_at = fleet.demand.get(deployment.name, Demand()).asked_at
    return -deployment.priority, float("inf") if asked_at is None else asked_at, deployment.name


def _pull_asked(deployment: Deployment, fleet: Fleet) -> bool:
    """Whether `pull` was called and no attempt has failed since."""
    pull_at = fleet.demand.get(deployment.name, Demand()).pull_at
    return pull_at is not None and fleet.backoff.get(deployment.name, Backoff()).failed_at <= pull_at


def _slug(model: str) -> str:
    """A model's name as part of a file or container name."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:60]
