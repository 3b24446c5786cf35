"""What the loop can do; `decide` says which, `reconcile` does it. Doing one twice is harmless."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.model import IdleAction


@dataclass(frozen=True, kw_only=True, slots=True)
class Pull:
    """Fetch a model's weights."""

    model: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Start one replica on the GPUs named."""

    model: str
    replica: str
    host: str = ""
    gpus: tuple[str, ...] = ()
    gpu_bytes: int = 0
    """Its lease of each of these."""
    memory_fraction: float | None = None
    """As `Grant.memory_fraction`."""
    serial: int = 0
    """As `Fleet.serial`, in its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drain:
    """Send a replica no more requests; let it finish what it has."""

    model: str
    replica: str
    reason: str
    then: IdleAction = IdleAction.STOP
    patient: bool = False
    """Its requests are not cut when the drain limit is over: it was only busy, and has to make room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sleep:
    """Put a replica that nobody uses to sleep: its GPUs are free but for a rest, and it wakes in seconds."""

    model: str
    replica: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Wake:
    """Wake a replica on the GPUs that it has."""

    model: str
    replica: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """End a replica and forget it. Harmless when it is gone already."""

    model: str
    replica: str
    reason: str


Action = Pull | Launch | Drain | Sleep | Wake | Stop
