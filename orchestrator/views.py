"""What the control API shows, as JSON values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.activator import Route
from orchestrator.balance.lane import Lane
from orchestrator.eta import ORDER
from orchestrator.gpu import Gpu
from orchestrator.model import IdleAction, Phase, Replica, StartRecord, Traffic, Weights
from orchestrator.placement import lease_bytes
from orchestrator.refusal import describe, note_of, progress

QUIET = (Phase.COLD, Phase.READY, Phase.SLEEPING)
"""Phases that say all there is to say."""


def model_view(route: Route, *, held: int, traffic: Mapping[str, Traffic], pinned: bool, now: float) -> dict[str, Any]:
    """One model: its phase, what it waits for, its replicas, and when it will be ready or leave. `pinned`: kept warm
    by hand."""
    eta_s, done = route.eta_s(now), progress(route)
    on_its_way = route.track.start_at is not None and not route.lanes
    return {
        "id": route.deployment.name,
        "engine": route.deployment.engine,
        "source": route.deployment.source,
        "aliases": list(route.deployment.aliases),
        "fallback": list(route.deployment.fallback),
        "phase": route.track.phase,
        "progress": None if done is None else round(done, 4),
        "note": note_of(route) or ("" if route.track.phase in QUIET else describe(route)),
        "elapsed_s": _rounded(now - (route.track.start_at or now) if on_its_way else now - route.track.phase_at),
        "eta_s": _rounded(eta_s if on_its_way else None),
        "expected_s": _rounded(eta_s),
        "start": _start(route, now) if route.track.phase in ORDER else None,
        "error": "" if route.lanes else route.unfit or (route.backoff.error if route.backoff else ""),
        "retry_s": _rounded(max(route.backoff.retry_at - now, 0.0)) if route.backoff and not route.lanes else None,
        "in_flight": sum(lane.taken for lane in (*route.lanes, *route.out)),
        "held": held,
        "idle_s": _idle_s(route, now),
        "stops_in_s": _stops_in_s(route, now),
        "sleeps_in_s": _sleeps_in_s(route, now),
        "min_replicas": route.deployment.min_replicas,
        "pinned": pinned,
        "replicas": [replica_view(r, traffic.get(r.id, Traffic()), now) for r in route.replicas],
        "last_replica": route.last_replica,
        "weights": _weights(route.weights),
    }


def replica_view(replica: Replica, traffic: Traffic, now: float) -> dict[str, Any]:
    """One replica."""
    return {
        "id": replica.id,
        "model": replica.model,
        "phase": replica.phase,
        "age_s": _rounded(now - replica.created_at),
        "ready_s": None if replica.ready_at is None else _rounded(now - replica.ready_at),
        "endpoint": replica.endpoint,
        "host": replica.host,
        "gpus": list(replica.gpus),
        "in_flight": traffic.in_flight,
        "adopted": replica.adopted,
        "error": replica.error,
    }


def lane_view(model: str, lane: Lane, *, rotating: bool, now: float) -> dict[str, Any]:
    """The way to one replica or server, as the balancer sees it. What the engine does not tell is null, never 0.

    `utilisation`: the part of its capacity that is taken, where that is known to be of requests. `rotating`: whether
    it gets new requests.
    """
    breaker, load = lane.breaker, lane.load
    return {
        "model": model,
        "replica": lane.replica,
        "in_rotation": rotating,
        "load": round(lane.loaded, 3),
        "capacity": lane.takes,
        "utilisation": round((lane.in_flight + lane.beside) / lane.takes, 3) if lane.takes > 1 else None,
        "weight": lane.weight,
        "in_flight": lane.taken,
        "running": None if load is None else load.running,
        "waiting": None if load is None else load.waiting,
        "cache_use": None if load is None or load.kv_use is None else round(load.kv_use, 4),
        "told_s": None if load is None else _rounded(now - load.at),
        "breaker": "closed" if breaker is None else breaker.state,
        "fault": None if breaker is None or breaker.state == "closed" else breaker.fault,
        "retry_s": None if breaker is None else _rounded(breaker.retry_s(now)),
        "failures": 0 if breaker is None else breaker.failed,
    }


def gpu_view(gpu: Gpu, foreign_bytes: int, holders: Iterable[Replica]) -> dict[str, Any]:
    """One GPU, or one slice of one, and who holds how much of it."""
    return {
        "uuid": gpu.uuid,
        "index": gpu.index,
        "name": gpu.name,
        "host": gpu.host,
        "mig": gpu.mig,
        "memory_bytes": gpu.memory_bytes,
        "free_bytes": gpu.free_bytes,
        "foreign_bytes": foreign_bytes,
        "healthy": gpu.healthy,
        "fault": gpu.fault,
        "holders": [
            {"model": r.model, "replica": r.id, "bytes": lease_bytes(r, gpu), "phase": r.phase} for r in holders
        ],
    }


def openai_model(route: Route, name: str, created_unix: int, now: float) -> dict[str, Any]:
    """One entry of ``GET /v1/models``: OpenAI's fields and our `status`. `name`: the model's, or an alias of it."""
    return {
        "id": name,
        "object": "model",
        "created": created_unix,
        "owned_by": "orchestrator",
        "status": {
            "phase": route.track.phase,
            "eta_s": _rounded(route.eta_s(now)),
            "replicas": len(route.lanes),
        },
        **({} if name == route.deployment.name else {"alias_of": route.deployment.name}),
    }


def start_view(start: StartRecord) -> dict[str, Any]:
    """One start of the history, cold or from sleep."""
    return {
        "model": start.model,
        "replica": start.replica,
        "engine": start.engine,
        "started_at": round(start.started_at_unix, 3),
        "outcome": start.outcome,
        "wake": start.wake,
        "error": start.error,
        "seconds": {phase.value: round(spent, 3) for phase, spent in start.seconds.items()},
        "total_s": round(sum(start.seconds.values()), 3),
        "pulled_bytes": start.pulled_bytes,
        "weights_bytes": start.weights_bytes,
    }


def _start(route: Route, now: float) -> dict[str, Any]:
    """A start under way: the seconds of the phases it has left, of the one it is in, and what each should take."""
    seconds: dict[str, float] = {}
    for phase, spent in route.track.seconds:
        seconds[phase] = round(seconds.get(phase, 0.0) + spent, 3)
    return {
        "seconds": seconds,
        "phase_s": _rounded(now - route.track.phase_at),
        "expected": {phase.value: round(spent, 3) for phase, spent in route.expected.seconds.items()},
    }


def _weights(weights: Weights | None) -> dict[str, Any] | None:
    if weights is None:
        return None
    return {
        "state": weights.state,
        "done_bytes": weights.done_bytes,
        "total_bytes": weights.total_bytes,
        "bytes_per_s": weights.bytes_per_s,
    }


def _idle_s(route: Route, now: float) -> float | None:
    idle = [r.idle_at for r in route.replicas if r.phase is Phase.READY and r.idle_at is not None]
    return _rounded(now - max(idle)) if idle and not any(lane.taken for lane in route.lanes) else None


def _stops_in_s(route: Route, now: float) -> float | None:
    """Until it is stopped for want of use; where it sleeps first, that comes before it."""
    if asleep := [r.phase_at for r in route.replicas if r.phase is Phase.SLEEPING]:
        return _rounded(max(min(asleep) + route.deployment.sleep_timeout_s - now, 0.0))
    sleeps_in_s = _sleeps_in_s(route, now)
    return _idle_rest_s(route, now) if sleeps_in_s is None else sleeps_in_s + route.deployment.sleep_timeout_s


def _sleeps_in_s(route: Route, now: float) -> float | None:
    """Until it is put to sleep."""
    return _idle_rest_s(route, now) if route.deployment.idle_action is IdleAction.SLEEP else None


def _idle_rest_s(route: Route, now: float) -> float | None:
    idle_s = _idle_s(route, now)
    if idle_s is None or route.deployment.min_replicas:
        return None
    return _rounded(max(route.deployment.idle_timeout_s - idle_s, 0.0))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
