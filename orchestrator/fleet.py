"""How what we know follows from what we see: pure steps from one `Fleet` to the next.

`advance` folds a sighting in, which must have begun after whatever else was folded in before it; `launched`,
`landed`, `stopped`, `drained`, `failed` and `forgiven` fold in what we did ourselves;
`decide` then looks at the result.

A replica's phase, by what is seen of it (rows in order; first match wins):

    runtime or host silent    any          as it was
    not listed, launching     any          as it was, for as long as that takes
    not listed, never seen    any          as it was for LAUNCH_GRACE_S since it landed, then forgotten
    not listed                any          forgotten; a failure unless it was leaving or failed already
    exited                    any          failed, unless it was leaving
    listed                    leaving      as it was
    listed, asleep            start…ready  sleeping, unless it is being woken
    listed                    sleeping     as it was, until woken
    listed, healthy           start, load  ready
    listed                    start, load  failed after start_timeout_s; else what its log says
    listed, sick              ready        failed at the SICK_PROBES_MAX-th unhealthy probe in a row
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.actions import Launch
from orchestrator.autoscale import followed
from orchestrator.foreign import lent
from orchestrator.model import (
    Backoff,
    Deployment,
    Fleet,
    IdleAction,
    Instance,
    InstanceState,
    Phase,
    Progress,
    Replica,
    Sighting,
    Traffic,
)
from orchestrator.placement import unfit

LAUNCH_GRACE_S = 60.0
SICK_PROBES_MAX = 3
STABLE_S = 60.0
"""A replica that has served this long has shown that it can: its model's failures are forgotten."""
BACKOFF_BASE_S = 2.0
BACKOFF_MAX_S = 300.0

LEAVES = frozenset({Phase.DRAINING, Phase.FAILED})


def advance(fleet: Fleet, deployments: Mapping[str, Deployment], seen: Sighting, now: float) -> Fleet:
    """Fold one sighting into what we know."""
    fleet = _with_surroundings(fleet, seen, now)
    if seen.instances is None:
        return replace(fleet, known=False, replicas=_with_traffic(fleet.replicas, seen, now))
    listed = {instance.id: instance for instance in seen.instances}
    replicas: dict[str, Replica] = {}
    failures: list[Replica] = []
    for old in fleet.replicas.values():
        new = _next(old, listed.get(old.id), deployments.get(old.model), seen, now)
        if new is not None and (new.seen or _may_show_up(new, now)):
            replicas[new.id] = new
        if new is not None and new.phase is Phase.FAILED and old.phase is not Phase.FAILED:
            failures.append(new)
            if new.id not in listed:
                del replicas[new.id]
    for instance in listed.values():
        if instance.id not in fleet.replicas:
            replicas[instance.id] = _adopted(instance, seen, now)
    uses = lent(fleet.lent, fleet.gpus, replicas.values(), now)
    known = replace(fleet, known=True, replicas=_with_traffic(replicas, seen, now), lent=uses)
    for replica in failures:
        known = _lost(known, replica, now)
    known = replace(known, scaling=followed(known, deployments, seen, now))
    return _settled(known, now)


def launched(fleet: Fleet, launch: Launch, deployment: Deployment, now: float) -> Fleet:
    """A launch has been asked for: the replica counts from now on, listed or not."""
    replica = Replica(
        id=launch.replica,
        model=launch.model,
        spec=deployment.spec,
        phase=Phase.STARTING,
        created_at=now,
        phase_at=now,
        host=launch.host,
        gpus=launch.gpus,
        gpu_bytes=launch.gpu_bytes,
    )
    serial = max(fleet.serial, launch.serial) + 1  # one decided beside it may not have begun
    return replace(fleet, serial=serial, replicas={**fleet.replicas, replica.id: replica})


def landed(fleet: Fleet, replica_id: str, now: float) -> Fleet:
    """A launch has returned: a listing that begins from now on shows the replica, or soon will."""
    replica = fleet.replicas.get(replica_id)
    if replica is None:
        return fleet
    return _with(fleet, replace(replica, landed_at=now))


def stopped(fleet: Fleet, replica_id: str) -> Fleet:
    """A stop has returned. One that no listing ever showed is forgotten; the others go when none shows them."""
    replica = fleet.replicas.get(replica_id)
    if replica is None or replica.seen:
        return fleet
    return replace(fleet, replicas={key: value for key, value in fleet.replicas.items() if key != replica_id})


def drained(
    fleet: Fleet,
    replica_id: str,
    reason: str,
    now: float,
    *,
    then: IdleAction = IdleAction.STOP,
    patient: bool = False,
) -> Fleet:
    """A replica gets no more requests. One that was about to sleep may still be told to end instead."""
    replica = fleet.replicas.get(replica_id)
    if replica is None or replica.phase is Phase.FAILED:
        return fleet
    if replica.phase is Phase.DRAINING:
        return _with(fleet, replace(replica, then=then)) if then is IdleAction.STOP else fleet
    return _with(
        fleet, replace(replica, phase=Phase.DRAINING, phase_at=now, leaving=reason, then=then, patient=patient)
    )


