"""Short ways to say the core's values in tests."""

from __future__ import annotations

from typing import Any

from orchestrator.model import (
    Demand,
    Deployment,
    EngineKind,
    Fleet,
    Instance,
    InstanceState,
    Phase,
    Replica,
    Weights,
    WeightsState,
)

PRESENT = Weights(state=WeightsState.PRESENT, path="/w")


def deployment(name: str = "m", **more: Any) -> Deployment:
    return Deployment(name=name, **{"engine": EngineKind.COMMAND, "source": "", "idle_timeout_s": 100.0, **more})


def replica(phase: Phase, id: str = "m-b-0", of: Deployment | None = None, **more: Any) -> Replica:
    model = of or deployment()
    base = {"model": model.name, "spec": model.spec, "created_at": 0.0, "phase_at": 0.0, "seen": True}
    if more.get("seen", True):
        base["landed_at"] = 0.0
    if phase in (Phase.READY, Phase.DRAINING):
        base |= {"ready_at": 0.0, "idle_at": 0.0}
    return Replica(id=id, phase=phase, **{**base, **more})


def fleet(*replicas: Replica, demand: Demand | None = None, weights: Weights = PRESENT, **more: Any) -> Fleet:
    base: dict[str, Any] = {"known": True, "weights": {"m": weights}, "weights_at": {"m": 0.0}}
    if demand is not None:
        base["demand"] = {"m": demand}
    return Fleet(replicas={r.id: r for r in replicas}, **{**base, **more})


def instance(id: str = "m-b-0", state: InstanceState = InstanceState.RUNNING, **more: Any) -> Instance:
    base = {"model": "m", "spec": deployment().spec, "endpoint": "http://127.0.0.1:1"}
    return Instance(id=id, state=state, **{**base, **more})
