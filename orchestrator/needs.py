"""What each model needs of GPUs: read once from its folder, corrected by what earlier starts took."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from statistics import median

from orchestrator.fit import need
from orchestrator.gpu import ModelShape, Need
from orchestrator.model import Deployment, EngineKind, StartRecord, Weights, WeightsState
from orchestrator.ports import Engine

STARTS_MAX = 5
"""How many of the newest starts count."""


class Needs:
    """Owns the shapes that were read. `wake` is called when one has been."""

    def __init__(
        self,
        *,
        engines: Mapping[EngineKind, Engine],
        spawn: Callable[[Coroutine[None, None, None]], None],
        wake: Callable[[], None],
    ) -> None:
        self._engines = engines
        self._spawn = spawn
        self._wake = wake
        self._shapes: dict[tuple[str, str], ModelShape | None] = {}
        self._reading: set[tuple[str, str]] = set()

    def look(
        self, deployments: Mapping[str, Deployment], weights: Mapping[str, Weights], past: Sequence[StartRecord]
    ) -> dict[str, Need]:
        """What is known now; a model whose folder is still being read is left out, unless it needs no GPU anyway.
        Does not block."""
        found = {}
        for name, deployment in deployments.items():
            engine = self._engines[deployment.engine]
            if deployment.gpus == 0 or (deployment.gpus is None and not engine.accelerated):
                found[name] = Need()
                continue
            store = weights.get(name)
            if store is None or store.state is not WeightsState.PRESENT:
                continue
            key = (deployment.spec, store.path or "")
            if key not in self._shapes:
                self._read(key, deployment, engine)
                continue
            fixed = fixed_bytes(deployment, past)
            found[name] = need(deployment, self._shapes[key], accelerated=True, fixed_bytes=fixed)
        return found

    def _read(self, key: tuple[str, str], deployment: Deployment, engine: Engine) -> None:
        if key not in self._reading:
            self._reading.add(key)
            self._spawn(self._learn(key, deployment, engine))

    async def _learn(self, key: tuple[str, str], deployment: Deployment, engine: Engine) -> None:
        """A folder that can't be read has no shape; the preflight tells why."""
        try:
            self._shapes[key] = await asyncio.to_thread(engine.shape, deployment, key[1] or None)
        except OSError:
            self._shapes[key] = None
        finally:
            self._reading.discard(key)
            self._wake()


def fixed_bytes(deployment: Deployment, past: Sequence[StartRecord]) -> int | None:
    """What weights and overhead took in earlier starts with these settings, all GPUs together. `past`: newest first."""
    same = [s.gpu_fixed_bytes for s in past if s.spec == deployment.spec and s.gpu_fixed_bytes][:STARTS_MAX]
    return int(median(same)) if same else None
