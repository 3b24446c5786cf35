"""Short ways to say GPUs and who is on them, in tests."""

from __future__ import annotations

from typing import Any

from orchestrator.gpu import Gpu, Need, Size
from orchestrator.model import Phase, Replica
from orchestrator.placement import Room, rooms
from tests.values import deployment, replica

GB = 10**9


def gpu(index: int, gigabytes: float = 80, **more: Any) -> Gpu:
    """``G0``, ``G1`` …, empty; on a host of that name when one is given."""
    memory = int(gigabytes * GB)
    uuid = f"{more.get('host', '')}G{index}"
    return Gpu(**{"uuid": uuid, "memory_bytes": memory, "free_bytes": memory, "index": index, **more})


def machine(*gigabytes: float) -> tuple[Gpu, ...]:
    """One GPU of each size."""
    return tuple(gpu(index, size) for index, size in enumerate(gigabytes))


def need(least: float = 0, wanted: float | None = None, gpus: int = 1, *more: Size) -> Need:
    """One size, in GB; then further ones."""
    return Need(sizes=(size(least, wanted, gpus), *more))


def size(least: float = 0, wanted: float | None = None, gpus: int = 1) -> Size:
    """In GB."""
    return Size(gpus=gpus, bytes_min=int(least * GB), bytes_wanted=None if wanted is None else int(wanted * GB))


def holder(name: str, *on: int, gigabytes: float = 0, phase: Phase = Phase.READY, **more: Any) -> Replica:
    """The replica of model `name` on GPUs of these numbers; 0 GB: all of them. It was last used a while ago."""
    held = {"gpus": tuple(f"G{n}" for n in on), "gpu_bytes": int(gigabytes * GB)}
    if phase is Phase.SLEEPING:
        held |= {"ready_at": 0.0, "idle_at": 0.0}
    return replica(phase, name, of=deployment(name), **{**held, **more})


def on(gpus: tuple[Gpu, ...], *replicas: Replica, foreign: dict[str, float] | None = None) -> tuple[Room, ...]:
    """The rooms of these GPUs; what others use in GB."""
    return rooms(gpus, {uuid: int(used * GB) for uuid, used in (foreign or {}).items()}, replicas)
