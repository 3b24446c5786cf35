"""Looks at engines in the background: health probes and log readings, so that the loop waits for none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from orchestrator.errors import EngineUnreachable, OrchestratorError, UpstreamError
from orchestrator.model import Deployment, EngineKind, Fleet, Instance, InstanceState, Phase, Progress, Replica
from orchestrator.ports import Engine, Runtime
from orchestrator.upstream import Pool, Timeouts

STARTING_PROBE_S = 0.1
"""A starting engine is asked this often: it bounds how late we notice that it is ready."""
READY_PROBE_S = 2.0
LOG_READ_S = 1.0
LOG_TAIL_BYTES = 64 * 2**10
PROBE_TIMEOUTS = Timeouts(connect_timeout_s=2, first_byte_timeout_s=5, stream_idle_timeout_s=5, request_timeout_s=5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What the scout has found since it was last asked."""

    instances: tuple[Instance, ...]
    """Those it was given, but ended ones whose log is still being read count as ending: an end is told
    together with its cause, a few milliseconds on."""
    healthy: Mapping[str, bool]
    asleep: Mapping[str, bool]
    progress: Mapping[str, Progress]
    fixed_bytes: Mapping[str, int]
    failures: Mapping[str, str]


class Scout:
    """Owns the probes. `spawn` runs a coroutine as a supervised task; `wake` is called when one has news."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        engines: Mapping[EngineKind, Engine],
        spawn: Callable[[Coroutine[None, None, None]], None],
        wake: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._engines = engines
        self._spawn = spawn
        self._wake = wake
        self._due: dict[str, float] = {}
        self._log_due: dict[str, float] = {}
        self._busy: set[str] = set()
        self._stale: set[str] = set()
        """Those whose probe began before they were sent away or to sleep: what it finds is no news."""
        self._news = asyncio.Event()
        self._healthy: dict[str, bool] = {}
        self._asleep: dict[str, bool] = {}
        self._progress: dict[str, Progress] = {}
        self._fixed_bytes: dict[str, int] = {}
        self._failures: dict[str, str] = {}

    def look(
        self, instances: tuple[Instance, ...], fleet: Fleet, deployments: Mapping[str, Deployment], now: float
    ) -> Report:
        """Start the probes that are due, and report what earlier ones found. Does not block."""
        here = {instance.id: instance for instance in instances}
        for instance in here.values():
            deployment = deployments.get(instance.model)
            if instance.id in self._busy:
                if _resting(fleet.replicas.get(instance.id)):
                    self._stale.add(instance.id)
                    self._due.pop(instance.id, None)
            elif deployment is not None:
                self._send(instance, deployment, fleet, now)
        for memory in (self._due, self._log_due, self._progress, self._fixed_bytes, self._failures):
            for gone in memory.keys() - here.keys():
                del memory[gone]
        healthy, self._healthy = self._healthy, {}
        asleep, self._asleep = self._asleep, {}
        return Report(
            instances=tuple(self._explained(i, fleet) for i in instances),
            healthy=healthy,
            asleep=asleep,
            progress=dict(self._progress),
            fixed_bytes=dict(self._fixed_bytes),
            failures=dict(self._failures),
        )

    async def settled(self, timeout_s: float) -> None:
        """Wait until no look is under way, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._busy:
                    self._news.clear()
                    await self._news.wait()

    def _explained(self, instance: Instance, fleet: Fleet) -> Instance:
        if instance.id in self._busy and _needs_autopsy(instance, fleet):
            return replace(instance, state=InstanceState.STOPPING)
        return instance

    def _send(self, instance: Instance, deployment: Deployment, fleet: Fleet, now: float) -> None:
        replica = fleet.replicas.get(instance.id)
        if _needs_autopsy(instance, fleet):
            if instance.id not in self._failures:
                self._begin(instance.id, self._autopsy(instance, deployment))
        elif _resting(replica):
            self._due.pop(instance.id, None)  # one that is woken is asked at once
        elif instance.state is InstanceState.RUNNING and instance.endpoint and now >= self._due.get(instance.id, 0):
            ready = replica is not None and replica.phase is Phase.READY
            read_log = not ready and now >= self._log_due.get(instance.id, 0)
            self._due[instance.id] = now + (READY_PROBE_S if ready else STARTING_PROBE_S)
            if read_log:
                self._log_due[instance.id] = now + LOG_READ_S
            self._begin(instance.id, self._probe(instance, instance.endpoint, deployment, read_log=read_log))

    def _begin(self, replica: str, work: Coroutine[None, None, None]) -> None:
        self._busy.add(replica)
        self._spawn(self._supervised(replica, work))

    async def _supervised(self, replica: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        finally:
            self._busy.discard(replica)
            self._stale.discard(replica)
            self._news.set()

    async def _probe(self, instance: Instance, endpoint: str, deployment: Deployment, *, read_log: bool) -> None:
        engine = self._engines[deployment.engine]
        healthy = await answers(endpoint, engine.health_path(deployment))
        asleep = await self._ask_sleeper(endpoint, engine) if healthy and engine.sleeps(deployment) else False
        if instance.id in self._stale:
            return
        if asleep is not False:
            healthy = False  # whatever its health says: it may not be sent requests
        if asleep:
            self._asleep[instance.id] = True
        if read_log:
            tail = await self._log_tail(instance.id)
            self._progress[instance.id] = engine.progress(tail)
            if healthy and instance.gpus and (taken := engine.fixed_bytes(tail)) is not None:
                self._fixed_bytes[instance.id] = taken
        self._healthy[instance.id] = healthy
        if healthy or asleep or read_log:
            self._wake()

    async def _ask_sleeper(self, endpoint: str, engine: Engine) -> bool | None:
        """Whether it sleeps; None: it does not say."""
        try:
            return await engine.asleep(endpoint)
        except EngineUnreachable:
            return None

    async def _autopsy(self, instance: Instance, deployment: Deployment) -> None:
        """What the runtime knows for certain, else what the engine said."""
        if instance.reason:
            self._failures[instance.id] = instance.reason
        else:
            tail = await self._log_tail(instance.id)
            engine = self._engines[deployment.engine]
            self._failures[instance.id] = engine.failure(tail, instance.exit_code)
        self._wake()

    async def _log_tail(self, replica: str) -> str:
        try:
            return await self._runtime.log_tail(replica, tail_bytes=LOG_TAIL_BYTES)
        except OrchestratorError:
            return ""


def _resting(replica: Replica | None) -> bool:
    """Whether its health is of no interest."""
    return replica is not None and replica.phase in (Phase.DRAINING, Phase.FAILED, Phase.SLEEPING)


def _needs_autopsy(instance: Instance, fleet: Fleet) -> bool:
    """Whether it ended unasked."""
    replica = fleet.replicas.get(instance.id)
    leaving = replica is None or replica.phase in (Phase.DRAINING, Phase.FAILED)
    return instance.state is InstanceState.EXITED and not leaving


async def answers(endpoint: str, path: str) -> bool:
    """Whether a GET of `path` is answered 200 within `PROBE_TIMEOUTS`. An engine's faults are False."""
    address = urlsplit(endpoint)
    pool = Pool(address.hostname or "127.0.0.1", address.port or 80, PROBE_TIMEOUTS)
    head = b"GET %b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % (path.encode(), pool.authority)
    try:
        async with asyncio.timeout(PROBE_TIMEOUTS.request_timeout_s):
            connection = await pool.request(head, b"")
            return connection.status == 200
    except (UpstreamError, TimeoutError):
        return False
    finally:
        pool.close()
