"""What to do next: one pure function of what is wanted, what is known, and the time.

It reads no clock, does no I/O and does not log. Repeating it on the same values gives the same actions, and
doing an action twice is harmless, so a lost or failed action is simply decided again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.actions import Action, Drain, Pull, Sleep, Stop
from orchestrator.arrive import Line, line_up
from orchestrator.crew import LEAVING, awake, leave_order
from orchestrator.gpu import Wait
from orchestrator.model import Backoff, Demand, Deployment, Fleet, IdleAction, Phase, Replica, Weights, WeightsState

DEMAND_S_MIN = 60.0
"""A request's wish for its model lives at least this long after it was told to come back."""

IDLE = "idle"
FEWER = "its load asks for fewer"
DRAIN_S_DEFAULT = 30.0
"""For engines whose model is no longer configured: their requests may end all the same."""
ORPHAN_GRACE_S = 60.0
"""What outlived us, and whose model is not configured, stays for this long: the file may be wrong just now."""


def decide(
    deployments: Mapping[str, Deployment], fleet: Fleet, now: float, orphan_grace_s: float = ORPHAN_GRACE_S
) -> tuple[Action, ...]:
    """The actions that bring what is closer to what is wanted.

    1. The runtime is silent: nothing. What we don't know we neither stop nor start twice.
    2. Every replica that should go: drained while it serves, then stopped or put to sleep (`_leaving`).
    3. Every model that is wanted: its weights pulled (`_pulls`), then started in its turn (`arrive.line_up`).
    """
    if not fleet.known:
        return ()
    due = [r for r in fleet.replicas.values() if not _spared(deployments, r, now, orphan_grace_s)]
    leaving = [action for replica in due for action in _leaving(deployments, fleet, replica, now)]
    going = {action.replica for action in leaving}
    arriving = [action for action in _line(deployments, fleet, now).actions if action.replica not in going]
    return (*leaving, *_pulls(deployments, fleet, now), *arriving)


def waits(deployments: Mapping[str, Deployment], fleet: Fleet, now: float) -> Mapping[str, Wait]:
    """Who waits for GPUs, in what place, and for how long."""
    return _line(deployments, fleet, now).waits if fleet.known and fleet.gpus else {}


def wanted(deployment: Deployment, fleet: Fleet, now: float) -> bool:
    """Whether the model should run although nobody is served by it now.

    1. Requests are held for it.
    2. Stopped by hand, and nobody has asked since: no.
    3. `min_replicas` keeps it warm.
    4. Somebody else put it to sleep while it served: what it has in hand hangs until it is woken.
    5. Somebody asked after it was last ready, not too long ago. The time that the pull took does not
       count: who asked before an hour of download still wants it at the end.
    """
    demand = fleet.demand.get(deployment.name, Demand())
    if demand.held:
        return True
    if _stopped(demand):
        return False
    asked_at = demand.asked_at
    if deployment.min_replicas or any(_sleeps_on(replica) for replica in fleet.of(deployment.name)):
        return True
    if asked_at is None or asked_at <= fleet.served_at.get(deployment.name, float("-inf")):
        return False
    since = max(asked_at, fleet.weights_at.get(deployment.name, asked_at))
    return now - since < max(deployment.idle_timeout_s, DEMAND_S_MIN)


def wished(deployment: Deployment, fleet: Fleet, now: float) -> int:
    """How many of its replicas should be awake, those on their way counted; at most `max_replicas`.

    1. Stopped by hand, and nobody has asked since: none.
    2. None is awake, and it is not wanted: none.
    3. Else what its load asks for, or where that is unknown as many as there are; at least one and `min_replicas`, and
       those who sleep with requests in flight beside those who are awake.
    """
    demand = fleet.demand.get(deployment.name, Demand())
    up = len(_up(deployment, fleet))
    if (_stopped(demand) and not demand.held) or (not up and not wanted(deployment, fleet, now)):
        return 0
    scaling = fleet.scaling.get(deployment.name)
    asked = up if scaling is None or scaling.desired is None else scaling.desired
    hanging = sum(_sleeps_on(replica) for replica in fleet.of(deployment.name))
    return min(max(asked, up + hanging if hanging else 0, deployment.min_replicas, 1), deployment.max_replicas)


def _stopped(demand: Demand) -> bool:
    """Whether it was stopped by hand, and nobody has asked since."""
    return demand.stop_at is not None and (demand.asked_at is None or demand.asked_at <= demand.stop_at)


