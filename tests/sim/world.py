"""The simulated world: engines, weights and a runtime that can be silent, all in virtual time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from orchestrator.actions import Launch
from orchestrator.gpu import Gpu
from orchestrator.model import Deployment, EngineKind, Instance, InstanceState, Weights, WeightsState

GPUS = tuple(Gpu(uuid=f"GPU-{n}", memory_bytes=1, free_bytes=1) for n in range(2))
FATES = ("good", "good", "good", "stuck", "dies at start", "dies later", "falls sick")


def deployments(spec: int = 0) -> dict[str, Deployment]:
    """Five models: two on the CPU, three that want the two GPUs; `spec` changes what they are started with."""
    return {
        f"m{n}": Deployment(
            name=f"m{n}",
            engine=EngineKind.COMMAND,
            source=f"org/m{n}",
            args=(str(spec),),
            gpus=0 if n < 2 else 1,
            priority=n % 2,
            idle_timeout_s=20.0,
            start_timeout_s=60.0,
            drain_timeout_s=10.0,
        )
        for n in range(5)
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

    def alive(self, now: float) -> bool:
        return now < self.dies_at

    def busy(self, now: float) -> bool:
        return bool(self.ends) and self.alive(now)

    def healthy(self, now: float) -> bool:
        return self.alive(now) and self.ready_at <= now < self.sick_at


class World:
    """What is really there."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.engines: dict[str, Engine] = {}
        self.weights = {name: Weights(state=WeightsState.ABSENT) for name in deployments()}
        self.silent_until = 0.0
        self.calm = False
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
            )
            for engine in self.engines.values()
        )

    def tick(self, now: float) -> None:
        """Let requests end; the requests of a dead engine break off."""
        for engine in self.engines.values():
            done = [end for end in engine.ends if end <= now or not engine.alive(now)]
            if done:
                engine.last_byte_at = min(max(done), now)
                engine.ends = [end for end in engine.ends if end not in done]
