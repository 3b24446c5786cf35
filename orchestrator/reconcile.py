"""The loop: observe, decide, act. The only writer of the fleet.

A pass runs when it is woken (demand, news of a probe, an effect that ended) or by the scheduler's tick. The
awaits are all in front: from the sighting on, a pass runs without a break, so no request can slip in between
"nobody uses it" and "it takes no more requests".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from urllib.parse import urlsplit

import structlog

from orchestrator import fleet as step
from orchestrator.actions import Action, Drain, Launch, Pull, Stop
from orchestrator.activator import Activator, Lane, Route
from orchestrator.decide import decide
from orchestrator.errors import LaunchFailed, OrchestratorError, PreflightFailed, RuntimeUnavailable, WeightsError
from orchestrator.eta import Expected, expect
from orchestrator.gpu import Grant
from orchestrator.metrics import Metrics
from orchestrator.model import Deployment, EngineKind, Fleet, Instance, LaunchSpec, Phase, Sighting, StartRecord
from orchestrator.ports import Clock, Engine, History, Runtime, WeightsStore
from orchestrator.scout import STARTING_PROBE_S, Scout
from orchestrator.starts import ended_starts
from orchestrator.upstream import Pool, Timeouts

LIST_TIMEOUT_S = 10.0
FIRST_PROBES_S = 1.0
"""How long the first pass waits to hear from engines that outlived us, so that they are adopted as ready."""
HISTORY_STARTS_MAX = 200
SETTLE_S = 2.0
EFFECTS_MAX = 64
"""Effects under way at once; what does not fit is decided again."""

log = structlog.get_logger()


class Reconciler:
    """Brings what runs closer to what is wanted, for ever. `run` is its only task that writes."""

    def __init__(
        self,
        *,
        deployments: Mapping[str, Deployment],
        runtime: Runtime,
        weights: WeightsStore,
        engines: Mapping[EngineKind, Engine],
        history: History,
        activator: Activator,
        metrics: Metrics,
        clock: Clock,
        timeouts: Timeouts,
        boot: str,
        wakeup: asyncio.Event,
        publish: Callable[[Mapping[str, Route]], None],
    ) -> None:
        self.deployments = deployments
        self._runtime = runtime
        self._weights = weights
        self._engines = engines
        self._history = history
        self._activator = activator
        self._metrics = metrics
        self._clock = clock
        self._timeouts = timeouts
        self._wakeup = wakeup
        self._publish = publish
        self._fleet = Fleet(boot=boot)
        self.passed_at = clock.monotonic()
        self._pass_end = asyncio.Event()
        self._lanes: dict[str, Lane] = {}
        self._effects: dict[tuple[type, str], asyncio.Task[None]] = {}
        self._ended: list[tuple[type, str]] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._outcomes: list[Callable[[Fleet, float], Fleet]] = []
        self._past: tuple[StartRecord, ...] = ()
        self._last_replica: dict[str, str] = {}
        self._expected: dict[str, Expected] = {}
        self._scout = Scout(runtime=runtime, engines=engines, spawn=self._spawn, wake=self.wake)

    @property
    def fleet(self) -> Fleet:
        """What is known, to read."""
        return self._fleet

    def wake(self) -> None:
        """Ask for a pass now."""
        self._wakeup.set()

    def forgive(self, model: str) -> None:
        """Somebody asked for the model by hand: its next attempt is now."""
        self._outcome(lambda fleet, _: step.forgiven(fleet, model))

    async def settled(self) -> None:
        """Wait until a pass has seen what was asked for before, at most `SETTLE_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await self._pass_end.wait()

    def configure(self, deployments: Mapping[str, Deployment]) -> None:
        """Take new deployments; what no longer fits leaves in the next passes."""
        self.deployments = deployments
        self._expected = {}
        self.wake()

    async def run(self, started: asyncio.Event) -> None:
        """Pass after pass until cancelled; `started` is set once what outlived us has been adopted."""
        async with asyncio.TaskGroup() as self._tasks:
            self._spawn(self._recall())
            await self._pass()
            await self._scout.settled(FIRST_PROBES_S)
            while True:
                self._wakeup.clear()
                await self._pass()
                started.set()
                await self._next_turn()

    async def _recall(self) -> None:
        """Learn from earlier starts; until then the defaults stand."""
        past = await self._history.starts(limit=HISTORY_STARTS_MAX)
        self._past = (*self._past, *past)[:HISTORY_STARTS_MAX]
        self._expected = {}

    async def stop_all(self, *, grace_s: float) -> None:
        """End every engine of ours; for a shutdown that leaves nothing behind. Blocks until they are gone."""
        instances = await self._runtime.list()
        await asyncio.gather(*(self._runtime.stop(instance.id, grace_s=grace_s) for instance in instances))

    async def _next_turn(self) -> None:
        """Wait to be woken; while an engine starts, no longer than until its next probe."""
        starting = any(r.phase in (Phase.STARTING, Phase.LOADING) for r in self._fleet.replicas.values())
        try:
            async with asyncio.timeout(STARTING_PROBE_S if starting else None):
                await self._wakeup.wait()
        except TimeoutError:
            return

    async def _pass(self) -> None:
        # Before the listing, which so is never older than they are. An effect counts as under way until then, so that
        # none is decided anew before what came of it is known.
        known, self._outcomes = self._outcomes, []
        ended, self._ended = self._ended, []
        for key in ended:
            del self._effects[key]
        instances, gpus = await self._list(), await self._runtime.gpus()
        now = self._clock.monotonic()
        before = self._fleet
        for outcome in known:
            self._fleet = outcome(self._fleet, now)
        report = self._scout.look(instances or (), self._fleet, self.deployments, now)
        sighting = Sighting(
            instances=None if instances is None else report.instances,
            healthy=report.healthy,
            progress=report.progress,
            failures=report.failures,
            weights={name: self._weights.look(d) for name, d in self.deployments.items()},
            demand=self._activator.demand(),
            traffic={replica: lane.traffic() for replica, lane in self._lanes.items()},
            gpus=gpus,
        )
        self._fleet = step.advance(self._fleet, self.deployments, sighting, now)
        for action in decide(self.deployments, self._fleet, now):
            self._act(action, now)
        self._fleet = step.track(self._fleet, self.deployments, now)
        self._remember(before, now)
        self._lay_lanes()
        self._publish(self._routes(now))
        self._metrics.loop_passes.inc()
        self.passed_at = now
        waited_for, self._pass_end = self._pass_end, asyncio.Event()
        waited_for.set()

    async def _list(self) -> tuple[Instance, ...] | None:
        """What runs, or None: unknown."""
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                return await self._runtime.list()
        except (RuntimeUnavailable, TimeoutError) as error:
            log.warning("runtime_unknown", error=str(error))
            return None

    # --- acting ---

    def _act(self, action: Action, now: float) -> None:
        """Begin an action's effect, unless the same one is under way."""
        match action:
            case Drain(model=model, replica=replica, reason=reason):
                self._fleet = step.drained(self._fleet, replica, reason, now)
                log.info("draining", model=model, replica=replica, reason=reason)
                self.wake()
            case Stop(model=model, replica=replica):
                if (Launch, model) not in self._effects and self._begin((Stop, replica), self._stop(action)):
                    self._fleet = step.drained(self._fleet, replica, action.reason, now)
            case Pull(model=model):
                self._begin((Pull, model), self._pull(self.deployments[model]))
            case Launch(model=model):
                deployment = self.deployments[model]
                if self._begin((Launch, model), self._launch(action, deployment)):
                    self._fleet = step.launched(self._fleet, action, deployment, now)

    def _begin(self, key: tuple[type, str], effect: Coroutine[None, None, None]) -> bool:
        if key in self._effects or len(self._effects) >= EFFECTS_MAX or self._tasks is None:
            effect.close()
            return False
        task = self._tasks.create_task(self._supervised(key, effect))
        self._effects[key] = task
        return True

    async def _supervised(self, key: tuple[type, str], effect: Coroutine[None, None, None]) -> None:
        """Run an effect to its end. One that fails is logged and decided again; it never ends the loop."""
        try:
            await effect
        except Exception as error:
            self._metrics.loop_errors.labels(key[0].__name__.lower()).inc()
            expected = isinstance(error, OrchestratorError | OSError)
            log.error("effect_failed", effect=key[0].__name__, on=key[1], error=str(error), exc_info=not expected)
        finally:
            self._ended.append(key)
            self.wake()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        if self._tasks is None:
            work.close()
            return
        self._tasks.create_task(work)

    async def _pull(self, deployment: Deployment) -> None:
        model = deployment.name
        log.info("pulling", model=model, source=deployment.source)
        self.wake()
        try:
            await self._weights.pull(deployment)
        except WeightsError as error:
            text, permanent = str(error), error.permanent
            self._outcome(lambda fleet, now: step.failed(fleet, model, text, now, permanent=permanent))
            raise
        log.info("pulled", model=model)

    async def _launch(self, action: Launch, deployment: Deployment) -> None:
        engine = self._engines[deployment.engine]
        weights = self._fleet.weights.get(deployment.name)
        path = weights.path if weights else None
        try:
            await asyncio.to_thread(engine.preflight, deployment, path)
            spec = LaunchSpec(
                id=action.replica,
                model=deployment.name,
                spec=deployment.spec,
                argv=engine.argv(deployment, path, Grant(gpus=len(action.gpus))),
                env=tuple({**engine.env(deployment), **dict(deployment.env)}.items()),
                image=deployment.image,
                weights=path,
                host=action.host,
                gpus=action.gpus,
            )
            await self._runtime.launch(spec)
        except Exception as error:
            text = str(error) if isinstance(error, OrchestratorError | OSError) else "the launch failed: see the log"
            sure = isinstance(error, PreflightFailed | LaunchFailed)
            self._outcome(lambda fleet, now: step.launch_failed(fleet, action, text, now, sure=sure))
            raise
        self._outcome(lambda fleet, now: step.landed(fleet, action.replica, now))
        log.info("launched", model=deployment.name, replica=action.replica)

    async def _stop(self, action: Stop) -> None:
        deployment = self.deployments.get(action.model)
        log.info("stopping", model=action.model, replica=action.replica, reason=action.reason)
        await self._runtime.stop(action.replica, grace_s=deployment.drain_timeout_s if deployment else 10.0)
        self._outcome(lambda fleet, _: step.stopped(fleet, action.replica))

    def _outcome(self, fold: Callable[[Fleet, float], Fleet]) -> None:
        """Hand the loop what came of an effect; the next pass folds it in."""
        self._outcomes.append(fold)
        self.wake()

    # --- telling ---

    def _remember(self, before: Fleet, now: float) -> None:
        """Keep the starts that ended in this pass, and log each model's change of phase."""
        for name, track in self._fleet.tracks.items():
            old = before.tracks.get(name)
            if old is not None and old.phase is not track.phase:
                log.info("phase", model=name, phase=track.phase.value, was=old.phase.value)
                self._expected.pop(name, None)
        for record in ended_starts(before, self._fleet, self.deployments, self._clock.unix(), now):
            self._history.record(record)
            self._metrics.started(record)
            self._past = (record, *self._past)[:HISTORY_STARTS_MAX]

    def _lay_lanes(self) -> None:
        """One lane for each live engine; a lane that its last request has left is closed."""
        for replica in self._fleet.replicas.values():
            self._last_replica[replica.model] = replica.id
            if replica.phase is Phase.READY and replica.id not in self._lanes and replica.endpoint:
                address = urlsplit(replica.endpoint)
                pool = Pool(address.hostname or "", address.port or 80, self._timeouts)
                self._lanes[replica.id] = Lane(replica.id, pool)
        for gone in self._lanes.keys() - self._fleet.replicas.keys():
            self._lanes.pop(gone).pool.close()

    def sweep(self) -> None:
        """Cut the requests whose engines have been silent for too long. Called about once a second."""
        now = asyncio.get_running_loop().time()
        for lane in self._lanes.values():
            lane.pool.sweep(now)

    def _routes(self, now: float) -> dict[str, Route]:
        return {name: self._route(name, deployment) for name, deployment in self.deployments.items()}

    def _route(self, name: str, deployment: Deployment) -> Route:
        replicas = self._fleet.of(name)
        if name not in self._expected:
            self._expected[name] = expect(name, deployment.engine, deployment.spec, self._past)
        ready = (r for r in replicas if r.phase is Phase.READY and r.id in self._lanes)
        return Route(
            deployment=deployment,
            track=self._fleet.tracks[name],
            lanes=tuple(self._lanes[r.id] for r in ready),
            weights=self._fleet.weights.get(name),
            expected=self._expected[name],
            backoff=self._fleet.backoff.get(name),
            replicas=replicas,
            last_replica=self._last_replica.get(name),
        )
