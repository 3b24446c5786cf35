"""What a request is told when its model is not to be had now: the contract's 503, or a 4xx. Pure."""

from __future__ import annotations

from typing import Any

from orchestrator.activator import Route
from orchestrator.errors import ApiError
from orchestrator.eta import retry_after_s
from orchestrator.model import EngineKind, IdleAction, Phase, Weights

COME_BACK_S = 5
"""Retry-After where no start tells: the service ends, or a replica is leaving."""


def refusal(
    route: Route, now: float, *, retry_after_max_s: int, closing: bool = False, stopped: bool = False
) -> ApiError:
    """The answer, with its headers and status.

    1. The service is ending: 503.
    2. Somebody stopped it while the request waited: 503.
    3. It can never fit on these GPUs: 400, with the arithmetic.
    4. It failed, and trying again can't help before somebody acts: 400.
    5. It failed, and will be tried again: 503 ``model_failed``, Retry-After the next attempt.
    6. It waits for a GPU or a pull slot: 503 ``no_capacity``.
    7. It is ready, but has as many requests as it takes, and others stand in line: 503 ``no_capacity``.
    8. It is on its way: 503 ``model_cold``, Retry-After the expected rest.
    """
    model = route.deployment.name
    if closing:
        return _503("the service is restarting; come back in a moment", "model_cold", COME_BACK_S)
    if stopped:
        return _503(f"{model} was stopped by hand; the next request starts it again", "model_cold", COME_BACK_S)
    if route.unfit and not route.lanes:
        message = f"{model} does not fit on these GPUs: {route.unfit}"
        return ApiError(400, message, code="model_too_large", param="model", extra=_status(route, now))
    if route.given_up(now) and route.backoff is not None:
        wait_s = retry_after_s(route.backoff.retry_at - now, retry_after_max_s)
        failed = "can't be had" if route.deployment.engine is EngineKind.STATIC else "could not be started"
        message = f"{model} {failed}: {route.backoff.error}"
        if route.backoff.permanent:
            return ApiError(400, message, code="model_failed", param="model", extra=_status(route, now))
        return _503(message, "model_failed", wait_s, _status(route, now))
    if route.lanes:
        message = f"{model} has as many requests as it takes at a time"
        return _503(message, "no_capacity", COME_BACK_S, _status(route, now))
    wait_s = retry_after_s(route.eta_s(now) or COME_BACK_S, retry_after_max_s)
    code = "no_capacity" if route.track.phase is Phase.QUEUED and route.wait is not None else "model_cold"
    return _503(f"{model} is {describe(route)}", code, wait_s, _status(route, now))


def describe(route: Route) -> str:
    """What the model is doing, in a few words: ``starting: pulling weights, 43 %``."""
    phase, done = route.track.phase, progress(route)
    if route.silent and not route.lanes:
        return "cold, and can't be started now: the runtime that engines run on does not answer"
    percent = "" if done is None else f", {round(done * 100)} %"
    if phase is Phase.PULLING:
        return f"starting: pulling {route.weights.what if route.weights else 'weights'}{percent}"
    if phase is Phase.QUEUED:
        if route.wait is None:
            return "waking up" if route.track.wake else "starting: waiting for its turn"
        return f"waiting for a GPU, {ordinal(route.wait.place)} in line"
    if phase is Phase.SLEEPING:
        return "asleep; waking up now"
    if phase is Phase.LOADING and route.track.wake:
        return "waking up"
    if route.deployment.engine is EngineKind.STATIC and not route.lanes:
        looked_at = phase is not Phase.STARTING
        return "without a server that is well" if looked_at else "starting: its servers are being looked at"
    if phase in (Phase.STARTING, Phase.LOADING):
        note = note_of(route)
        return f"starting: {note or 'loading weights' if phase is Phase.LOADING else note or 'engine'}{percent}"
    if phase is Phase.DRAINING:
        sleepy = any(r.then is IdleAction.SLEEP for r in route.replicas)
        return "going to sleep; the next request wakes it" if sleepy else "leaving; the next request starts it again"
    if phase is Phase.FAILED:
        return "failed; the next request tries again"
    return "ready" if phase is Phase.READY else "cold; its start begins now"


def ordinal(place: int) -> str:
    """``1st``, ``2nd``, ``11th``."""
    suffix = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{suffix}"


def progress(route: Route) -> float | None:
    """0 … 1 within the phase, where anything tells."""
    if route.track.phase is Phase.PULLING:
        return _pulled(route.weights)
    fractions = [r.progress.fraction for r in route.replicas if r.phase is route.track.phase]
    return fractions[0] if fractions else None


def note_of(route: Route) -> str:
    """What the engine's log says it does."""
    notes = [r.progress.note for r in route.replicas if r.phase is route.track.phase]
    return notes[0] if notes else ""


def _pulled(weights: Weights | None) -> float | None:
    if weights is None or not weights.total_bytes:
        return None
    return min(weights.done_bytes / weights.total_bytes, 1.0)


def _status(route: Route, now: float) -> dict[str, Any]:
    done, eta_s = progress(route), route.eta_s(now)
    began = route.track.start_at
    return {
        "status": {
            "model": route.deployment.name,
            "phase": route.track.phase,
            "progress": None if done is None else round(done, 3),
            "elapsed_s": 0.0 if began is None else round(now - began, 1),
            "eta_s": None if eta_s is None else round(eta_s, 1),
            "status_url": f"/api/models/{route.deployment.name}",
        }
    }


def _503(message: str, code: str, wait_s: int, extra: dict[str, Any] | None = None) -> ApiError:
    return ApiError(503, message, code=code, param="model", headers={"retry-after": str(wait_s)}, extra=extra)
