"""The loop: observe, decide, act. The only writer of the fleet.

A pass runs when it is woken (demand, news of a probe, an effect that ended) or by the scheduler's tick. The
awaits are all in front: from the sighting on, a pass runs without a break, so no request can slip in between
"nobody uses it" and "it takes no more requests".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

import structlog

from orchestrator import fleet as step
from orchestrator.actions import Action, Drain, Launch, Pull, Sleep, Stop, Wake
from orchestrator.activator import Activator, Route
from orchestrator.balance.lane import Lane
from orchestrator.decide import ORPHAN_GRACE_S, decide, waits, wanted
from orchestrator.effects import GRACE_S_DEFAULT, Effects
from orchestrator.errors import RuntimeUnavailable
from orchestrator.eta import Expected, expect
from orchestrator.metrics import Metrics
from orchestrator.model import Deployment, EngineKind, Fleet, Instance, Phase, Progress, Sighting, StartRecord
from orchestrator.needs import Needs
from orchestrator.ports import Clock, Engine, History, Prime, Runtime, WeightsStore
from orchestrator.prime import Primer
from orchestrator.scout import STARTING_PROBE_S, Scout
from orchestrator.starts import ended_starts, newest
from orchestrator.tracks import tracked
from orchestrator.upstream import Pool, Timeouts

LIST_TIMEOUT_S = 10.0
FIRST_PROBES_S = 1.0
"""How long the first pass waits to hear from engines that outlived us, so that they are adopted as ready."""
HISTORY_STARTS_MAX = 200
SETTLE_S = 2.0

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
        prime: Prime | None = None,
        orphan_grace_s: float = ORPHAN_GRACE_S,
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
        self._orphan_grace_s = orphan_grace_s
        self.silence = ""
        """Why the runtime does not answer; empty: it does."""
        self._fleet = Fleet(boot=boot)
        self.passed_at = clock.monotonic()
        self._pass_end = asyncio.Event()
        self._lanes: dict[str, Lane] = {}
        self._effects = Effects(runtime=runtime, weights=weights, engines=engines, metrics=metrics, wake=self.wake)
        self._primer = Primer(prime=prime, spawn=self._effects.spawn)
        self._needs = Needs(engines=engines, spawn=self._effects.spawn, wake=self.wake)
        self._past: tuple[StartRecord, ...] = ()
        self._last_replica: dict[str, str] = {}
        self._expected: dict[str, Expected] = {}
        self._scout = Scout(runtime=runtime, engines=engines, spawn=self._effects.spawn, wake=self.wake)

    @property
    def fleet(self) -> Fleet:
        """What is known, to read."""
        return self._fleet

    def wake(self) -> None:
        """Ask for a pass now."""
        self._wakeup.set()

    def forgive(self, model: str) -> None:
        """Somebody asked for the model by hand: its next attempt is now."""
        self._effects.outcome(lambda fleet, _: step.forgiven(fleet, model))

    async def settled(self) -> None:
        """Wait until a pass has seen what was asked for before, at most `SETTLE_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await self._pass_end.wait()

    def weights_in_use(self) -> frozenset[str]:
        """The folders of weights that must stay on the disk: in use, about to be, or pinned; hub ids of those that
        are to come."""
        now, kept = self._clock.monotonic(), set()
        for name, deployment in self.deployments.items():
            weights = self._fleet.weights.get(name)
            wished = deployment.pinned or deployment.preload or wanted(deployment, self._fleet, now)
            if wished or self._fleet.of(name):
                kept |= {deployment.source, *((weights.path,) if weights and weights.path else ())}
        return frozenset(kept)

    def configure(self, deployments: Mapping[str, Deployment]) -> None:
        """Take new deployments; what no longer fits leaves in the next passes."""
        self.deployments = deployments
        self._expected = {}
        self.wake()

    async def run(self, started: asyncio.Event) -> None:
        """Pass after pass until cancelled; `started` is set once what outlived us has been adopted."""
        async with asyncio.TaskGroup() as tasks:
            self._effects.run_in(tasks)
            self._effects.spawn(self._recall())
            await self._pass()
            await self._scout.settled(FIRST_PROBES_S)
            while True:
                self._wakeup.clear()
                await self._pass()
                started.set()
                await self._next_turn()

    async def _recall(self) -> None:
        """Learn from earlier starts; until then the defaults stand."""
        starts = await self._history.starts(wake=False, limit=HISTORY_STARTS_MAX)
        wakes = await self._history.starts(wake=True, limit=HISTORY_STARTS_MAX)
        self._past = newest((*self._past, *starts, *wakes), HISTORY_STARTS_MAX)
        self._expected = {}

    async def stop_all(self, *, grace_s: float) -> None:
        """End every engine of ours; for a shutdown that leaves nothing behind. Blocks until they are gone. What can't
        be stopped, since the runtime is silent, is left for the next start to find."""
        instances = await self._list() or ()
        stops = (self._runtime.stop(instance.id, grace_s=grace_s) for instance in instances)
        for outcome in await asyncio.gather(*stops, return_exceptions=True):
            if outcome is not None:
                log.error("not_stopped", error=str(outcome))

    async def _next_turn(self) -> None:
        """Wait to be woken; while an engine starts, no longer than until its next probe."""
        starting = any(r.phase in (Phase.STARTING, Phase.LOADING) for r in self._fleet.replicas.values())
        try:
            async with asyncio.timeout(STARTING_PROBE_S if starting else None):
                await self._wakeup.wait()
        except TimeoutError:
            return

    async def _pass(self) -> None:
        known = self._effects.outcomes()  # before the listing, which so is never older than they are
        instances, gpus = await self._list(), await self._runtime.gpus()
        now = self._clock.monotonic()
        before = self._fleet
        for outcome in known:
            self._fleet = outcome(self._fleet, now)
        report = self._scout.look(instances or (), self._fleet, self.deployments, now)
        sighting = Sighting(
            instances=None if instances is None else report.instances,
            healthy=report.healthy,
            progress=self._shown(report.progress),
            failures=report.failures,
            weights={name: self._weights.look(d) for name, d in self.deployments.items()},
            demand=self._activator.demand(),
            traffic={replica: lane.traffic() for replica, lane in self._lanes.items()},
            loads={id: lane.load for id, lane in self._lanes.items() if lane.load is not None},
            gpus=gpus,
            places=self._runtime.places(),
            asleep=report.asleep,
            fixed_bytes=report.fixed_bytes,
            needs=self._needs.look(self.deployments, self._fleet.weights, self._past),
        )
        self._fleet = step.advance(self._fleet, self.deployments, sighting, now)
        for action in decide(self.deployments, self._fleet, now, self._orphan_grace_s):
            self._act(action, now)
        self._fleet = replace(self._fleet, waits=waits(self.deployments, self._fleet, now))
        self._fleet = tracked(self._fleet, self.deployments, now)
        self._primer.look(self._fleet, self.deployments)
        self._remember(before, now)
        self._lay_lanes()
        self._publish(self._routes(now))
        self._metrics.loop_passes.inc()
        self.passed_at = now
        waited_for, self._pass_end = self._pass_end, asyncio.Event()
        waited_for.set()

    def _shown(self, progress: Mapping[str, Progress]) -> dict[str, Progress]:
        """What the logs of engines that start say, and the reading of their weights."""
        starting = {r.id: r.model for r in self._fleet.replicas.values() if r.phase is Phase.STARTING}
        told = {**dict.fromkeys(starting, Progress()), **progress}
        return {id: self._primer.shown(starting[id], told[id]) if id in starting else told[id] for id in told}

    async def _list(self) -> tuple[Instance, ...] | None:
        """What runs, or None: unknown."""
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                found = await self._runtime.list()
        except (RuntimeUnavailable, TimeoutError) as error:
            if not self.silence:  # a busy service passes often
                log.warning("runtime_unknown", error=str(error))
            self.silence = str(error) or "the runtime does not answer"
            return None
        self.silence = ""
        return found

    def _act(self, action: Action, now: float) -> None:
        """Begin an action's effect, unless the same one is under way."""
        deployment = self.deployments.get(action.model)
        match action:
            case Drain(replica=replica, reason=reason, then=then, patient=patient):
                self._fleet = step.drained(self._fleet, replica, reason, now, then=then, patient=patient)
                log.info("draining", model=action.model, replica=replica, reason=reason)
                if patient:
                    self._metrics.evictions.labels(action.model).inc()
                self.wake()
            case Stop(replica=replica, reason=reason):
                if self._effects.stop(action, deployment.drain_timeout_s if deployment else GRACE_S_DEFAULT):
                    self._fleet = step.drained(self._fleet, replica, reason, now)
            case Pull() if deployment is not None:
                self._effects.pull(deployment)
            case Launch() if deployment is not None:
                weights = self._fleet.weights.get(deployment.name)
                if self._effects.launch(action, deployment, weights.path if weights else None):
                    self._fleet = step.launched(self._fleet, action, deployment, now)
            case Sleep(replica=replica) if deployment is not None:
                self._effects.sleep(self._fleet.replicas[replica], deployment)
            case Wake(replica=replica) if deployment is not None:
                if self._effects.wake(self._fleet.replicas[replica], deployment):
                    self._fleet = step.woken(self._fleet, replica, now)

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
            self._past = newest((record, *self._past), HISTORY_STARTS_MAX)

    def _lay_lanes(self) -> None:
        """One lane for each live engine; a lane that its last request has left is closed."""
        for replica in self._fleet.replicas.values():
            self._last_replica[replica.model] = replica.id
            if replica.phase is Phase.READY and replica.id not in self._lanes and replica.endpoint:
                address = urlsplit(replica.endpoint)
                pool = Pool(address.hostname or "", address.port or 80, self._timeouts)
                self._lanes[replica.id] = Lane(replica.id, pool, gpus=len(replica.gpus))
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
            wait=self._fleet.waits.get(name),
            unfit=self._fleet.unfit.get(name, ""),
            silent=not self._fleet.known,
        )
