"""A runtime in memory, for tests of what stands on the seam: same promises, virtual time, faults on demand.

It passes the contract tests that the real ones pass, so that what holds over it holds over them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum, auto

from orchestrator.errors import LaunchFailed, NotFound, RuntimeUnavailable
from orchestrator.gpu import Gpu
from orchestrator.model import Instance, InstanceState
from orchestrator.ports import Clock, LaunchSpec


class LaunchFault(Enum):
    """How the next launches go wrong."""

    REFUSED = auto()
    """It does not exist and will not: `LaunchFailed`."""
    LOST = auto()
    """The call fails before anything happened; the caller can't know."""
    UNHEARD = auto()
    """It happened, but the call fails; the caller can't know."""


@dataclass
class FakeEngine:
    """One engine; `ends_at` and `exit_code` say how it ends by itself, if so."""

    spec: LaunchSpec
    log: bytes = b""
    ends_at: float = float("inf")
    exit_code: int | None = None
    stopping: bool = False


class FakeRuntime:
    """`ports.Runtime` without processes. Every engine is said to be at `endpoint`.

    `launched` and `stopped` tell what was asked, in order; set `silent` and `launch_fault` to make trouble.
    """

    def __init__(self, *, clock: Clock, endpoint: str = "http://127.0.0.1:1", gpus: tuple[Gpu, ...] = ()) -> None:
        self._clock = clock
        self._endpoint = endpoint
        self._gpus = gpus
        self._engines: dict[str, FakeEngine] = {}
        self._logs: dict[str, bytes] = {}
        self.launched: list[str] = []
        self.stopped: list[str] = []
        self.silent = False
        self.launch_fault: LaunchFault | None = None

    def write(self, replica: str, text: bytes) -> None:
        """The engine says something."""
        self._engines[replica].log += text

    def end(self, replica: str, *, exit_code: int, in_s: float = 0.0) -> None:
        """The engine ends by itself, `in_s` seconds from now on the clock."""
        engine = self._engines[replica]
        engine.ends_at, engine.exit_code = self._clock.monotonic() + in_s, exit_code

    async def launch(self, spec: LaunchSpec) -> None:
        """See `ports.Runtime.launch`."""
        self._answer()
        if self.launch_fault is LaunchFault.REFUSED:
            raise LaunchFailed("the fake runtime was told to refuse")
        if self.launch_fault is LaunchFault.LOST:
            raise RuntimeUnavailable("the call was lost")
        if spec.id not in self._engines:
            self.launched.append(spec.id)
            self._engines[spec.id] = FakeEngine(spec)
        if self.launch_fault is LaunchFault.UNHEARD:
            raise RuntimeUnavailable("the answer was lost")

    async def list(self) -> tuple[Instance, ...]:
        """See `ports.Runtime.list`."""
        self._answer()
        return tuple(self._instance(engine) for engine in self._engines.values())

    async def stop(self, replica: str, *, grace_s: float) -> None:
        """See `ports.Runtime.stop`. Every engine is polite here: it ends at the next turn of the loop."""
        self._answer()
        engine = self._engines.get(replica)
        if engine is None:
            return
        engine.stopping = True
        await asyncio.sleep(0)
        if self._engines.pop(replica, None) is not None:
            self.stopped.append(replica)
            self._logs[replica] = engine.log

    async def logs(self, replica: str, *, tail_bytes: int, follow: bool = False) -> AsyncIterator[bytes]:
        """See `ports.Runtime.logs`."""
        at = max(0, len(self._log(replica)) - tail_bytes)
        lives = True
        while lives:
            lives = follow and replica in self._engines and self._lives(self._engines[replica])
            if chunk := self._log(replica)[at:]:
                at += len(chunk)
                yield chunk
            await asyncio.sleep(0)

    async def log_tail(self, replica: str, *, tail_bytes: int) -> str:
        """See `ports.Runtime.log_tail`."""
        try:
            return self._log(replica)[-tail_bytes:].decode("utf-8", "replace")
        except NotFound:
            return ""

    def places(self) -> tuple[str, ...]:
        """Only this one."""
        return ()

    def watch(self, changed: Callable[[], None]) -> None:
        """See `ports.Runtime.watch`. No news."""

    def close(self) -> None:
        """See `ports.Runtime.close`."""

    async def gpus(self) -> tuple[Gpu, ...]:
        """Those it was made with."""
        self._answer()
        return self._gpus

    def _answer(self) -> None:
        if self.silent:
            raise RuntimeUnavailable("the fake runtime was told to be silent")

    def _log(self, replica: str) -> bytes:
        if replica in self._engines:
            return self._engines[replica].log
        if replica not in self._logs:
            raise NotFound(f"no log of {replica[:80]!r}")
        return self._logs[replica]

    def _lives(self, engine: FakeEngine) -> bool:
        return self._clock.monotonic() < engine.ends_at

    def _instance(self, engine: FakeEngine) -> Instance:
        state = InstanceState.RUNNING if self._lives(engine) else InstanceState.EXITED
        return Instance(
            id=engine.spec.id,
            model=engine.spec.model,
            spec=engine.spec.spec,
            state=InstanceState.STOPPING if engine.stopping else state,
            endpoint=self._endpoint,
            gpus=engine.spec.gpus,
            exit_code=None if self._lives(engine) else engine.exit_code,
        )
