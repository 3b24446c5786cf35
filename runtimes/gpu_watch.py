"""The GPUs of this machine, off the event loop and not asked more often than they change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from orchestrator.gpu import Gpu
from runtimes.gpus import GpuReader, Inventory

FRESH_S = 0.5
LOOK_WAIT_S = 2.0
"""A driver that hangs must not hold the loop; what was known stands meanwhile."""
PATIENCE_S = LOOK_WAIT_S / 2
"""For a `GpuReader`, which waits twice as long at most."""


class GpuSource(Protocol):
    """Tells the GPUs of one host."""

    @property
    def known(self) -> tuple[Gpu, ...]:
        """As of the last look."""

    @property
    def ready(self) -> bool:
        """Whether a look has succeeded yet."""

    async def gpus(self) -> tuple[Gpu, ...]:
        """As of now, or of a moment ago. Never raises."""


class LocalGpus:
    """Looks at most every `FRESH_S`; `known` is what the last look saw, in which a GPU that can't be read is none."""

    def __init__(self, reader: GpuReader, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._now = monotonic
        self._looked_at: float | None = None
        self._look: asyncio.Future[Inventory] | None = None
        self.known: tuple[Gpu, ...] = ()
        self.ready = False

    async def gpus(self) -> tuple[Gpu, ...]:
        """As of a moment ago. Never raises; waits `LOOK_WAIT_S` at most."""
        if self._looked_at is not None and self._now() - self._looked_at < FRESH_S:
            return self.known
        if self._look is None:
            self._look = asyncio.ensure_future(asyncio.to_thread(self._reader.look))
        done, _ = await asyncio.wait((self._look,), timeout=LOOK_WAIT_S)
        if done:
            found, self._look, self.ready = self._look.result(), None, True
            self.known = found.gpus if found.absent or not found.problem else _unfit(self.known, found.problem)
        self._looked_at = self._now()
        return self.known


def _unfit(known: tuple[Gpu, ...], problem: str) -> tuple[Gpu, ...]:
    """GPUs that can't be read now are there all the same; nothing new is placed on them."""
    return tuple(replace(gpu, healthy=False, fault=gpu.fault or problem) for gpu in known)


class NoGpus:
    """A host whose GPUs nobody can tell."""

    known: tuple[Gpu, ...] = ()
    ready = True

    async def gpus(self) -> tuple[Gpu, ...]:
        """None."""
        return ()
