"""What actions do to the world: pulls, launches, stops, sleep. One task each, never two of the same at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping

import structlog

from orchestrator import fleet as step
from orchestrator.actions import Launch, Pull, Sleep, Stop, Wake
from orchestrator.errors import LaunchFailed, OrchestratorError, PreflightFailed, WeightsError
from orchestrator.gpu import Grant
from orchestrator.metrics import Metrics
from orchestrator.model import Deployment, EngineKind, Fleet, Replica
from orchestrator.ports import Engine, LaunchSpec, Runtime, WeightsStore

EFFECTS_MAX = 64
"""Under way at once; what does not fit is decided again."""
GRACE_S_DEFAULT = 10.0
"""For engines whose model is no longer configured."""

Outcome = Callable[[Fleet, float], Fleet]
Key = tuple[type, str]

log = structlog.get_logger()


class Effects:
    """Runs actions in the background. What came of them waits in `outcomes` for the loop, which folds it in."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        weights: WeightsStore,
        engines: Mapping[EngineKind, Engine],
        metrics: Metrics,
        wake: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._weights = weights
        self._engines = engines
        self._metrics = metrics
        self._wake = wake
        self._running: set[Key] = set()
        self._ended: list[Key] = []
        self._outcomes: list[Outcome] = []
        self._tasks: asyncio.TaskGroup | None = None

    def run_in(self, tasks: asyncio.TaskGroup) -> None:
        """Where effects run from now on."""
        self._tasks = tasks

    def outcomes(self) -> list[Outcome]:
        """What is new since the last call. An effect counts as under way until then, so that none is decided anew
        before what came of it is known."""
        known, self._outcomes = self._outcomes, []
        ended, self._ended = self._ended, []
        self._running.difference_update(ended)
        return known

    def outcome(self, fold: Outcome) -> None:
        """Hand the loop what happened; the next pass folds it in."""
        self._outcomes.append(fold)
        self._wake()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run something that is nobody's effect, such as a probe."""
        if self._tasks is None:
            work.close()
            return
        self._tasks.create_task(work)

    def pull(self, deployment: Deployment) -> bool:
        """Begin, unless it is under way; the others likewise."""
        return self._begin((Pull, deployment.name), self._pull(deployment))

    def launch(self, action: Launch, deployment: Deployment, weights_path: str | None) -> bool:
        """Start a replica."""
        return self._begin((Launch, action.model), self._launch(action, deployment, weights_path))

    def stop(self, action: Stop, grace_s: float) -> bool:
        """End a replica; not while its model's launch is under way."""
        if (Launch, action.model) in self._running:
            return False
        return self._begin((Stop, action.replica), self._stop(action, grace_s))

    def sleep(self, replica: Replica, deployment: Deployment) -> bool:
        """Put a replica to sleep."""
        return self._begin((Sleep, replica.id), self._sleep(replica, deployment))

    def wake(self, replica: Replica, deployment: Deployment) -> bool:
        """Wake a replica."""
        return self._begin((Wake, replica.id), self._wake_up(replica, deployment))

    def _begin(self, key: Key, effect: Coroutine[None, None, None]) -> bool:
        if key in self._running or len(self._running) >= EFFECTS_MAX or self._tasks is None:
            effect.close()
            return False
        self._running.add(key)
        self._tasks.create_task(self._supervised(key, effect))
        return True

    async def _supervised(self, key: Key, effect: Coroutine[None, None, None]) -> None:
        """Run an effect to its end. One that fails is logged and decided again; it never ends the loop."""
        try:
            await effect
        except Exception as error:  # a task group would end the loop with it
            self._metrics.loop_errors.labels(key[0].__name__.lower()).inc()
            expected = isinstance(error, OrchestratorError | OSError)
            log.error("effect_failed", effect=key[0].__name__, on=key[1], error=str(error), exc_info=not expected)
        finally:
            self._ended.append(key)
            self._wake()

    async def _pull(self, deployment: Deployment) -> None:
        model = deployment.name
        log.info("pulling", model=model, source=deployment.source)
        self._wake()
        try:
            await self._weights.pull(deployment)
        except WeightsError as error:
            text, permanent = str(error), error.permanent
            self.outcome(lambda fleet, now: step.failed(fleet, model, text, now, permanent=permanent))
            raise
        log.info("pulled", model=model)

    async def _launch(self, action: Launch, deployment: Deployment, path: str | None) -> None:
        engine = self._engines[deployment.engine]
        grant = Grant(gpus=len(action.gpus), memory_fraction=action.memory_fraction)
        try:
            await asyncio.to_thread(engine.preflight, deployment, path)
            await asyncio.to_thread(self._weights.used, deployment)
            spec = LaunchSpec(
                id=action.replica,
                model=deployment.name,
                spec=deployment.spec,
                argv=engine.argv(deployment, path, grant),
                env=tuple({**engine.env(deployment), **dict(deployment.env)}.items()),
                image=deployment.image,
                weights=path,
                host=action.host,
                gpus=action.gpus,
                gpu_bytes=action.gpu_bytes,
            )
            await self._runtime.launch(spec)
        except Exception as error:  # none may leave the replica counted for ever; it goes on to the log
            text = str(error) if isinstance(error, OrchestratorError | OSError) else "the launch failed: see the log"
            sure = isinstance(error, PreflightFailed | LaunchFailed)
            self.outcome(lambda fleet, now: step.launch_failed(fleet, action, text, now, sure=sure))
            raise
        self.outcome(lambda fleet, now: step.landed(fleet, action.replica, now))
        log.info("launched", model=deployment.name, replica=action.replica, gpus=action.gpus)

    async def _stop(self, action: Stop, grace_s: float) -> None:
        log.info("stopping", model=action.model, replica=action.replica, reason=action.reason)
        await self._runtime.stop(action.replica, grace_s=grace_s)
        self.outcome(lambda fleet, _: step.stopped(fleet, action.replica))

    async def _sleep(self, replica: Replica, deployment: Deployment) -> None:
        try:
            await self._engines[deployment.engine].sleep(replica.endpoint or "", deployment)
        except Exception:  # whatever it was: it is stopped instead, and the error goes on to the log
            self.outcome(lambda fleet, _: step.sleepless(fleet, replica.id))
            raise
        self.outcome(lambda fleet, now: step.slept(fleet, replica.id, now))
        log.info("asleep", model=deployment.name, replica=replica.id)

    async def _wake_up(self, replica: Replica, deployment: Deployment) -> None:
        log.info("waking", model=deployment.name, replica=replica.id)
        try:
            await self._engines[deployment.engine].wake(replica.endpoint or "", deployment)
        except OrchestratorError as error:
            text = f"it did not wake: {error}"
            self.outcome(lambda fleet, now: step.broken(fleet, replica.id, text, now))
            raise
