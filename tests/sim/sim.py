"""One run: the loop's own order of steps, over effects that get lost, doubled, or fail after they worked."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from orchestrator import fleet as step
from orchestrator.actions import Action, Drain, Launch, Pull, Sleep, Stop, Wake
from orchestrator.decide import decide, waits
from orchestrator.gpu import Need
from orchestrator.model import (
    Demand,
    Deployment,
    Fleet,
    Instance,
    Phase,
    Replica,
    Sighting,
    Traffic,
    Weights,
    WeightsState,
)
from orchestrator.tracks import tracked
from tests.sim.calm import come
from tests.sim.laws import Broken, Laws
from tests.sim.world import GB, GPUS, NEEDS, SLEEPERS, World, deployments

Decide = Callable[[Mapping[str, Deployment], Fleet, float], tuple[Action, ...]]
Advance = Callable[[Fleet, Mapping[str, Deployment], Sighting, float], Fleet]

PATIENCE_S = 40.0


Outcome = Callable[[Fleet, float], Fleet]


@dataclass
class Effect:
    """An action under way; `deployment` as it was when it began."""

    due_at: float
    action: Pull | Launch | Sleep | Wake | Stop
    deployment: Deployment | None


class Sim:
    """`decide` and `advance` may be replaced, to see whether a planted fault is found."""

    def __init__(self, seed: int, decide: Decide = decide, advance: Advance = step.advance) -> None:
        self.seed, self.dice = seed, random.Random(seed)
        self.world = World(self.dice)
        self.laws = Laws()
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
        self.outcomes: list[Outcome] = []
        self.ended: list[tuple[type, str]] = []
        self.laws.boot()

    def run(self, steps: int) -> None:
        """Trouble for `steps`, then calm: see `calm.come`.

        Raises `Broken`, with the seed and the moment, as soon as a law does not hold.
        """
        try:
            for _ in range(steps):
                self.trouble()
                self.step(self.dice.uniform(0.05, 1.5))
            come(self)
        except Broken as broken:
            raise Broken(f"seed {self.seed}, {self.now - 1000:.1f} s in: {broken}") from None

    def trouble(self) -> None:
        """What may happen in between, at random."""
        dice, luck = self.dice, self.dice.random()
        if luck < 0.30:
            for _ in range(dice.randint(1, 3)):
                self.request(self.some_model(), hold=dice.random() < 0.5)
        elif luck < 0.31:
            self.now += dice.uniform(5, 120)  # the machine slept; the monotonic clock jumps
        elif luck < 0.32:
            self.world.silent_until = self.now + dice.uniform(1, 30)
        elif luck < 0.33:
            self.crash()
        elif luck < 0.35:
            self.reconfigure(luck)
        elif luck < 0.375:
            self.by_hand(self.some_model())
        elif luck < 0.39:
            model = self.some_model()
            for _ in range(dice.randint(5, 15)):  # a class begins
                self.request(model, hold=dice.random() < 0.8)

    def reconfigure(self, luck: float) -> None:
        """The file, or the machine around us, changes."""
        dice = self.dice
        if luck < 0.335:
            self.specs += 1
            self.deployments = {n: d for n, d in deployments(self.specs).items() if n in self.deployments}
        elif luck < 0.34:
            self.deployments = deployments(self.specs)
            self.deployments.pop(self.some_model())
        elif luck < 0.345:
            self.deployments = deployments(self.specs)
        else:
            taken = dice.choice((0, 0, 3, 30)) * GB
            self.world.foreign = {dice.choice(GPUS).uuid: taken}

    def some_model(self) -> str:
        return self.dice.choice(list(self.deployments))

    def by_hand(self, model: str) -> None:
        """Start, stop or pull, as `Control` does them."""
        wish = self.dice.choice(("asked_at", "stop_at", "pull_at"))
        self.note(model, **{wish: self.now})
        if wish == "stop_at":
            self.refused += sum(m == model for m, _ in self.held)
            self.held = [(m, until) for m, until in self.held if m != model]
        else:
            self.laws.forgiven(model)
            self.outcomes.append(lambda fleet, _: step.forgiven(fleet, model))

    def crash(self) -> None:
        """kill -9: what was under way may have happened or not."""
        self.crashes += 1
        for effect in list(self.effects.values()):
            (self.happen if self.dice.random() < 0.5 else self.vanish)(effect)
        for engine in self.world.engines.values():
            engine.ends = []  # the connections went through us
        self.boot()

    def request(self, model: str, *, hold: bool, takes_s: tuple[float, float] = (0.1, 15)) -> None:
        ready = [r for r in self.fleet.of(model) if r.phase is Phase.READY]
        if not ready:
            self.note(model, asked_at=self.now)
            if hold:
                self.held.append((model, self.now + PATIENCE_S))
            else:
                self.refused += 1
            return
        self.send(self.least_loaded(ready), takes_s)

    def least_loaded(self, ready: list[Replica]) -> str:
        engines = self.world.engines
        return min(ready, key=lambda r: len(engines[r.id].ends) if r.id in engines else 0).id

    def send(self, replica: str, takes_s: tuple[float, float] = (0.1, 15)) -> None:
        engine = self.world.engines.get(replica)
        if engine is None or not engine.alive(self.now):
            self.failed += 1
            return
        if engine.asleep:
            raise Broken(f"a request was sent to {replica}, which sleeps")
        engine.ends.append(self.now + self.dice.uniform(*takes_s))
        self.served += 1

    def note(self, model: str, **changes: float) -> None:
        self.demand[model] = replace(self.demand.get(model, Demand()), **changes)  # type: ignore[arg-type]

    def step(self, dt: float) -> None:
        """Time passes, then the loop's pass. Its awaits are in front, so effects may end behind its listing's back."""
        self.now += dt
        self.world.tick(self.now)
        ended = [effect for key, effect in self.effects.items() if effect.due_at <= self.now and key not in self.ended]
        late = self.dice.random() < 0.3
        if not late:
            self.finish(ended)
        known, self.outcomes = self.outcomes, []
        self.forget_ended()
        instances = self.world.instances(self.now)
        if late:
            self.finish(ended)
        self.one_pass(known, instances)
        self.release()
        self.laws.hold(self.world, self.fleet, self.deployments, self.now)
        self.laws.wait(self.fleet, self.deployments.values(), {e.action.model for e in self.effects.values()}, self.now)

    def forget_ended(self) -> None:
        for key in self.ended:
            del self.effects[key]
        self.ended = []

    def one_pass(self, known: list[Outcome], instances: tuple[Instance, ...] | None) -> None:
        """As `Reconciler._pass`, once the runtime has answered."""
        for outcome in known:
            self.fleet = outcome(self.fleet, self.now)
        before = self.fleet
        self.fleet = self.advance(before, self.deployments, self.sighting(instances), self.now)
        self.laws.advanced(before, self.fleet, self.now)
        actions = self.decide(self.deployments, self.fleet, self.now)
        self.laws.decided(actions, self.fleet, self.world, self.now)
        for action in actions:
            self.act(action)
        self.fleet = replace(self.fleet, waits=waits(self.deployments, self.fleet, self.now))
        self.fleet = tracked(self.fleet, self.deployments, self.now)

    def sighting(self, instances: tuple[Instance, ...] | None) -> Sighting:
        engines, held = self.world.engines, [model for model, _ in self.held]
        return Sighting(
            instances=instances,
            healthy={
                key: engine.healthy(self.now) and not engine.asleep
                for key, engine in engines.items()
                if engine.model in self.deployments  # nobody knows how to ask the others
                and instances is not None
                and engine.alive(self.now)
                and self.dice.random() < 0.9
            },
            weights={model: self.world.weights[model] for model in self.deployments},
            demand={m: replace(self.demand.get(m, Demand()), held=held.count(m)) for m in self.deployments},
            traffic={k: Traffic(in_flight=len(e.ends), last_byte_at=e.last_byte_at) for k, e in engines.items()},
            loads=self.world.loads(self.now),
            gpus=self.world.gpus(self.now),
            needs={model: NEEDS.get(model, Need()) for model in self.deployments},
            asleep=self.asleep(instances),
        )

    def asleep(self, instances: tuple[Instance, ...] | None) -> dict[str, bool]:
        """What the scout hears: whoever is healthy is asked."""
        if instances is None:
            return {}
        return {
            key: engine.asleep
            for key, engine in self.world.engines.items()
            if engine.model in SLEEPERS and engine.healthy(self.now)
        }

    def act(self, action: Action) -> None:
        """As `Reconciler._act`."""
        if isinstance(action, Drain):
            then, patient = action.then, action.patient
            self.fleet = step.drained(self.fleet, action.replica, action.reason, self.now, then=then, patient=patient)
            return
        key = key_of(action)
        if key in self.effects or (isinstance(action, Stop) and (Launch, action.model) in self.effects):
            return
        self.laws.begun(action, self.fleet, self.world, self.now)
        self.effects[key] = Effect(self.now + self.dice.uniform(0, 4), action, self.deployments.get(action.model))
        match action:
            case Launch(model=model):
                self.fleet = step.launched(self.fleet, action, self.deployments[model], self.now)
            case Stop(replica=replica, reason=reason):
                self.fleet = step.drained(self.fleet, replica, reason, self.now)
            case Wake(replica=replica):
                self.fleet = step.woken(self.fleet, replica, self.now)
            case Pull(model=model):
                self.world.weights[model] = Weights(state=WeightsState.PULLING)

    def finish(self, effects: list[Effect]) -> None:
        for effect in effects:
            action = effect.action
            self.ended.append(key_of(action))
            self.end(effect, 1.0 if self.world.calm else self.dice.random())

    def end(self, effect: Effect, luck: float) -> None:
        """An effect ends: lost, done twice, failed before or after it worked, or done."""
        action = effect.action
        if luck < 0.05 and not isinstance(action, Sleep):  # an engine that says it sleeps does
            self.vanish(effect)
        elif luck < 0.10:
            self.happen(effect)
            self.happen(effect)
        elif luck < 0.25 and isinstance(action, Pull):
            self.cut(action.model, permanent=luck < 0.13)
        elif luck < 0.20 and isinstance(action, Sleep | Wake):
            if luck < 0.15:
                self.happen(effect)
            self.refused_by_engine(action)
            return
        elif luck < 0.20 and isinstance(action, Launch):
            if luck < 0.15:
                self.happen(effect)
            self.laws.failed(action.model, self.now)
            sure = luck >= 0.15
            self.outcomes.append(lambda fleet, now: step.launch_failed(fleet, action, "it failed", now, sure=sure))
            return
        else:
            self.happen(effect)
        self.returned(action)

    def refused_by_engine(self, action: Sleep | Wake) -> None:
        """The call failed, whatever came of it."""
        replica = action.replica
        if isinstance(action, Sleep):
            self.outcomes.append(lambda fleet, _: step.sleepless(fleet, replica))
            return
        self.outcomes.append(lambda fleet, now: self.broken(fleet, replica, now))

    def broken(self, fleet: Fleet, replica: str, now: float) -> Fleet:
        """One that had failed already counts once; one that had served is made good at once."""
        known = fleet.replicas.get(replica)
        if known is not None and known.phase not in step.LEAVES:
            self.laws.lost(known, now)
        return step.broken(fleet, replica, "it did not wake", now)

    def returned(self, action: Action) -> None:
        match action:
            case Sleep(replica=replica):
                self.outcomes.append(lambda fleet, now: step.slept(fleet, replica, now))
            case Launch(replica=replica):
                self.outcomes.append(lambda fleet, now: step.landed(fleet, replica, now))
            case Stop(replica=replica):
                self.outcomes.append(lambda fleet, _: step.stopped(fleet, replica))

    def cut(self, model: str, *, permanent: bool) -> None:
        self.world.weights[model] = Weights(state=WeightsState.FAILED, error="cut", permanent=permanent)
        self.laws.failed(model, self.now)
        self.outcomes.append(lambda fleet, now: step.failed(fleet, model, "cut", now, permanent=permanent))

    def vanish(self, effect: Effect) -> None:
        """It never happened; a pull that nobody runs is none."""
        if isinstance(effect.action, Pull):
            self.world.weights[effect.action.model] = Weights(state=WeightsState.ABSENT)

    def happen(self, effect: Effect) -> None:
        match effect.action:
            case Pull(model=model):
                self.world.weights[model] = Weights(state=WeightsState.PRESENT, path=f"/weights/{model}")
            case Launch() as launch if effect.deployment is not None:
                self.world.launch(launch, effect.deployment, self.now)
            case Stop(replica=replica):
                self.world.engines.pop(replica, None)
            case Sleep(replica=replica) | Wake(replica=replica) if replica in self.world.engines:
                self.world.engines[replica].asleep = isinstance(effect.action, Sleep)

    def release(self) -> None:
        """Held requests go when their model is ready, and are refused when it failed or their time is up."""
        left = []
        for model, until in self.held:
            ready = [r for r in self.fleet.of(model) if r.phase is Phase.READY]
            track, backoff = self.fleet.tracks.get(model), self.fleet.backoff.get(model)
            gave_up = track is None or (track.phase is Phase.FAILED and backoff and self.now < backoff.retry_at)
            if ready:
                self.send(self.least_loaded(ready))
            elif gave_up or self.now >= until:
                self.refused += 1
            else:
                left.append((model, until))
        self.held = left


def key_of(action: Pull | Launch | Sleep | Wake | Stop) -> tuple[type, str]:
    """As `Effects` tells them apart."""
    return type(action), action.model if isinstance(action, Pull | Launch) else action.replica
