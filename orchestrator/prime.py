"""Has weights read into memory ahead of the engine, which spends the first part of its start on imports."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace

import structlog

from orchestrator.model import Deployment, EngineKind, Fleet, Phase, Progress, WeightsState
from orchestrator.ports import Prime

ENGINES = (EngineKind.VLLM, EngineKind.SGLANG)
"""Those that read their weights through the page cache, all of them, at every start."""

log = structlog.get_logger()


@dataclass
class _Reading:
    """One model's weights on their way into memory."""

    total_bytes: int
    read_bytes: int = 0
    unwanted: threading.Event = field(default_factory=threading.Event)

    def add(self, count: int) -> None:
        self.read_bytes += count


class Primer:
    """Reads for those that start or wait for a GPU, one model at a time: the disk is the bottleneck."""

    def __init__(self, *, prime: Prime | None, spawn: Callable[[Coroutine[None, None, None]], None]) -> None:
        self._prime = prime
        self._spawn = spawn
        self._running: tuple[str, _Reading] | None = None
        self._done: set[str] = set()

    def look(self, fleet: Fleet, deployments: Mapping[str, Deployment]) -> None:
        """Begin what is due, and give up what is no longer wanted. Does not block."""
        coming = [name for name, d in deployments.items() if d.engine in ENGINES and _comes(fleet, d)]
        self._done &= set(coming)
        if self._running is not None:
            name, reading = self._running
            if name not in coming:
                reading.unwanted.set()
            return
        for name in coming:
            weights = fleet.weights.get(name)
            path = weights.path if weights is not None and weights.state is WeightsState.PRESENT else None
            if self._prime is not None and weights is not None and path and name not in self._done:
                reading = _Reading(total_bytes=weights.total_bytes or 0)
                self._running = name, reading
                self._spawn(self._read(name, path, reading, self._prime))
                return

    def shown(self, model: str, progress: Progress) -> Progress:
        """A start's progress, with the reading's for as long as the engine's log has nothing to tell."""
        if self._running is None or self._running[0] != model or progress.phase is not Phase.STARTING:
            return progress
        reading = self._running[1]
        if not reading.total_bytes or not reading.read_bytes:
            return progress
        done = min(reading.read_bytes / reading.total_bytes, 1.0)
        return replace(progress, fraction=done, note="reading weights into memory")

    async def _read(self, model: str, path: str, reading: _Reading, prime: Prime) -> None:
        try:
            told = await asyncio.to_thread(prime, path, reading.add, reading.unwanted.is_set)
            log.info("primed", model=model, read_bytes=reading.read_bytes, told=told)
        finally:
            self._done.add(model)
            self._running = None


def _comes(fleet: Fleet, deployment: Deployment) -> bool:
    """Whether an engine of it starts, or would if there were a GPU; or wakes, unless that reads no weights."""
    coming = [r for r in fleet.of(deployment.name) if r.phase in (Phase.STARTING, Phase.LOADING)]
    reads = any(replica.woken_at is None or deployment.sleep_level > 1 for replica in coming)
    return deployment.name in fleet.waits or reads
