"""What must hold at every step, judged by the simulated world as it is and not by what the core believes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.actions import Action, Drain, Launch, Pull, Sleep, Stop, Wake
from orchestrator.crew import awake
from orchestrator.decide import FEWER, IDLE
from orchestrator.fleet import BACKOFF_BASE_S, BACKOFF_MAX_S, LEAVES, STABLE_S
from orchestrator.model import Demand, Deployment, Fleet, Phase, Replica, WeightsState
from orchestrator.placement import place, rooms
from tests.sim.world import GPUS, NEEDS, REPLICAS, World

WINDOW_S = 60.0
LAUNCHES_PER_WINDOW_MAX = 12
"""Back-off 0, 2, 4, 8, 16 s allows six starts of an engine that dies as soon as it serves; as many again for
those that somebody stopped, changed or asked for by hand. For each replica that a model may have."""
PASSES_TO_START_MAX = 2
WAIT_S_MAX = 600.0
"""Six models take turns: each has its residency, the rest of a turn, requests of 15 s, and a start of 60 s at worst."""
DRAIN_S_MIN = 10.0
"""The drain limit of every simulated model, and what one that is no longer configured gets at least."""


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass
class Laws:
    """The judge of one run. Its counts start anew with each boot, as the core's memory does."""

    names: set[str] = field(default_factory=set)
    """Every replica id ever launched, over all boots."""
    failures: Counter[str] = field(default_factory=Counter)
    """Attempts of each model that failed since it was last ready."""
    not_before: dict[str, float] = field(default_factory=dict)
    attempts: dict[str, deque[float]] = field(default_factory=dict)
    could_start: Counter[str] = field(default_factory=Counter)
    """For how many passes in a row each model could have been started."""
    drained_at: dict[str, float] = field(default_factory=dict)
    waiting_s: dict[str, float] = field(default_factory=dict)
    judged_at: float = 0.0

    def boot(self) -> None:
        self.failures.clear()
        self.not_before.clear()
        self.attempts.clear()
        self.could_start.clear()
        self.drained_at.clear()
        self.waiting_s.clear()

    # --- what happened ---

    def failed(self, model: str, now: float) -> None:
        """An attempt failed: the n-th in a row without ever being ready waits at least BASE * 2 ** (n - 1)."""
        self.failures[model] += 1
        wait_s = min(BACKOFF_BASE_S * 2.0 ** (self.failures[model] - 1), BACKOFF_MAX_S)
        self.not_before[model] = now + wait_s

    def lost(self, replica: Replica, now: float) -> None:
        """One came to an unwanted end. After serving for long it has shown that its model can start."""
        if replica.ready_at is None:
            self.failed(replica.model, now)
        elif now - replica.ready_at >= STABLE_S:
            self.forgiven(replica.model)

    def forgiven(self, model: str) -> None:
        """One has become ready, or somebody asked by hand."""
        self.failures.pop(model, None)
        self.not_before.pop(model, None)

    def advanced(self, before: Fleet, after: Fleet, now: float) -> None:
        """Learn from one sighting which starts failed and which models are ready."""
        for old in before.replicas.values():
            new = after.replicas.get(old.id)
            ended = new.phase is Phase.FAILED if new is not None else old.seen
            if ended and old.phase not in LEAVES:
                self.lost(old, now)
        for replica in after.replicas.values():
            known = before.replicas.get(replica.id)
            if replica.phase is Phase.READY and (known is None or known.phase is not Phase.READY):
                self.forgiven(replica.model)

    # --- what was decided ---

    def decided(self, actions: Sequence[Action], fleet: Fleet, world: World, now: float) -> None:
        """What one pass wants, before any of it is done."""
        if actions and not fleet.known:
            raise Broken(f"acted though the runtime is silent: {actions}")
        keys = Counter((type(a), a.model if isinstance(a, Pull | Launch) else a.replica) for a in actions)
        if twice := [key for key, count in keys.items() if count > 1]:
            raise Broken(f"decided twice in one pass: {twice}")
        for action in actions:
            if isinstance(action, Drain):
                self._drain(action, world, now)
        _leave_some(actions, fleet)

    def _drain(self, drain: Drain, world: World, now: float) -> None:
        engine = world.engines.get(drain.replica)
        if drain.reason == IDLE and engine is not None and engine.busy(now):
            raise Broken(f"{drain.replica} was drained as idle with {len(engine.ends)} requests in flight")
        self.drained_at.setdefault(drain.replica, now)

    def begun(self, action: Pull | Launch | Sleep | Wake | Stop, fleet: Fleet, world: World, now: float) -> None:
        """An effect that starts now."""
        if isinstance(action, Stop):
            self._stop(action, fleet, world, now)
            return
        if isinstance(action, Sleep):
            engine = world.engines.get(action.replica)
            if engine is not None and engine.busy(now):
                raise Broken(f"{action.replica} was put to sleep with {len(engine.ends)} requests in flight")
            return
        demand = fleet.demand.get(action.model, Demand())
        if not isinstance(action, Wake) and now < self.not_before.get(action.model, 0.0):
            raise Broken(f"{action} {self.not_before[action.model] - now:.1f} s before its back-off ends")
        if isinstance(action, Launch):
            self._launch(action, demand, now)

    def _launch(self, launch: Launch, demand: Demand, now: float) -> None:
        if launch.replica in self.names:
            raise Broken(f"the name {launch.replica} was used before")
        self.names.add(launch.replica)
        asked_at = float("-inf") if demand.asked_at is None else demand.asked_at
        if demand.stop_at is not None and not demand.held and asked_at <= demand.stop_at:
            raise Broken(f"{launch.model} was stopped by hand, and started though nobody asked")
        most = LAUNCHES_PER_WINDOW_MAX * REPLICAS.get(launch.model, (0, 1))[1]
        times = self.attempts.setdefault(launch.model, deque(maxlen=most))
        if len(times) == times.maxlen and now - times[0] < WINDOW_S:
            raise Broken(f"{launch.model} was started more than {times.maxlen} times in {WINDOW_S:g} s")
        times.append(now)

    def _stop(self, stop: Stop, fleet: Fleet, world: World, now: float) -> None:
        """Nothing with requests in flight is stopped before its drain limit, unless it failed."""
        engine, replica = world.engines.get(stop.replica), fleet.replicas.get(stop.replica)
        if engine is None or replica is None or not engine.busy(now) or replica.phase is Phase.FAILED:
            return
        if replica.patient:
            raise Broken(f"{stop.replica}, which only made room, was cut with {len(engine.ends)} requests in flight")
        if now - self.drained_at.get(stop.replica, now) < DRAIN_S_MIN:
            raise Broken(f"{stop.replica} was stopped with {len(engine.ends)} requests in flight: {stop.reason}")

    # --- what is ---

    def hold(self, world: World, fleet: Fleet, deployments: Mapping[str, Deployment], now: float) -> None:
        """The state of the world after a pass."""
        live = Counter(engine.model for engine in world.engines.values())
        if over := [model for model, count in live.items() if count > REPLICAS.get(model, (0, 1))[1]]:
            raise Broken(f"{over} run more than max_replicas engines")
        for gpu in GPUS:
            holders = [engine for engine in world.engines.values() if gpu.uuid in engine.gpus]
            if sum(engine.holds_bytes(gpu) for engine in holders) > gpu.memory_bytes:
                raise Broken(f"{gpu.uuid} is promised twice: to {sorted(engine.id for engine in holders)}")
        if fleet.known:
            self._current(fleet, deployments, now)

    def _current(self, fleet: Fleet, deployments: Mapping[str, Deployment], now: float) -> None:
        """After a pass, nothing serves that its operator has changed, removed or stopped; but of several replicas each
        may serve until others do."""
        for replica in fleet.replicas.values():
            if replica.phase is not Phase.READY:
                continue
            deployment = deployments.get(replica.model)
            stop_at = fleet.demand.get(replica.model, Demand()).stop_at
            stale_s = 0.0 if deployment is None or replica.stale_at is None else now - replica.stale_at
            rolls = deployment is not None and deployment.max_replicas > 1 and stale_s < deployment.start_timeout_s
            if deployment is None or (deployment.spec != replica.spec and not rolls):
                raise Broken(f"{replica.id} serves with settings that are no longer its model's")
            if stop_at is not None and replica.created_at <= stop_at:
                raise Broken(f"{replica.id} serves though it was stopped by hand")

    def _patience(self, deployment: Deployment, fleet: Fleet, now: float) -> None:
        """Nobody waits for ever: the time that a model waits for a GPU, silence aside, is bounded."""
        track = fleet.tracks.get(deployment.name)
        if track is None or track.phase is not Phase.QUEUED or deployment.name not in fleet.waits:
            self.waiting_s.pop(deployment.name, None)
        elif fleet.known:
            waited_s = self.waiting_s.get(deployment.name, 0.0) + min(now - self.judged_at, 2.0)
            self.waiting_s[deployment.name] = waited_s
            if waited_s > WAIT_S_MAX:
                raise Broken(f"{deployment.name} has waited for a GPU for {waited_s:.0f} s")

    def wait(self, fleet: Fleet, deployments: Iterable[Deployment], busy: set[str], now: float) -> None:
        """Fairness: who is waited for, or has fewer than `min_replicas`, and could be started is, within a few passes.
        `busy`: an effect runs."""
        free = rooms(fleet.gpus, fleet.foreign, fleet.replicas.values())
        for deployment in deployments:
            name = deployment.name
            weights, backoff = fleet.weights.get(name), fleet.backoff.get(name)
            if backoff is not None and backoff.retry_at > now + BACKOFF_MAX_S:
                raise Broken(f"{name} would wait {backoff.retry_at - now:.0f} s after a failure")
            could = (
                fleet.known
                and _lacking(deployment, fleet)
                and (weights is not None and weights.state is WeightsState.PRESENT)
                and (backoff is None or now >= backoff.retry_at)
                and (deployment.gpus == 0 or (fleet.waits.keys() <= {name} and place(NEEDS[name], free) is not None))
                and len(fleet.of(name)) < deployment.max_replicas
                and name not in busy
            )
            self._patience(deployment, fleet, now)
            self.could_start[name] = self.could_start[name] + 1 if could else 0
            if self.could_start[name] > PASSES_TO_START_MAX:
                raise Broken(f"{name} is waited for and could start, but is not started")
        self.judged_at = now


