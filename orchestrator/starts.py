"""Which starts ended between two states of the fleet, as history keeps them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.model import Deployment, Fleet, Phase, Replica, StartRecord, Track, Weights

ANEW = frozenset({Phase.PULLING, Phase.QUEUED, Phase.STARTING})
QUEUED_S_MIN = 0.5
"""Less is the moment between two effects, not a wait for anything."""


def ended_starts(
    before: Fleet, after: Fleet, deployments: Mapping[str, Deployment], unix: float, now: float
) -> tuple[StartRecord, ...]:
    """A record for each model whose start became ready, or failed, just now. Adoptions are no starts.

    A wake that failed is followed by a cold start, often at once: then it ended where that one begins.
    """
    records = []
    for model, track in after.tracks.items():
        old = before.tracks.get(model)
        if old is None:
            continue
        if old.wake and not track.wake and old.phase is Phase.LOADING and track.phase in ANEW:
            track = replace(old, phase=Phase.FAILED, seconds=(*old.seconds, (old.phase, now - old.phase_at)))
        elif track.phase not in (Phase.READY, Phase.FAILED) or old.phase is track.phase:
            continue
        if track.start_at is not None and track.seconds and (track.wake or _is_whole(after, model, track.start_at)):
            records.append(_record(after, deployments[model], track, unix, now))
    return tuple(records)


def newest(past: Sequence[StartRecord], count: int) -> tuple[StartRecord, ...]:
    """The first `count` cold starts and as many wakes, in their order: wakes, which are many, displace no start."""
    left, kept = {True: count, False: count}, []
    for record in past:
        if left[record.wake]:
            left[record.wake] -= 1
            kept.append(record)
    return tuple(kept)


def _is_whole(fleet: Fleet, model: str, start_at: float) -> bool:
    """Whether all of the start was seen: not of an adopted engine, nor of one more that was on its way already when the
    last that served ended."""
    replica = _started(fleet, model)
    return replica is None or (not replica.adopted and replica.created_at >= start_at)


def _started(fleet: Fleet, model: str) -> Replica | None:
    """The replica whose start it was: the last to become ready, else the newest."""
    replicas = fleet.of(model)
    return max(replicas, key=lambda r: (r.phase is Phase.READY, r.ready_at or 0.0, r.created_at), default=None)


def _record(fleet: Fleet, deployment: Deployment, track: Track, unix: float, now: float) -> StartRecord:
    seconds: dict[Phase, float] = {}
    for phase, spent in track.seconds:
        seconds[phase] = seconds.get(phase, 0.0) + spent
    if seconds.get(Phase.QUEUED, 0.0) < QUEUED_S_MIN:
        seconds.pop(Phase.QUEUED, None)
    replica, backoff = _started(fleet, deployment.name), fleet.backoff.get(deployment.name)
    weights = fleet.weights.get(deployment.name)
    began_at = now if track.start_at is None else track.start_at
    failed = track.phase is Phase.FAILED
    return StartRecord(
        model=deployment.name,
        replica=replica.id if replica else "",
        spec=deployment.spec,
        engine=deployment.engine,
        started_at_unix=unix - (now - began_at),
        seconds=seconds,
        outcome="failed" if failed else "ready",
        error=backoff.error if failed and backoff else "",
        pulled_bytes=_bytes(weights) if Phase.PULLING in seconds else 0,
        weights_bytes=_bytes(weights),
        gpu_fixed_bytes=replica.gpu_fixed_bytes if replica else 0,
        wake=track.wake,
    )


def _bytes(weights: Weights | None) -> int:
    return weights.done_bytes if weights else 0