def slept(fleet: Fleet, replica_id: str, now: float) -> Fleet:
    """A replica was put to sleep."""
    replica = fleet.replicas.get(replica_id)
    if replica is None or replica.phase is not Phase.DRAINING or replica.then is not IdleAction.SLEEP:
        return fleet
    return _with(fleet, replace(replica, phase=Phase.SLEEPING, phase_at=now, idle_at=None, leaving="", woken_at=None))


def sleepless(fleet: Fleet, replica_id: str) -> Fleet:
    """It could not be put to sleep: it is stopped instead."""
    replica = fleet.replicas.get(replica_id)
    return fleet if replica is None else _with(fleet, replace(replica, then=IdleAction.STOP))


def woken(fleet: Fleet, replica_id: str, now: float) -> Fleet:
    """A replica was told to wake; its health says when it has."""
    replica = fleet.replicas.get(replica_id)
    if replica is None or replica.phase is not Phase.SLEEPING:
        return fleet
    waking = Progress(phase=Phase.LOADING, note="waking up")
    return _with(fleet, replace(replica, phase=Phase.LOADING, phase_at=now, woken_at=now, progress=waking))


def _with(fleet: Fleet, replica: Replica) -> Fleet:
    return replace(fleet, replicas={**fleet.replicas, replica.id: replica})


def broken(fleet: Fleet, replica_id: str, error: str, now: float) -> Fleet:
    """A replica turned out to be of no use."""
    replica = fleet.replicas.get(replica_id)
    if replica is None or replica.phase in LEAVES:
        return fleet
    lost = _fail(replica, error, now)
    return _lost(_with(fleet, lost), lost, now)


def _lost(fleet: Fleet, replica: Replica, now: float) -> Fleet:
    """Count the failure of one replica. One that had served for long has shown that it can, whatever became of others
    since: its failure is the first."""
    served_s = 0.0 if replica.ready_at is None else now - replica.ready_at
    if served_s >= STABLE_S:
        fleet = forgiven(fleet, replica.model)
    return failed(fleet, replica.model, replica.error, now, served=replica.ready_at is not None)


def failed(fleet: Fleet, model: str, error: str, now: float, *, permanent: bool = False, served: bool = False) -> Fleet:
    """Count a failure: the next attempt waits twice as long as the last did, at most BACKOFF_MAX_S.

    One that had `served` has shown that it can: the first such failure is made good at once.
    """
    failures = fleet.backoff.get(model, Backoff()).failures + 1
    doublings = min(failures - 1 - served, 16)
    wait_s = 0.0 if doublings < 0 else min(BACKOFF_BASE_S * 2.0**doublings, BACKOFF_MAX_S)
    backoff = Backoff(failures=failures, failed_at=now, retry_at=now + wait_s, error=error, permanent=permanent)
    return replace(fleet, backoff={**fleet.backoff, model: backoff})


def launch_failed(fleet: Fleet, launch: Launch, error: str, now: float, *, sure: bool) -> Fleet:
    """A launch did not happen, or, unless we are `sure`, may have: then the replica keeps its lease until a stop
    has seen to it that nothing is there."""
    replicas = {key: value for key, value in fleet.replicas.items() if key != launch.replica}
    if not sure and (replica := fleet.replicas.get(launch.replica)) is not None:
        replicas[launch.replica] = replace(_fail(replica, error, now), landed_at=now)
    return failed(replace(fleet, replicas=replicas), launch.model, error, now)


def forgiven(fleet: Fleet, model: str) -> Fleet:
    """Somebody asked by hand: forget the failures, so that the next attempt is now."""
    return replace(fleet, backoff={key: value for key, value in fleet.backoff.items() if key != model})


def _next(
    old: Replica, instance: Instance | None, deployment: Deployment | None, seen: Sighting, now: float
) -> Replica | None:
    """The replica after this sighting, or None when it is gone and that is all right."""
    if instance is None:
        if not old.seen or old.landed_at is None:  # a launch under way tells itself what became of it
            return old
        return None if old.phase in LEAVES else _fail(old, "the engine vanished", now)
    if instance.state is InstanceState.UNKNOWN:
        return replace(old, seen=True, unknown=True)
    new = replace(
        old,
        seen=True,
        unknown=False,
        endpoint=instance.endpoint or old.endpoint,
        host=instance.host,
        gpus=instance.gpus or old.gpus,
        gpu_bytes=instance.gpu_bytes or old.gpu_bytes,
        gpu_fixed_bytes=seen.fixed_bytes.get(old.id, 0) * len(instance.gpus) or old.gpu_fixed_bytes,
        stale_at=None if deployment is None or deployment.spec == old.spec else old.stale_at or now,
    )
    if new.phase in LEAVES:
        return new
    if instance.state is InstanceState.EXITED:
        return _fail(new, seen.failures.get(new.id) or instance.reason or "the engine ended", now)
    if new.phase is Phase.SLEEPING:
        return new
    if seen.asleep.get(new.id) and new.woken_at is None:  # one that we wake may still say so for a while
        return replace(new, phase=Phase.SLEEPING, phase_at=now, idle_at=None, progress=Progress())
    if new.phase is Phase.READY:
        return _judged(new, seen.healthy.get(new.id), now)
    return _starting(new, deployment, seen, now)


