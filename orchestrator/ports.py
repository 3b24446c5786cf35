"""The seams: what the core asks of a runtime, a weights store, an engine adapter and the history."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from orchestrator.gpu import Gpu, Grant, ModelShape
from orchestrator.metering.usage import Counts, Place, Query
from orchestrator.model import Deployment, Instance, Progress, StartRecord, Weights


class Clock(Protocol):
    """Time, passed in so that tests own it."""

    def monotonic(self) -> float:
        """Seconds; never goes back; its zero means nothing."""

    def unix(self) -> float:
        """Seconds since 1970; may step; for people and records only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchSpec:
    """All a runtime needs to start one replica. `id` is the idempotency key."""

    id: str
    model: str
    spec: str
    argv: tuple[str, ...]
    """May hold ``{host}`` and ``{port}``, which the runtime fills in."""
    env: tuple[tuple[str, str], ...] = ()
    image: str = ""
    """What it runs in, where it runs in a container."""
    weights: str | None = None
    """The folder of the weights, for it to read."""
    host: str = ""
    gpus: tuple[str, ...] = ()
    gpu_bytes: int = 0
    """As `Instance.gpu_bytes`; part of what is listed later, the engine is told by its arguments."""


class Runtime(Protocol):
    """Starts, lists and stops engines. The truth about what runs lives there, not in our memory.

    Every method may raise `errors.RuntimeUnavailable`: "I can't tell", which is never "it is gone".
    """

    async def launch(self, spec: LaunchSpec) -> None:
        """Start `spec.id`. Idempotent: launching an id that exists does nothing.

        Returns once the engine's process or container exists, long before it is ready. Raises
        `errors.LaunchFailed` when it does not exist and will not; any other error leaves that open, and
        `list` tells.
        """

    async def list(self) -> tuple[Instance, ...]:
        """Every instance of this orchestrator, exited ones too until `stop` clears them."""

    async def stop(self, replica: str, *, grace_s: float) -> None:
        """End the instance and all it started, politely for `grace_s`, then by force; clear its traces.

        Blocks until nothing is left. Idempotent; an unknown id is fine.
        """

    def logs(self, replica: str, *, tail_bytes: int, follow: bool = False) -> AsyncIterator[bytes]:
        """The last `tail_bytes` of the engine's output, then, with `follow`, what comes until it ends.

        Raises `errors.NotFound` for an id that has no log.
        """

    async def log_tail(self, replica: str, *, tail_bytes: int) -> str:
        """The end of the engine's output as text, undecodable bytes replaced; empty when there is none."""

    async def gpus(self) -> tuple[Gpu, ...] | None:
        """The GPUs that replicas may lease; empty on a machine without; None when that is not known yet."""

    def places(self) -> tuple[str, ...]:
        """The hosts that answered the last listing; none on a runtime that has only one, without a name."""

    def watch(self, changed: Callable[[], None]) -> None:
        """From now on call `changed`, on the running event loop, when something may have changed.

        Only a hint to list again: a change may be told twice, or, when the runtime has no news to give, never.
        Returns at once.
        """

    def close(self) -> None:
        """Let go of threads and connections. Engines run on. Not to be used afterwards."""


class WeightsStore(Protocol):
    """Keeps model weights on disk. One pull per source, however many ask."""

    def look(self, deployment: Deployment) -> Weights:
        """What is there now. Cheap (no network, bounded disk look-ups); called at every tick."""

    async def pull(self, deployment: Deployment) -> None:
        """Fetch what is missing; returns when present. Progress shows in `look`.

        A failure is recorded for `look` (state FAILED with its sentence) and raised as
        `errors.WeightsError`. A second call while one runs waits for that one.
        """

    def used(self, deployment: Deployment) -> None:
        """An engine is about to use what is there. Blocks for a moment."""


class Prime(Protocol):
    """Reads a folder's weights into the page cache. Blocks for as long as the disk takes."""

    def __call__(self, folder: str, on_bytes: Callable[[int], None], cancelled: Callable[[], bool]) -> str:
        """What came of it, in a few words. Never raises for what a disk does. Both callbacks come from threads."""


class Images(Protocol):
    """Keeps the images that engines run in, where engines are containers."""

    async def find(self, images: Iterable[str]) -> None:
        """Learn which of these are there. What can't be told is asked when it is needed."""

    async def aclose(self) -> None:
        """Give up what runs."""


class Engine(Protocol):
    """Knows one kind of engine: how to start it and how to read it. Pure but for `preflight`."""

    def argv(self, deployment: Deployment, weights_path: str | None, grant: Grant) -> tuple[str, ...]:
        """The command line; `{host}` and `{port}` are left for the runtime to fill in."""

    def env(self, deployment: Deployment) -> Mapping[str, str]:
        """Environment variables the engine needs beyond the inherited ones."""

    def health_path(self, deployment: Deployment) -> str:
        """The path whose 200 means: send requests."""

    def preflight(self, deployment: Deployment, weights_path: str | None) -> None:
        """See in milliseconds what would fail after a minute. Raises `errors.PreflightFailed`."""

    def progress(self, log_tail: str) -> Progress:
        """How far a start has come, from the end of the engine's log."""

    @property
    def accelerated(self) -> bool:
        """Whether it runs on GPUs when it may choose."""

    def shape(self, deployment: Deployment, weights_path: str | None) -> ModelShape | None:
        """What the weights' folder tells of the memory that the model needs; None where it can't be told. Blocks."""

    def fixed_bytes(self, log_tail: str) -> int | None:
        """What the engine took of each GPU but for the KV cache, as its log says once it is ready."""

    def sleeps(self, deployment: Deployment) -> bool:
        """Whether this one can sleep; it is asked whether it does before anything is sent to it."""

    async def asleep(self, endpoint: str) -> bool:
        """Whether the engine says that it sleeps. Raises `errors.EngineUnreachable`."""

    async def sleep(self, endpoint: str, deployment: Deployment) -> None:
        """Put it to sleep; returns when it does. Nothing may be in flight. Raises `errors.EngineUnreachable`."""

    async def wake(self, endpoint: str, deployment: Deployment) -> None:
        """Wake it; returns when it is awake. Raises `errors.EngineUnreachable`."""

    def failure(self, log_tail: str, exit_code: int | None) -> str:
        """Why the engine ended, in one sentence, from its own last error line."""


class History(Protocol):
    """Remembers starts, cold and from sleep."""

    def record(self, start: StartRecord) -> None:
        """Keep it. Returns at once; the write happens on the store's own thread."""

    async def starts(
        self, *, model: str | None = None, wake: bool | None = None, limit: int = 100
    ) -> tuple[StartRecord, ...]:
        """The newest first; only wakes, or none, where that is asked. Waits for writes that were asked for before."""


class UsageStore(Protocol):
    """Keeps who used what. Every method may raise `errors.OrchestratorError`: the store can't be used now."""

    async def add(self, rows: Mapping[Place, Counts], serials: Mapping[str, int]) -> None:
        """Add to what is kept, all or nothing; `rows` is not empty; `serials` replace those of the same sources.
        Returns once it outlives a crash."""

    async def rows(self, query: Query, *, rows_max: int) -> list[tuple[Place, Counts]]:
        """The sums by `query.by` and by model, at most `rows_max`; what else of a `Place` is asked for is empty."""

    async def tokens(self, since_unix: float) -> dict[str, int]:
        """Prompt and completion tokens by key, from that hour on."""

    async def serials(self) -> dict[str, int]:
        """Those that are kept, by source, the oldest first; see `metering.serials.Serials`."""
