"""Our scaling, a fixed number of replicas, and Knative's algorithm alone, on the same day of requests.

``python -m tests.sim --autoscale`` prints the table of the README.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from math import ceil, floor
from statistics import mean

from orchestrator import fleet as step
from orchestrator.actions import Drain, Launch, Stop
from orchestrator.autoscale import TARGET_UTILISATION
from orchestrator.decide import decide
from orchestrator.gpu import Gpu
from orchestrator.model import (
    Demand,
    Deployment,
    EngineKind,
    Fleet,
    Instance,
    InstanceState,
    Sighting,
    Traffic,
    Weights,
    WeightsState,
)
from orchestrator.tracks import tracked
from tests.sim.day import DAY_S, REPLICAS_MAX, SEATS, Day, Result

GB = 10**9
SEED = 1
TARGET = TARGET_UTILISATION * SEATS
GPUS = tuple(Gpu(uuid=f"GPU-{n}", memory_bytes=80 * GB, free_bytes=80 * GB, index=n) for n in range(REPLICAS_MAX))
PRESENT = Weights(state=WeightsState.PRESENT)


def fixed(count: int, seconds: int = DAY_S, seed: int = SEED) -> Result:
    """So many replicas, always."""
    day = Day(seed)
    for n in range(count):
        day.launch(f"r{n}", at_once=True)
    while day.now < seconds:
        day.second()
        day.serve()
    return day.result(f"always {count}")


class Ours:
    """The real `fleet` and `decide`, once a second."""

    def __init__(self, seed: int = SEED, **settings: float) -> None:
        self.day = Day(seed)
        self.fleet = Fleet(boot="b")
        base = Deployment(
            name="m",
            engine=EngineKind.COMMAND,
            source="",
            gpus=1,
            max_replicas=REPLICAS_MAX,
            target_concurrency=TARGET,
            drain_timeout_s=600.0,  # nothing is cut, as under Knative
        )
        self.models = {"m": replace(base, **settings)}  # type: ignore[arg-type]  # names of its fields

    def run(self, name: str, seconds: int = DAY_S) -> Result:
        """So much of the day."""
        while self.day.now < seconds:
            self.day.second()
            self._pass()
            self.day.serve()
        return self.day.result(name)

    def _pass(self) -> None:
        now = self.day.now
        self.fleet = step.advance(self.fleet, self.models, self._sighting(), now)
        for action in decide(self.models, self.fleet, now):
            match action:
                case Launch(replica=id):
                    self.day.launch(id)
                    self.fleet = step.landed(step.launched(self.fleet, action, self.models["m"], now), id, now)
                case Drain(replica=id, reason=reason, then=then, patient=patient):
                    self.day.leave(id)
                    self.fleet = step.drained(self.fleet, id, reason, now, then=then, patient=patient)
                case Stop(replica=id, reason=reason):
                    self.day.stop(id)
                    self.fleet = step.drained(self.fleet, id, reason, now)
        self.fleet = tracked(self.fleet, self.models, now)

    def _sighting(self) -> Sighting:
        day, spec = self.day, self.models["m"].spec
        leases = {id: replica.gpus for id, replica in self.fleet.replicas.items()}
        running = InstanceState.RUNNING
        return Sighting(
            instances=tuple(
                Instance(id=id, model="m", spec=spec, state=running, gpus=leases.get(id, ())) for id in day.engines
            ),
            healthy={id: engine.ready_at <= day.now for id, engine in day.engines.items()},
            weights={"m": PRESENT},
            demand={"m": Demand(asked_at=day.asked_at if not day.ready() else None, held=len(day.line))},
            traffic={
                id: Traffic(in_flight=len(engine.ends), last_byte_at=engine.last_byte_at)
                for id, engine in day.engines.items()
            },
            gpus=GPUS,
        )


class Knative:
    """Its autoscaler with its defaults (autoscaler.go, `Scale`; config-autoscaler): a tick every 2 s, windows of 60 and
    6 s, panic at twice what is ready, down to half at once, to nothing 30 s after a window of nothing."""

    def __init__(self, seed: int = SEED) -> None:
        self.day = Day(seed)
        self.seen: deque[int] = deque(maxlen=60)
        self.panic_at: float | None = None
        self.panic_pods = self.serial = 0
        self.zero_at: float | None = None

    def run(self, seconds: int = DAY_S) -> Result:
        """So much of the day."""
        while self.day.now < seconds:
            self.day.second()
            self.seen.append(len(self.day.line) + sum(len(e.ends) for e in self.day.engines.values() if not e.draining))
            if self.day.now % 2 == 0:
                self._scale(self._desired())
            for name, engine in self.day.engines.items():
                if engine.draining and not engine.ends:
                    self.day.stop(name)
            self.day.serve()
        return self.day.result("Knative's algorithm")

    def _desired(self) -> int:
        ready = max(len(self.day.ready()), 1)
        stable, panic = ceil(mean(self.seen) / TARGET), ceil(mean(list(self.seen)[-6:]) / TARGET)
        least, most = floor(ready / 2), 1000 * ready
        over = panic / ready >= 2
        if over:
            self.panic_at = self.day.now
        elif self.panic_at is not None and self.day.now - self.panic_at > 60:
            self.panic_at, self.panic_pods = None, 0
        desired = min(max(stable, least), most)
        if self.panic_at is not None:
            self.panic_pods = max(self.panic_pods, desired, min(max(panic, least), most))
            desired = self.panic_pods
        return min(desired, REPLICAS_MAX)

    def _scale(self, desired: int) -> None:
        up = [name for name, engine in self.day.engines.items() if not engine.draining]
        self.zero_at = None if desired else self.zero_at or self.day.now
        if self.zero_at is not None and self.day.now - self.zero_at < 30:
            desired = min(len(up), 1)
        room = REPLICAS_MAX - len(self.day.engines)
        for _ in range(min(desired - len(up), room)):
            self.day.launch(f"r{self.serial}")
            self.serial += 1
        # A ReplicaSet takes those that are not ready first, then the newest.
        order = sorted(up, key=lambda name: (name not in self.day.ready(), self.day.engines[name].launched_at))
        for name in order[::-1][: max(len(up) - desired, 0)]:
            self.day.leave(name)


def _ours() -> Result:
    return Ours().run("ours")


def _ours_without_delay() -> Result:
    return Ours(scale_down_delay_s=0.0).run("ours, `scale_down_delay_s = 0`")


def _knative() -> Result:
    return Knative().run()


def report() -> None:
    """The table, in Markdown."""
    others: tuple[Callable[[], Result], ...] = (_ours, _ours_without_delay, _knative)
    with ProcessPoolExecutor() as processors:
        running = [*(processors.submit(each) for each in others)]
        running += [processors.submit(fixed, count) for count in range(1, REPLICAS_MAX + 1)]
        found = [each.result() for each in running]
    print("| replicas | GPU hours | delayed requests | p99 of the wait | longest | starts |")
    print("| --- | --: | --: | --: | --: | --: |")
    for r in found:
        waits = f"{_told(r.p99_s)} | {_told(r.max_s)}"
        print(f"| {r.policy} | {r.gpu_hours:.1f} | {r.delayed_share:.1%} | {waits} | {r.starts} |")


def _told(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
