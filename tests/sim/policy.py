"""What taking turns on one GPU is good for: our policy beside two plainer ones, in a world where nothing fails.

Clients wait until they are served. ``python -m tests.sim --policy`` prints the table and a JSON line.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from statistics import median

from orchestrator import fleet as step
from orchestrator.actions import Drain, Launch, Stop
from orchestrator.decide import decide, waits
from orchestrator.gpu import Gpu, Need, Size
from orchestrator.model import (
    Demand,
    Deployment,
    EngineKind,
    Fleet,
    Instance,
    InstanceState,
    Phase,
    Sighting,
    Traffic,
    Weights,
    WeightsState,
)
from orchestrator.tracks import tracked

GB = 10**9
START_S = (20.0, 40.0)
STOP_S = 2.0
STEP_S = 1.0
FORECAST_EVERY_S = 10.0
NEVER = 1e9
Arrivals = Callable[[random.Random], Iterator[tuple[float, str, float]]]
"""When each request comes, for whom, and how many seconds its answer takes; for ever."""


def alternating(dice: random.Random) -> Iterator[tuple[float, str, float]]:
    """Every few seconds one for the one model, then one for the other."""
    at, count = 0.0, 0
    while True:
        at += dice.expovariate(1 / 4)
        count += 1
        yield at, f"m{count % 2}", dice.uniform(1, 6)


def one_busy(dice: random.Random) -> Iterator[tuple[float, str, float]]:
    """One model that always has requests in flight; two others that are asked for every minute or so."""
    at = 0.0
    while True:
        at += dice.expovariate(1 / 2)
        yield at, dice.choices(("busy", "m0", "m1"), (28, 1, 1))[0], dice.uniform(5, 15)


SCENARIOS: dict[str, tuple[tuple[str, ...], Arrivals]] = {
    "two models that alternate": (("m0", "m1"), alternating),
    "one busy model, two others": (("busy", "m0", "m1"), one_busy),
}
POLICIES: dict[str, tuple[float, float]] = {
    "ours": (60.0, 120.0),
    "no residency": (0.0, 0.0),
    "never evicts": (NEVER, NEVER),
}
"""`residency_min_s` and `turn_max_s`."""


@dataclass
class Engine:
    """One that starts, serves, and then takes `STOP_S` to be gone."""

    launch: Launch
    ready_at: float
    ends: list[float] = field(default_factory=list)
    last_byte_at: float | None = None
    gone_at: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a policy does to those who wait."""

    scenario: str
    policy: str
    swaps_per_hour: float
    wait_median_s: float
    wait_max_s: float
    starting_share: float
    """Of the time, the GPU served nobody because an engine came or went."""
    served: int
    forecasts: int
    forecast_error_median_s: float
    """Of the seconds that somebody in line was told until a GPU would be free."""
    forecast_median_s: float
    """What it turned out to be."""


