"""What must hold once the trouble is over: who asks is served, load that stays gets what it needs and keeps it, and
nothing is left in the quiet."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.model import Demand, Phase
from tests.sim.laws import Broken
from tests.sim.world import deployments

if TYPE_CHECKING:
    from tests.sim.sim import Sim

QUIET_S = 300.0
CALM_S = 800.0
"""Longer than the longest back-off and a start: in a calm world, who asks for this long is served."""
STEADY_MODEL, STEADY_REPLICAS, STEADY_IN_FLIGHT = "m0", 3, (3, 7)
"""One with a target of 2: at 5 requests in the mean there is work for 3 replicas."""
STEADY_S = 200.0
SETTLE_S = 150.0
"""Two stable windows, for the start and the end of a panic, and the delay of scaling down."""


def come(sim: Sim) -> None:
    """The calm. Raises `Broken`."""
    sim.world.calm, sim.world.silent_until, sim.world.foreign = True, 0.0, {}
    sim.deployments = deployments(sim.specs)
    for model in sim.deployments:
        _serve(sim, model)
    _keep_steady(sim)
    ends_at = sim.now + QUIET_S
    while sim.now < ends_at:
        sim.step(1.0)
    kept = {name: d.min_replicas for name, d in sim.deployments.items() if d.min_replicas and not _stopped(sim, name)}
    left = Counter(engine.model for engine in sim.world.engines.values())
    if left != kept or Counter(replica.model for replica in sim.fleet.replicas.values()) != kept:
        raise Broken(f"in the quiet {dict(left)} engines are left, and should be {kept}")


def _serve(sim: Sim, model: str) -> None:
    before, ends_at = sim.served, sim.now + CALM_S
    while sim.served == before:
        if sim.now > ends_at:
            raise Broken(f"{model} was not served within {CALM_S} s of calm")
        sim.request(model, hold=False)
        sim.step(2.0)


def _keep_steady(sim: Sim) -> None:
    """Load that is the same in the mean: in the end there are as many replicas as it needs, and they stay."""
    began_at = sim.now
    while sim.now < began_at + SETTLE_S or _ready(sim) != STEADY_REPLICAS:
        if sim.now > began_at + CALM_S:
            raise Broken(f"{STEADY_MODEL} has {_ready(sim)} replicas under a load for {STEADY_REPLICAS}")
        _load(sim)
    settled_at, launches = sim.now, len(sim.world.launches)
    while sim.now < settled_at + STEADY_S:
        _load(sim)
        if _ready(sim) != STEADY_REPLICAS or len(sim.world.launches) > launches:
            raise Broken(f"{STEADY_MODEL} has {_ready(sim)} replicas under a load that has not changed")


def _load(sim: Sim) -> None:
    """One second of it: its requests last until just after the next look."""
    for _ in range(sim.dice.randint(*STEADY_IN_FLIGHT) if _ready(sim) else 1):
        sim.request(STEADY_MODEL, hold=False, takes_s=(1.01, 1.02))
    sim.step(1.0)


def _ready(sim: Sim) -> int:
    return sum(replica.phase is Phase.READY for replica in sim.fleet.of(STEADY_MODEL))


def _stopped(sim: Sim, model: str) -> bool:
    """By hand, and nobody has asked since."""
    demand = sim.demand.get(model, Demand())
    return demand.stop_at is not None and (demand.asked_at is None or demand.asked_at <= demand.stop_at)
