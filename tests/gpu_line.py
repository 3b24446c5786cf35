"""Fleets with a line for GPUs, for tests of who starts, wakes, waits or makes room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.actions import Action, Drain, Launch, Stop, Wake
from orchestrator.decide import decide, waits
from orchestrator.gpu import Gpu, Lent, Need
from orchestrator.model import Demand, Deployment, Fleet, IdleAction, Phase, Replica, Track
from tests.gpus import GB, holder, machine, need
from tests.values import PRESENT, deployment

NOW = 1000.0
WHOLE = need()


def model(name: str, **more: Any) -> Deployment:
    """Stays 60 s, gives way after 120 s when busy, leaves after 300 s of idleness."""
    return deployment(name, **{"gpus": None, "idle_timeout_s": 300.0, **more})


def on(name: str, *gpus: int, ready_s: float = 500, idle_s: float | None = 100, **more: Any) -> Replica:
    """A replica of `name` that has been ready, and idle, for so long; None: requests are in flight."""
    times = {"ready_at": NOW - ready_s, "idle_at": None if idle_s is None else NOW - idle_s, "created_at": NOW - 600}
    return holder(name, *gpus, **{"phase_at": NOW - ready_s, **times, **more})


def starting(name: str, *gpus: int, for_s: float = 10, **more: Any) -> Replica:
    """One that has been starting for so long."""
    times = {"created_at": NOW - for_s, "phase_at": NOW - for_s}
    return holder(name, *gpus, phase=Phase.STARTING, **{**times, **more})


def asleep(name: str, *gpus: int, for_s: float = 50, **more: Any) -> Replica:
    """A sleeper."""
    return holder(name, *gpus, phase=Phase.SLEEPING, phase_at=NOW - for_s, created_at=NOW - 600, **more)


def known(
    gpus: tuple[Gpu, ...],
    *replicas: Replica,
    waiting: Mapping[str, float] | None = None,
    needs: Mapping[str, Need] | None = None,
    models: Mapping[str, Deployment] | None = None,
    foreign: Mapping[str, float] | None = None,
    **more: Any,
) -> Fleet:
    """`waiting`: who has been in line for so many seconds. Who is not named needs one whole GPU."""
    waiting, names = waiting or {}, {*(models or {}), *(r.model for r in replicas), *(waiting or {})}
    base: dict[str, Any] = {
        "known": True,
        "gpus": gpus,
        "replicas": {r.id: r for r in replicas},
        "weights": dict.fromkeys(names, PRESENT),
        "demand": {name: Demand(asked_at=NOW - 0.5) for name in waiting},
        "tracks": {name: Track(phase=Phase.QUEUED, phase_at=NOW - since) for name, since in waiting.items()},
        "needs": {name: (needs or {}).get(name, WHOLE) for name in names},
        "lent": {uuid: Lent(foreign_bytes=int(used * GB)) for uuid, used in (foreign or {}).items()},
    }
    return Fleet(**{**base, **more})


def told(action: Action) -> str:
    match action:
        case Launch(model=name, gpus=gpus):
            return f"{name} on {' '.join(gpus)}" if gpus else f"{name} anywhere"
        case Wake(model=name):
            return f"{name} wakes"
        case Drain(model=name, patient=True, then=IdleAction.SLEEP):
            return f"{name} dozes off"
        case Drain(model=name, patient=True):
            return f"{name} leaves"
        case Stop(model=name):
            return f"{name} ends"
    return str(action)


def line(
    fleet: Fleet, models: Mapping[str, Deployment] | None = None
) -> tuple[list[str], dict[str, tuple[int, float]]]:
    """What happens, and who waits: place and seconds."""
    everyone = {name: model(name) for name in fleet.needs} | dict(models or {})
    fleet = current(fleet, everyone)
    happens = [told(action) for action in decide(everyone, fleet, NOW)]
    return happens, {name: (w.place, w.seconds) for name, w in waits(everyone, fleet, NOW).items()}


def current(fleet: Fleet, models: Mapping[str, Deployment]) -> Fleet:
    """All of them run with the settings of now."""
    return replace(fleet, replicas={r.id: replace(r, spec=models[r.model].spec) for r in fleet.replicas.values()})


def happens(fleet: Fleet, **models: Deployment) -> list[str]:
    return line(fleet, models)[0]


def sleepy(name: str) -> Deployment:
    """One that falls asleep when it is idle."""
    return model(name, idle_action=IdleAction.SLEEP)


ONE, TWO, FOUR = machine(80), machine(80, 80), machine(80, 80, 80, 80)
BUSY: dict[str, Any] = {"idle_s": None}
