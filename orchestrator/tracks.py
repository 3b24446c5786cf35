"""The phase of a model as its users see it, and the start that it is in. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.decide import wanted
from orchestrator.model import Deployment, Fleet, Phase, Track, WeightsState

STARTS = frozenset({Phase.PULLING, Phase.QUEUED, Phase.STARTING, Phase.LOADING})


def tracked(fleet: Fleet, deployments: Mapping[str, Deployment], now: float) -> Fleet:
    """Derive each model's phase, and keep the times of the start it is in."""
    old = {name: fleet.tracks.get(name, Track(phase_at=now)) for name in deployments}
    phases = {name: phase_of(fleet, deployment, now) for name, deployment in deployments.items()}
    return replace(fleet, tracks={n: _next_track(old[n], phases[n], _wakes(fleet, n), now) for n in deployments})


def _wakes(fleet: Fleet, model: str) -> bool:
    """Whether the start that a model is in, or would be in were it asked for, is a wake."""
    return any(r.phase is Phase.SLEEPING or (r.phase in STARTS and r.woken_at is not None) for r in fleet.of(model))


def phase_of(fleet: Fleet, deployment: Deployment, now: float) -> Phase:
    """The phase of a model as its users see it: that of the replica nearest to ready, else its wait."""
    phases = {replica.phase for replica in fleet.of(deployment.name)}
    for phase in (Phase.READY, Phase.LOADING, Phase.STARTING, Phase.DRAINING):
        if phase in phases:
            return phase
    if Phase.SLEEPING in phases:
        return Phase.QUEUED if wanted(deployment, fleet, now) else Phase.SLEEPING
    if deployment.name in fleet.unfit:
        return Phase.FAILED
    weights = fleet.weights.get(deployment.name)
    if weights is not None and weights.state is WeightsState.PULLING:
        return Phase.PULLING
    backoff = fleet.backoff.get(deployment.name)
    if backoff is not None and (backoff.permanent or now < backoff.retry_at):
        return Phase.FAILED
    if wanted(deployment, fleet, now):
        return Phase.QUEUED
    return Phase.FAILED if backoff is not None else Phase.COLD


def _next_track(old: Track, phase: Phase, wake: bool, now: float) -> Track:
    """A cold start that follows a wake that failed is another start."""
    other = phase in STARTS and wake is not old.wake
    if phase is old.phase and not other:
        return old
    begins = phase in STARTS and (old.phase not in STARTS or other)
    ends = phase not in STARTS and phase not in (Phase.READY, Phase.FAILED)
    if begins or ends:
        return Track(phase=phase, phase_at=now, start_at=now if begins else None, wake=wake)
    left = ((old.phase, now - old.phase_at),) if old.phase in STARTS else ()
    return replace(old, phase=phase, phase_at=now, seconds=old.seconds + left)