def _lacking(deployment: Deployment, fleet: Fleet) -> bool:
    """Whether somebody waits and nothing is there, or less is there than there always should be."""
    demand, up = fleet.demand.get(deployment.name, Demand()), awake(fleet, deployment.name)
    stopped = demand.stop_at is not None and (demand.asked_at is None or demand.asked_at <= demand.stop_at)
    return (demand.held > 0 and not up) or (not stopped and len(up) < deployment.min_replicas)


def _leave_some(actions: Sequence[Action], fleet: Fleet) -> None:
    """Replicas leave one at a time when there is work for fewer (all at once when there is none for long), and make
    room for one more of another model only where that leaves their own served."""
    why = {a.replica: a.reason for a in actions if isinstance(a, Drain | Stop)}
    for id, reason in why.items():
        victim = fleet.replicas[id]
        if victim.phase in LEAVES:
            continue
        others = [r for r in fleet.of(victim.model) if r is not victim]
        stay = [r for r in awake(fleet, victim.model) if r in others and why.get(r.id, IDLE) in (IDLE, FEWER)]
        asker = reason.removeprefix("making room for ")
        if asker != reason and awake(fleet, asker) and victim.phase is not Phase.SLEEPING and not stay:
            raise Broken(f"{id}, its model's only one, makes room for one more of {asker}")
        if reason == FEWER and any(r.phase in LEAVES or why.get(r.id) == FEWER for r in others):
            raise Broken(f"{id} leaves for want of work beside {[(r.id, r.phase) for r in others]}")
        if reason == FEWER and not any(r in stay or r.id in why for r in others):
            raise Broken(f"{id} leaves for want of work, though it is the only one")