def _may_show_up(replica: Replica, now: float) -> bool:
    """Whether one that was never listed may yet be."""
    return replica.landed_at is None or now - replica.landed_at < LAUNCH_GRACE_S


def _judged(ready: Replica, healthy: bool | None, now: float) -> Replica:
    """A ready replica after its probe; None: not probed this time."""
    if healthy is None:
        return ready
    if healthy:
        return replace(ready, sick_probes=0)
    sick = replace(ready, sick_probes=ready.sick_probes + 1)
    if sick.sick_probes < SICK_PROBES_MAX:
        return sick
    return _fail(sick, "the engine stopped answering its health check", now)


def _starting(old: Replica, deployment: Deployment | None, seen: Sighting, now: float) -> Replica:
    if seen.healthy.get(old.id):
        up = replace(old, phase=Phase.READY, phase_at=now, ready_at=now, idle_at=now)
        return replace(up, woken_at=None, progress=Progress())
    timeout_s = deployment.start_timeout_s if deployment else 0.0
    if deployment and now - (old.woken_at or old.created_at) >= timeout_s:
        what = "was not ready" if old.woken_at is None else "did not wake"
        return _fail(old, f"the engine {what} within {timeout_s:g} s", now)
    if old.woken_at is not None:  # its log tells of the start that it once had
        return old
    progress = seen.progress.get(old.id, old.progress)
    if progress.phase is Phase.LOADING and old.phase is Phase.STARTING:
        return replace(old, phase=Phase.LOADING, phase_at=now, progress=progress)
    return replace(old, progress=progress)


def _adopted(instance: Instance, seen: Sighting, now: float) -> Replica:
    """An engine that outlived us, or whose launch we thought had failed."""
    replica = Replica(
        id=instance.id,
        model=instance.model,
        spec=instance.spec,
        phase=Phase.STARTING,
        created_at=now,
        phase_at=now,
        seen=True,
        endpoint=instance.endpoint,
        host=instance.host,
        gpus=instance.gpus,
        gpu_bytes=instance.gpu_bytes,
        landed_at=now,
        adopted=True,
        unknown=instance.state is InstanceState.UNKNOWN,
    )
    if replica.unknown:
        return replica
    if instance.state is InstanceState.RUNNING:
        return _next(replica, instance, None, seen, now) or replica
    return replace(replica, phase=Phase.DRAINING, leaving="found ended")


def _fail(replica: Replica, error: str, now: float) -> Replica:
    return replace(replica, phase=Phase.FAILED, phase_at=now, error=error)


def _with_surroundings(fleet: Fleet, seen: Sighting, now: float) -> Fleet:
    since = {
        model: now
        if model not in fleet.weights or fleet.weights[model].state is not weights.state
        else fleet.weights_at.get(model, now)
        for model, weights in seen.weights.items()
    }
    gpus = fleet.gpus if seen.gpus is None else seen.gpus
    known = {model: need for model, need in seen.needs.items() if seen.gpus is not None}
    return replace(
        fleet,
        weights=seen.weights,
        weights_at=since,
        demand=seen.demand,
        gpus=gpus,
        places=seen.places,
        needs=seen.needs,
        unfit={model: reason for model, need in known.items() if (reason := unfit(need, gpus))},
    )


def _with_traffic(replicas: Mapping[str, Replica], seen: Sighting, now: float) -> dict[str, Replica]:
    return {key: _used(replica, seen, now) for key, replica in replicas.items()}


def _used(replica: Replica, seen: Sighting, now: float) -> Replica:
    """Idle counts from the last byte of the last answer, from when it was last asked for, or from when a
    refused client was told to come back, whichever is latest."""
    if replica.ready_at is None:
        return replica
    traffic = seen.traffic.get(replica.id, Traffic())
    if traffic.in_flight:
        return replace(replica, idle_at=None, in_flight=traffic.in_flight)
    demand = seen.demand.get(replica.model)
    asked = (demand.asked_at, demand.expected_at) if demand else ()
    since = max(t for t in (replica.ready_at, traffic.last_byte_at, *asked) if t is not None)
    return replace(replica, idle_at=since, in_flight=0)


def _settled(fleet: Fleet, now: float) -> Fleet:
    """Note who is served, and forget the failures of those that one started since has served for a while."""
    ready = [replica for replica in fleet.replicas.values() if replica.phase is Phase.READY]
    served = {**fleet.served_at, **{replica.model: now for replica in ready}}
    stable = [(r.model, r.ready_at) for r in ready if r.ready_at is not None and now - r.ready_at >= STABLE_S]
    backoff = {
        model: value
        for model, value in fleet.backoff.items()
        if not any(name == model and since >= value.failed_at for name, since in stable)
    }
    return replace(fleet, served_at=served, backoff=backoff)
