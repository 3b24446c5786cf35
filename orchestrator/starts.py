"""Which cold starts ended between two states of the fleet, as history keeps them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.model import Deployment, Fleet, Phase, StartRecord, Track, Weights

QUEUED_S_MIN = 0.5
"""Less is the moment between two effects, not a wait for anything."""


def ended_starts(
    before: Fleet, after: Fleet, deployments: Mapping[str, Deployment], unix: float, now: float
) -> tuple[StartRecord, ...]:
    """A record for each model whose start became ready, or failed, just now. Adoptions are no starts."""
    records = []
    for model, track in after.tracks.items():
        old = before.tracks.get(model)
        ended = track.phase in (Phase.READY, Phase.FAILED) and old is not None and old.phase is not track.phase
        if ended and track.start_at is not None and track.seconds and not _adopted(after, model):
            records.append(_record(after, deployments[model], track, unix, now))
    return tuple(records)


def _adopted(fleet: Fleet, model: str) -> bool:
    replicas = fleet.of(model)
    return bool(replicas) and replicas[-1].adopted


def _record(fleet: Fleet, deployment: Deployment, track: Track, unix: float, now: float) -> StartRecord:
    seconds: dict[Phase, float] = {}
    for phase, spent in track.seconds:
        seconds[phase] = seconds.get(phase, 0.0) + spent
    if seconds.get(Phase.QUEUED, 0.0) < QUEUED_S_MIN:
        seconds.pop(Phase.QUEUED, None)
    replicas, backoff = fleet.of(deployment.name), fleet.backoff.get(deployment.name)
    weights = fleet.weights.get(deployment.name)
    began_at = now if track.start_at is None else track.start_at
    failed = track.phase is Phase.FAILED
    return StartRecord(
        model=deployment.name,
        replica=replicas[-1].id if replicas else "",
        spec=deployment.spec,
        engine=deployment.engine,
        started_at_unix=unix - (now - began_at),
        seconds=seconds,
        outcome="failed" if failed else "ready",
        error=backoff.error if failed and backoff else "",
        pulled_bytes=_bytes(weights) if Phase.PULLING in seconds else 0,
        weights_bytes=_bytes(weights),
        gpu_fixed_bytes=replicas[-1].gpu_fixed_bytes if replicas else 0,
    )


def _bytes(weights: Weights | None) -> int:
    return weights.done_bytes if weights else 0
