"""One run: the loop's own order of steps, over effects that get lost, doubled, or fail after they worked."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from orchestrator import fleet as step
from orchestrator.decide import decide
from orchestrator.model import (
    Action,
    Demand,
    Deployment,
    Drain,
    Fleet,
    Launch,
    Phase,
    Pull,
    Sighting,
    Stop,
    Traffic,
    Weights,
    WeightsState,
)
from tests.sim.world import GPUS, World, deployments

Decide = Callable[[Mapping[str, Deployment], Fleet, float], tuple[Action, ...]]
Advance = Callable[[Fleet, Mapping[str, Deployment], Sighting, float], Fleet]

PATIENCE_S = 40.0
CALM_S = 800.0
"""Longer than the longest back-off and a start: in a calm world, who asks for this long is served."""


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass
class Effect:
    due_at: float
    action: Action


class Sim:
    """`decide` and `advance` may be replaced, to see whether a planted fault is found."""

    def __init__(self, seed: int, decide: Decide = decide, advance: Advance = step.advance) -> None:
        self.dice = random.Random(seed)
        self.world = World(self.dice)
        self.deployments = deployments()
        self.decide, self.advance = decide, advance
        self.now, self.boots, self.specs = 1000.0, 0, 0
        self.served = self.refused = self.failed = self.crashes = 0
        self.boot()

    def boot(self) -> None:
        """The orchestrator starts with an empty memory; the world is as it was."""
        self.boots += 1
        self.fleet = Fleet(boot=f"b{self.boots}")
        self.effects: dict[tuple[type, str], Effect] = {}
        self.demand: dict[str, Demand] = {}
        self.held: list[tuple[str, float]] = []
        self.drained_at: dict[str, float] = {}

    def run(self, steps: int) -> None:
        """Trouble for `steps`, then calm: everybody who asks is served; then silence: nothing is left."""
        for _ in range(steps):
            self.trouble()
            self.step(self.dice.uniform(0.05, 1.5))
        self.world.calm, self.world.silent_until = True, 0.0
        for model in self.deployments:
            self.serve_in_calm(model)
        ends_at = self.now + 300
        while self.now < ends_at:
            self.step(1.0)
        if self.world.engines or self.fleet.replicas:
            raise Broken(f"engines are left in the quiet: {sorted(self.world.engines)}")

    def serve_in_calm(self, model: str) -> None:
        before, ends_at = self.served, self.now + CALM_S
        while self.served == before:
            if self.now > ends_at:
                raise Broken(f"{model} was not served within {CALM_S} s of calm")
            self.request(model, hold=False)
            self.step(2.0)

    def trouble(self) -> None:
        """What may happen in between, at random."""
        dice, luck = self.dice, self.dice.random()
        if luck < 0.30:
            for _ in range(dice.randint(1, 3)):
                self.request(dice.choice(list(self.deployments)), hold=dice.random() < 0.5)
        elif luck < 0.31:
            self.now += dice.uniform(5, 120)  # the machine slept; the monotonic clock jumps
        elif luck < 0.32:
            self.world.silent_until = self.now + dice.uniform(1, 30)
        elif luck < 0.33:
            self.crash()
        elif luck < 0.335:
            self.specs += 1
            self.deployments = deployments(self.specs)
        elif luck < 0.345:
            model = dice.choice(list(self.deployments))
            self.note(model, stop_at=self.now)
            self.held = [(m, until) for m, until in self.held if m != model]
        elif luck < 0.355:
            self.note(dice.choice(list(self.deployments)), pull_at=self.now)

    def crash(self) -> None:
        """kill -9: what was under way may have happened or not."""
        self.crashes += 1
        for effect in list(self.effects.values()):
            (self.happen if self.dice.random() < 0.5 else self.vanish)(effect.action)
        for engine in self.world.engines.values():
            engine.ends = []  # the connections went through us
        self.boot()

    def request(self, model: str, *, hold: bool) -> None:
        ready = [r for r in self.fleet.of(model) if r.phase is Phase.READY]
        if not ready:
            self.note(model, asked_at=self.now)
            if hold:
                self.held.append((model, self.now + PATIENCE_S))
            else:
                self.refused += 1
            return
        self.send(ready[0].id)

    def send(self, replica: str) -> None:
        engine = self.world.engines.get(replica)
        if engine is None or not engine.alive(self.now):
            self.failed += 1
            return
        engine.ends.append(self.now + self.dice.uniform(0.1, 15))
        self.served += 1

    def note(self, model: str, **changes: float) -> None:
        self.demand[model] = replace(self.demand.get(model, Demand()), **changes)  # type: ignore[arg-type]

    def step(self, dt: float) -> None:
        self.now += dt
        self.world.tick(self.now)
        for key, effect in list(self.effects.items()):
            if effect.due_at <= self.now:
                del self.effects[key]
                self.finish(effect.action)
        self.one_pass()
        self.release()
        self.check()

    def one_pass(self) -> None:
        """As `Reconciler._pass`."""
        instances = self.world.instances(self.now)
        engines = self.world.engines
        held = [model for model, _ in self.held]
        sighting = Sighting(
            instances=instances,
            healthy={
                key: engine.healthy(self.now)
                for key, engine in engines.items()
                if instances is not None and engine.alive(self.now) and self.dice.random() < 0.9
            },
            weights=dict(self.world.weights),
            demand={m: replace(self.demand.get(m, Demand()), held=held.count(m)) for m in self.deployments},
            traffic={k: Traffic(in_flight=len(e.ends), last_byte_at=e.last_byte_at) for k, e in engines.items()},
            gpus=GPUS,
        )
        self.fleet = self.advance(self.fleet, self.deployments, sighting, self.now)
        actions = self.decide(self.deployments, self.fleet, self.now)
        if actions and instances is None:
            raise Broken(f"acted though the runtime is silent: {actions}")
        for action in actions:
            self.act(action)
        self.fleet = step.track(self.fleet, self.deployments, self.now)

    def act(self, action: Action) -> None:
        """As `Reconciler._act`."""
        if isinstance(action, Drain):
            self.drained_at[action.replica] = self.now
            self.fleet = step.drained(self.fleet, action.replica, action.reason, self.now)
            return
        key = (type(action), action.replica if isinstance(action, Stop) else action.model)
        if key in self.effects or (isinstance(action, Stop) and (Launch, action.model) in self.effects):
            return
        self.effects[key] = Effect(self.now + self.dice.uniform(0, 4), action)
        if isinstance(action, Launch):
            self.fleet = step.launched(self.fleet, action, self.deployments[action.model], self.now)
        elif isinstance(action, Stop):
            self.check_stop(action)
            self.fleet = step.drained(self.fleet, action.replica, action.reason, self.now)
        else:
            self.world.weights[action.model] = Weights(state=WeightsState.PULLING)

    def finish(self, action: Action) -> None:
        """An effect ends: done, done twice, lost, or failed before or after it worked."""
        luck = 1.0 if self.world.calm else self.dice.random()
        if isinstance(action, Pull) and luck < 0.2:
            self.world.weights[action.model] = Weights(state=WeightsState.FAILED, error="cut")
            self.fleet = step.failed(self.fleet, action.model, "cut", self.now, permanent=luck < 0.03)
        elif luck < 0.05:
            self.vanish(action)
        elif luck < 0.10:
            self.happen(action)
            self.happen(action)
        elif luck < 0.20 and isinstance(action, Launch):
            if luck < 0.15:
                self.happen(action)
            self.fleet = step.launch_failed(self.fleet, action, "the call failed", self.now)
        else:
            self.happen(action)

    def vanish(self, action: Action) -> None:
        """It never happened; a pull that nobody runs is none."""
        if isinstance(action, Pull):
            self.world.weights[action.model] = Weights(state=WeightsState.ABSENT)

    def happen(self, action: Action) -> None:
        match action:
            case Pull(model=model):
                self.world.weights[model] = Weights(state=WeightsState.PRESENT, path=f"/weights/{model}")
            case Launch(model=model, replica=replica, gpus=gpus):
                self.world.launch(replica, self.deployments[model], gpus, self.now)
            case Stop(replica=replica):
                self.world.engines.pop(replica, None)

    def release(self) -> None:
        """Held requests go when their model is ready, and are refused when it failed or their time is up."""
        left = []
        for model, until in self.held:
            ready = [r for r in self.fleet.of(model) if r.phase is Phase.READY]
            backoff = self.fleet.backoff.get(model)
            gave_up = self.fleet.tracks[model].phase is Phase.FAILED and backoff and self.now < backoff.retry_at
            if ready:
                self.send(ready[0].id)
            elif gave_up or self.now >= until:
                self.refused += 1
            else:
                left.append((model, until))
        self.held = left

    # --- invariants ---

    def check(self) -> None:
        live: dict[str, int] = {}
        leases: dict[str, str] = {}
        for engine in self.world.engines.values():
            live[engine.model] = live.get(engine.model, 0) + 1
            for gpu in engine.gpus:
                if leases.setdefault(gpu, engine.id) != engine.id:
                    raise Broken(f"{gpu} is leased to {leases[gpu]} and {engine.id}")
        if twice := [model for model, count in live.items() if count > self.deployments[model].max_replicas]:
            raise Broken(f"{twice} run more than max_replicas engines")
        for _, until in self.held:
            if self.now > until + 1:
                raise Broken("a request is held beyond its patience")

    def check_stop(self, stop: Stop) -> None:
        """Nothing with requests in flight is stopped before its drain limit, unless it failed."""
        engine, replica = self.world.engines.get(stop.replica), self.fleet.replicas.get(stop.replica)
        if engine is None or replica is None or not engine.ends or not engine.alive(self.now):
            return
        if replica.phase is Phase.FAILED:
            return
        drain_s = self.deployments[stop.model].drain_timeout_s
        if self.now - self.drained_at.get(stop.replica, self.now) < drain_s:
            raise Broken(f"{stop.replica} was stopped with {len(engine.ends)} requests in flight: {stop.reason}")