def _stopped_one(fleet: Fleet, replica: Replica) -> bool:
    """Whether it was there when its model was stopped by hand. One that was found alive is older than us, and so than
    any stop that we know of; if somebody has asked since, it will do."""
    demand = fleet.demand.get(replica.model, Demand())
    if demand.stop_at is None:
        return False
    return replica.created_at <= demand.stop_at or (replica.adopted and _stopped(demand))


def _up(deployment: Deployment, fleet: Fleet) -> list[Replica]:
    """Its replicas that serve or are about to, and were not stopped by hand."""
    return [replica for replica in awake(fleet, deployment.name) if not _stopped_one(fleet, replica)]


def _sleeps_on(replica: Replica) -> bool:
    """Whether it sleeps although requests are in flight."""
    return replica.phase is Phase.SLEEPING and replica.ready_at is not None and replica.idle_at is None


def _leaving(
    deployments: Mapping[str, Deployment], fleet: Fleet, replica: Replica, now: float
) -> Iterator[Drain | Sleep | Stop]:
    """What a replica that should go is due.

    1. on a silent host: nothing.
    2. failed: stopped, so that its traces and leases are cleared.
    3. draining: once nothing is in flight, put to sleep if it is to sleep and there is no reason to stop it;
       else stopped, then or when its time is up.
    4. ready and no longer due: drained.
    5. starting or asleep and no longer due: stopped.
    """
    model, deployment = replica.model, deployments.get(replica.model)
    if replica.unknown:
        return
    if replica.phase is Phase.FAILED:
        yield Stop(model=model, replica=replica.id, reason=replica.error)
    elif replica.phase is Phase.DRAINING:
        drain_s = deployment.drain_timeout_s if deployment else DRAIN_S_DEFAULT
        overdue = now - replica.phase_at >= drain_s and not replica.patient
        sleeps = replica.then is IdleAction.SLEEP and not _why_leave(deployment, fleet, replica, now)
        if replica.ready_at is not None and replica.idle_at is not None and sleeps:
            yield Sleep(model=model, replica=replica.id)
        elif replica.ready_at is None or replica.idle_at is not None or overdue:
            yield Stop(model=model, replica=replica.id, reason=replica.leaving)
    elif reason := _why_leave(deployment, fleet, replica, now):
        if replica.phase is Phase.READY:
            then = deployment.idle_action if deployment is not None and reason in (IDLE, FEWER) else IdleAction.STOP
            yield Drain(model=model, replica=replica.id, reason=reason, then=then)
        else:
            yield Stop(model=model, replica=replica.id, reason=reason)


def _spared(deployments: Mapping[str, Deployment], replica: Replica, now: float, orphan_grace_s: float) -> bool:
    """Whether it is an orphan that may yet turn out to be none: found alive, of a model that is not configured and,
    since we never saw it ready, has not been in our time."""
    found = replica.adopted and replica.ready_at is None and replica.phase not in (Phase.DRAINING, Phase.FAILED)
    return found and replica.model not in deployments and now - replica.created_at < orphan_grace_s


def _why_leave(deployment: Deployment | None, fleet: Fleet, replica: Replica, now: float) -> str:
    """Why a live replica should go; empty: it stays."""
    if deployment is None:
        return "its model is no longer configured"
    if reason := _why_itself(deployment, fleet, replica, now):
        return reason
    if _idle(deployment, fleet, replica, now):
        return IDLE
    return FEWER if replica is _spared_by_load(deployment, fleet, now) else ""


def _why_itself(deployment: Deployment, fleet: Fleet, replica: Replica, now: float) -> str:
    """Why it should go whatever its model's load is."""
    if _stopped_one(fleet, replica):
        return "stopped by hand"
    if deployment.spec != replica.spec and _replaceable(deployment, fleet, replica, now):
        return "its settings changed"
    if replica in _beyond_max(deployment, fleet, replica):
        return "one more than max_replicas"
    if replica.phase is Phase.SLEEPING and now - replica.phase_at >= deployment.sleep_timeout_s:
        return "it slept for long"
    return ""


def _beyond_max(deployment: Deployment, fleet: Fleet, replica: Replica) -> list[Replica]:
    """Those that are too many; `replica` counts even if it leaves, since it might yet sleep."""
    live = [r for r in fleet.of(deployment.name) if r.phase not in LEAVING or r is replica]
    return leave_order(live)[: max(len(live) - deployment.max_replicas, 0)]