class Turns:
    """One run."""

    def __init__(self, scenario: str, policy: str, seed: int = 1) -> None:
        names, arrivals = SCENARIOS[scenario]
        residency_s, turn_s = POLICIES[policy]
        self.scenario, self.policy = scenario, policy
        self.dice = random.Random(seed)
        self.arrivals = arrivals(random.Random(seed))
        self.next = next(self.arrivals)
        self.gpu = Gpu(uuid="GPU-0", memory_bytes=80 * GB, free_bytes=80 * GB)
        self.needs = dict.fromkeys(names, Need(sizes=(Size(gpus=1, bytes_min=40 * GB),)))
        self.models = {
            name: Deployment(
                name=name, engine=EngineKind.VLLM, source="", gpus=None, residency_min_s=residency_s, turn_max_s=turn_s
            )
            for name in names
        }
        self.fleet = Fleet(boot="b")
        self.engines: dict[str, Engine] = {}
        self.line: list[tuple[float, str, float]] = []
        self.asked: dict[str, float] = {}
        self.waited: list[float] = []
        self.launches: list[tuple[float, str]] = []
        self.forecasts: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        self.errors: list[tuple[float, float]] = []
        self.now = self.unserving_s = 0.0

    def run(self, hours: float) -> Result:
        """So many hours of it."""
        while self.now < hours * 3600:
            self.now += STEP_S
            self._come_and_go()
            self._pass()
            self._forecast()
            serving = any(e.ready_at <= self.now < e.gone_at for e in self.engines.values())
            self.unserving_s += 0.0 if serving else STEP_S
        waited = [*self.waited, *(self.now - at for at, _, _ in self.line)]
        return Result(
            scenario=self.scenario,
            policy=self.policy,
            swaps_per_hour=round((len(self.launches) - 1) / hours, 1),
            wait_median_s=round(median(waited), 1),
            wait_max_s=round(max(waited), 1),
            starting_share=round(self.unserving_s / self.now, 3),
            served=len(self.waited),
            forecasts=len(self.errors),
            forecast_error_median_s=round(median([abs(told - real) for told, real in self.errors] or [0.0]), 1),
            forecast_median_s=round(median([real for _, real in self.errors] or [0.0]), 1),
        )

    def _come_and_go(self) -> None:
        while self.next[0] <= self.now:
            self.line.append(self.next)
            self.asked[self.next[1]] = self.now
            self.next = next(self.arrivals)
        for key, engine in list(self.engines.items()):
            if done := [end for end in engine.ends if end <= self.now]:
                engine.last_byte_at = max(done)
                engine.ends = [end for end in engine.ends if end > self.now]
            if engine.gone_at <= self.now:
                del self.engines[key]

    def _pass(self) -> None:
        self.fleet = step.advance(self.fleet, self.models, self._sighting(), self.now)
        for action in decide(self.models, self.fleet, self.now):
            match action:
                case Launch(model=model, replica=replica):
                    self.engines[replica] = Engine(action, self.now + self.dice.uniform(*START_S))
                    self.launches.append((self.now, model))
                    self.fleet = step.launched(self.fleet, action, self.models[model], self.now)
                    self.fleet = step.landed(self.fleet, replica, self.now)
                case Drain(replica=replica, reason=reason, then=then, patient=patient):
                    self.fleet = step.drained(self.fleet, replica, reason, self.now, then=then, patient=patient)
                case Stop(replica=replica):
                    engine = self.engines.get(replica)
                    if engine is not None:
                        assert not engine.ends, f"{replica} was cut"
                        engine.gone_at = min(engine.gone_at, self.now + STOP_S)
        self.fleet = replace(self.fleet, waits=waits(self.models, self.fleet, self.now))
        self.fleet = tracked(self.fleet, self.models, self.now)
        for ready in [r for r in self.fleet.replicas.values() if r.phase is Phase.READY]:
            self._serve(ready.model, self.engines[ready.id])

    def _serve(self, model: str, engine: Engine) -> None:
        for at, _, takes_s in (request for request in self.line if request[1] == model):
            self.waited.append(self.now - at)
            engine.ends.append(self.now + takes_s)
        self.line = [request for request in self.line if request[1] != model]

    def _sighting(self) -> Sighting:
        held = [model for _, model, _ in self.line]
        return Sighting(
            instances=tuple(
                Instance(
                    id=key,
                    model=engine.launch.model,
                    spec=self.models[engine.launch.model].spec,
                    state=InstanceState.RUNNING,
                    gpus=engine.launch.gpus,
                    gpu_bytes=engine.launch.gpu_bytes,
                )
                for key, engine in self.engines.items()
            ),
            healthy={key: engine.ready_at <= self.now for key, engine in self.engines.items()},
            weights=dict.fromkeys(self.models, Weights(state=WeightsState.PRESENT)),
            demand={m: Demand(asked_at=self.asked.get(m), held=held.count(m)) for m in self.models},
            traffic={k: Traffic(in_flight=len(e.ends), last_byte_at=e.last_byte_at) for k, e in self.engines.items()},
            gpus=(self.gpu,),
            needs=self.needs,
        )

    def _forecast(self) -> None:
        """Note what those in line are told now and then, and how it turned out."""
        if self.launches and self.launches[-1][0] == self.now:
            model = self.launches[-1][1]
            self.errors += [(told, self.now - at) for at, told in self.forecasts[model]]
            self.forecasts[model] = []
        for model, wait in self.fleet.waits.items():
            known = self.forecasts[model]
            if not known or self.now - known[-1][0] >= FORECAST_EVERY_S:
                known.append((self.now, wait.seconds))


def results(hours: float, seed: int = 1) -> list[Result]:
    """Every policy in every scenario."""
    return [Turns(scenario, policy, seed).run(hours) for scenario in SCENARIOS for policy in POLICIES]


def report(hours: float) -> None:
    """The table for people, the line for programs."""
    found = results(hours)
    print(f"one GPU, {hours:g} h, starts of {START_S[0]:g} to {START_S[1]:g} s; waits in seconds")
    row = "{:<28}{:<15}{:>9}{:>9}{:>9}{:>11}{:>11}{:>9}"
    print(row.format("", "", "swaps/h", "median", "most", "no engine", "told ± s", "of s"))
    for r in found:
        no_engine = f"{r.starting_share:.0%}"
        waited = (f"{r.wait_median_s:.0f}", f"{r.wait_max_s:.0f}")
        forecast = (f"{r.forecast_error_median_s:.0f}", f"{r.forecast_median_s:.0f}")
        print(row.format(r.scenario, r.policy, f"{r.swaps_per_hour:.0f}", *waited, no_engine, *forecast))
    print(json.dumps({"hours": hours, "results": [asdict(r) for r in found]}))
