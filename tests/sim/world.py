"""The simulated world: engines, weights and a runtime that can be silent, all in virtual time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from orchestrator.actions import Launch
from orchestrator.gpu import Gpu, Need, Size
from orchestrator.model import Deployment, EngineKind, IdleAction, Instance, InstanceState, Load, Weights, WeightsState
from orchestrator.placement import ASLEEP_BYTES

GB = 10**9
GPUS = tuple(
    Gpu(uuid=f"GPU-{n}", memory_bytes=size * GB, free_bytes=size * GB, index=n) for n, size in enumerate((80, 80, 24))
)
NEEDS = {
    "m2": Need(sizes=(Size(gpus=1),)),
    "m3": Need(sizes=(Size(gpus=1, bytes_min=12 * GB, bytes_wanted=20 * GB),)),
    "m4": Need(sizes=(Size(gpus=1, bytes_min=40 * GB, bytes_wanted=45 * GB),)),
    "m5": Need(sizes=(Size(gpus=2, bytes_min=60 * GB, bytes_wanted=70 * GB),)),
}
"""One that takes what it gets, two that share, one of which fits on large GPUs only, and one for two GPUs."""
SLEEPERS = frozenset({"m3", "m4"})
REPLICAS = {"m0": (0, 4), "m2": (0, 2), "m3": (0, 2), "m6": (2, 3)}
"""The least and the most, where not none and one: two on the CPU, one on whole GPUs, one that shares and sleeps."""
SEATS = 3
"""Requests that an engine works on at a time; the others wait at it."""
FATES = ("good", "good", "good", "stuck", "dies at start", "dies later", "falls sick")


def deployments(spec: int = 0) -> dict[str, Deployment]:
    """Seven models: three on the CPU, four that want more of three GPUs than there is; `spec` changes what they are
    started with."""
    return {
        f"m{n}": Deployment(
            name=f"m{n}",
            engine=EngineKind.COMMAND,
            source=f"org/m{n}",
            args=(str(spec),),
            gpus=0 if f"m{n}" not in NEEDS else None,
            priority=n % 2 if n < 4 else 0,
            residency_min_s=10.0,
            turn_max_s=30.0,
            idle_action=IdleAction.SLEEP if f"m{n}" in SLEEPERS else IdleAction.STOP,
            sleep_timeout_s=60.0,
            idle_timeout_s=20.0,
            start_timeout_s=60.0,
            drain_timeout_s=10.0,
            min_replicas=REPLICAS.get(f"m{n}", (0, 1))[0],
            max_replicas=REPLICAS.get(f"m{n}", (0, 1))[1],
            target_concurrency=2.0,
            scale_down_delay_s=15.0,
        )
        for n in range(7)
    }


@dataclass
class Engine:
    """One simulated engine process."""

    id: str
    model: str
    spec: str
    gpus: tuple[str, ...]
    ready_at: float
    dies_at: float
    sick_at: float
    ends: list[float] = field(default_factory=list)
    """When each running request will end."""
    last_byte_at: float | None = None
    gpu_bytes: int = 0
    asleep: bool = False

    def alive(self, now: float) -> bool:
        return now < self.dies_at

    def busy(self, now: float) -> bool:
        return bool(self.ends) and self.alive(now)

    def holds_bytes(self, gpu: Gpu) -> int:
        """What it may take of one of its GPUs."""
        return ASLEEP_BYTES if self.asleep else self.gpu_bytes or gpu.memory_bytes

    def healthy(self, now: float) -> bool:
        """Its health says nothing of its sleep."""
        return self.alive(now) and self.ready_at <= now < self.sick_at


class World:
    """What is really there."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.engines: dict[str, Engine] = {}
        self.weights = {name: Weights(state=WeightsState.ABSENT) for name in deployments()}
        self.silent_until = 0.0
        self.calm = False
        self.foreign: dict[str, int] = {}
        self.launches: list[tuple[float, str]] = []

    def launch(self, launch: Launch, deployment: Deployment, now: float) -> None:
        """As `ports.Runtime.launch`: idempotent by id."""
        if launch.replica in self.engines:
            return
        fate = "good" if self.calm else self.dice.choice(FATES)
        start_s = self.dice.uniform(1, 20)
        never = float("inf")
        self.launches.append((now, deployment.name))
        self.engines[launch.replica] = Engine(
            id=launch.replica,
            model=deployment.name,
            spec=deployment.spec,
            gpus=launch.gpus,
            gpu_bytes=launch.gpu_bytes,
            ready_at=never if fate == "stuck" else now + start_s,
            dies_at=now + self.dice.uniform(0, start_s)
            if fate == "dies at start"
            else now + start_s + self.dice.uniform(0, 90)
            if fate == "dies later"
            else never,
            sick_at=now + start_s + self.dice.uniform(0, 90) if fate == "falls sick" else never,
        )

    def instances(self, now: float) -> tuple[Instance, ...] | None:
        """As `ports.Runtime.list`; None while the runtime is silent."""
        if now < self.silent_until:
            return None
        return tuple(
            Instance(
                id=engine.id,
                model=engine.model,
                spec=engine.spec,
                state=InstanceState.RUNNING if engine.alive(now) else InstanceState.EXITED,
                endpoint="http://127.0.0.1:1",
                gpus=engine.gpus,
                gpu_bytes=engine.gpu_bytes,
            )
            for engine in self.engines.values()
        )

    def loads(self, now: float) -> dict[str, Load]:
        """What engines say of their load; now and then one does not."""
        return {
            engine.id: Load(
                running=min(len(engine.ends), SEATS),
                waiting=max(len(engine.ends) - SEATS, 0),
                kv_use=min(len(engine.ends) / (2 * SEATS), 1.0),
                at=now - self.dice.uniform(0, 12),
            )
            for engine in self.engines.values()
            if engine.healthy(now) and self.dice.random() < 0.8
        }

    def gpus(self, now: float) -> tuple[Gpu, ...]:
        """As NVML would show them: engines that are up use what they hold, and so do other programs."""
        return tuple(replace(gpu, free_bytes=max(gpu.memory_bytes - self._used(gpu, now), 0)) for gpu in GPUS)

    def _used(self, gpu: Gpu, now: float) -> int:
        up = [e for e in self.engines.values() if gpu.uuid in e.gpus and e.alive(now) and now >= e.ready_at]
        return sum(engine.holds_bytes(gpu) for engine in up) + self.foreign.get(gpu.uuid, 0)

    def tick(self, now: float) -> None:
        """Let requests end; the requests of a dead engine break off."""
        for engine in self.engines.values():
            done = [end for end in engine.ends if end <= now or not engine.alive(now)]
            if done:
                engine.last_byte_at = min(max(done), now)
                engine.ends = [end for end in engine.ends if end not in done]