def _replaceable(deployment: Deployment, fleet: Fleet, replica: Replica, now: float) -> bool:
    """Whether one with settings of old leaves now: at once if it does not serve, or its model may have only one. Else
    the others go on serving: when nobody else comes or goes and none is lacking, but after `start_timeout_s` anyway."""
    stale_s = 0.0 if replica.stale_at is None else now - replica.stale_at
    if replica.phase is not Phase.READY or deployment.max_replicas == 1 or stale_s >= deployment.start_timeout_s:
        return True
    replicas = fleet.of(deployment.name)
    still = all(r.phase in (Phase.READY, Phase.SLEEPING) for r in replicas) and not _lacks(deployment, fleet, now)
    return still and replica is leave_order([r for r in replicas if r.spec != deployment.spec])[0]


def _spared_by_load(deployment: Deployment, fleet: Fleet, now: float) -> Replica | None:
    """The next to leave because there is work for fewer; one at a time, so None while another is leaving or is to."""
    if deployment.max_replicas == 1:
        return None
    up = _up(deployment, fleet)
    if len(up) < 2 or len(up) <= wished(deployment, fleet, now):
        return None
    if any(r.phase in LEAVING or _why_itself(deployment, fleet, r, now) for r in fleet.of(deployment.name)):
        return None
    return leave_order(up)[0]


def _idle(deployment: Deployment, fleet: Fleet, replica: Replica, now: float) -> bool:
    """Whether it is not kept warm and its model has been without requests for long: one that serves beside others may
    be without for long because they had room."""
    if replica.phase is not Phase.READY or fleet.demand.get(deployment.name, Demand()).held:
        return False
    replicas = fleet.of(deployment.name)
    if replicas.index(replica) < deployment.min_replicas:
        return False
    serving = [r for r in replicas if r.phase is Phase.READY]
    return all(r.idle_at is not None and now - r.idle_at >= deployment.idle_timeout_s for r in serving)


def _pulls(deployments: Mapping[str, Deployment], fleet: Fleet, now: float) -> Iterator[Action]:
    for deployment in _in_turn(deployments, fleet):
        if not _may_start(deployment, fleet, now):
            continue
        state = fleet.weights.get(deployment.name, Weights(state=WeightsState.ABSENT)).state
        asked = deployment.preload or _lacks(deployment, fleet, now) or _pull_asked(deployment, fleet)
        if asked and state not in (WeightsState.PRESENT, WeightsState.PULLING):
            yield Pull(model=deployment.name)


def _line(deployments: Mapping[str, Deployment], fleet: Fleet, now: float) -> Line:
    """All that could start now, were there room, in their turn; those whose needs are still being read come later."""
    present = {name for name, weights in fleet.weights.items() if weights.state is WeightsState.PRESENT}
    waiting = [
        deployment
        for deployment in _in_turn(deployments, fleet)
        if deployment.name in present
        and _may_start(deployment, fleet, now)
        and _lacks(deployment, fleet, now)
        and deployment.name not in fleet.unfit
        and (deployment.gpus is not None or deployment.name in fleet.needs)
    ]
    warm = frozenset(name for name, deployment in deployments.items() if deployment.min_replicas)
    return line_up(waiting, deployments, fleet, warm, now)


def _may_start(deployment: Deployment, fleet: Fleet, now: float) -> bool:
    """There is no failure to wait out, no launch of its own under way, and it has fewer engines than it may, those that
    sleep aside: they are woken first."""
    engines = [replica for replica in fleet.of(deployment.name) if replica.phase is not Phase.SLEEPING]
    launching = any(not replica.seen and replica.landed_at is None for replica in engines)
    over = now >= fleet.backoff.get(deployment.name, Backoff()).retry_at
    return over and not launching and len(engines) < deployment.max_replicas


def _lacks(deployment: Deployment, fleet: Fleet, now: float) -> bool:
    """Whether one more should be awake."""
    return len(_up(deployment, fleet)) < wished(deployment, fleet, now)


def _in_turn(deployments: Mapping[str, Deployment], fleet: Fleet) -> list[Deployment]:
    return sorted(deployments.values(), key=lambda deployment: _turn(deployment, fleet))


def _turn(deployment: Deployment, fleet: Fleet) -> tuple[int, float, str]:
    """Sort key: higher priority first, then who has waited longest for a GPU, then who asked first."""
    asked_at = fleet.demand.get(deployment.name, Demand()).asked_at
    track = fleet.tracks.get(deployment.name)
    queued = track is not None and track.phase is Phase.QUEUED
    since = track.phase_at if track is not None and queued else asked_at
    return -deployment.priority, float("inf") if since is None else since, deployment.name


def _pull_asked(deployment: Deployment, fleet: Fleet) -> bool:
    """Whether `pull` was called and no attempt has failed since."""
    pull_at = fleet.demand.get(deployment.name, Demand()).pull_at
    return pull_at is not None and fleet.backoff.get(deployment.name, Backoff()).failed_at <= pull_at
