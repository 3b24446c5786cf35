"""Who starts, wakes, waits or makes room, where GPUs are short. Pure; `decide` calls it.

The line: higher priority first, then who has waited longest. Each in turn gets what is free; or waits for what is
about to be; or has others make room; and what it waits for is kept from those behind it, so that a large model is not
starved by small ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.actions import Drain, Launch, Stop, Wake
from orchestrator.gpu import Need, Size, Wait
from orchestrator.model import Demand, Deployment, Fleet, IdleAction, Phase, Replica
from orchestrator.placement import Place, Plan, Room, place, plan, rooms

LEAVE_S = 5.0
"""What a replica that makes room takes to be gone."""
BLOCKED_S = 60.0
"""Where nothing tells when a GPU will be free."""
LEAVING = frozenset({Phase.DRAINING, Phase.FAILED})


@dataclass
class Line:
    """The GPUs as they are, and as they will be when all who are leaving have left; both with what was given away
    in this pass."""

    now: list[Room]
    later: list[Room]
    actions: list[Drain | Launch | Stop | Wake] = field(default_factory=list)
    waits: dict[str, Wait] = field(default_factory=dict)
    blocked: int = 0
    serial: int = 0

    def hold(self, by: Replica) -> None:
        """Nobody behind gets this."""
        self.now, self.later = ([_held(room, by) for room in each] for each in (self.now, self.later))

    def leaves(self, gone: Sequence[Replica], asleep: Sequence[Replica] = ()) -> None:
        """These will make room."""
        ids, sleepers = [r.id for r in gone], [r.id for r in asleep]
        self.later = [room.without(ids, sleepers) for room in self.later]

    def wait(self, model: str, seconds: float) -> None:
        """It waits for GPUs."""
        self.waits[model] = Wait(place=len(self.waits) + 1, seconds=seconds)


def line_up(
    waiting: Sequence[Deployment], deployments: Mapping[str, Deployment], fleet: Fleet, warm: frozenset[str], now: float
) -> Line:
    """What happens for those who want to start, in their order. `warm`: models that are kept warm now."""
    everywhere = rooms(fleet.gpus, fleet.foreign, fleet.replicas.values())
    line = Line(now=list(everywhere), later=list(everywhere))
    line.leaves([r for r in fleet.replicas.values() if r.phase in LEAVING and not r.unknown])
    for deployment in waiting:
        _serve(line, deployment, deployments, fleet, warm, now)
    return line


def need_of(deployment: Deployment, fleet: Fleet) -> Need:
    """What is known of it; else as many whole GPUs as are configured."""
    count = deployment.gpus or 0
    return fleet.needs.get(deployment.name, Need(sizes=(Size(gpus=count),) if count else ()))


def _serve(
    line: Line,
    deployment: Deployment,
    deployments: Mapping[str, Deployment],
    fleet: Fleet,
    warm: frozenset[str],
    now: float,
) -> None:
    """One of the line.

    1. It sleeps, and its GPUs have room: it wakes.
    2. It sleeps, they have none, but other GPUs have: it is ended, to be started there in a later pass.
    3. There is room: it is launched.
    4. There will be, since somebody is leaving: it waits.
    5. Others can make room: they are sent away, and it waits.
    6. It waits until one of them may be sent away.
    """
    need = need_of(deployment, fleet)
    sleeper = next((r for r in fleet.of(deployment.name) if r.phase is Phase.SLEEPING), None)
    if sleeper is not None:
        if _wakes(sleeper, line.now):
            line.actions.append(Wake(model=deployment.name, replica=sleeper.id))
            line.hold(replace(sleeper, phase=Phase.LOADING, gpu_bytes=sleeper.gpu_bytes))
            return
        if place(need, [room.without([sleeper.id]) for room in line.now]) is not None:
            line.actions.append(Stop(model=deployment.name, replica=sleeper.id, reason="its GPUs are taken"))
            return
        line.leaves([sleeper])
    elif found := _found(need, line, deployments, fleet):
        launch = _launch(deployment, fleet, found, line.serial)
        line.serial += 1
        line.actions.append(launch)
        line.hold(_as_replica(deployment, found, launch.replica, now))
        return
    if soon := place(need, line.later):
        line.wait(deployment.name, LEAVE_S)
        line.hold(_as_replica(deployment, soon, f"for {deployment.name}", now))
        return
    victims = _victims(deployment, deployments, fleet, warm, now)
    free = [v for v, wait_s in victims if wait_s <= 0]
    chosen = plan(need, line.later, free, lambda model: _can_sleep(deployments.get(model)))
    if chosen is not None:
        line.actions += _evictions(chosen, deployment)
        line.leaves(chosen.stop, chosen.sleep)
        line.wait(deployment.name, LEAVE_S)
        line.hold(_as_replica(deployment, chosen.place, f"for {deployment.name}", now))
        return
    soonest_s = min((wait_s for _, wait_s in victims if wait_s > 0), default=BLOCKED_S)
    line.wait(deployment.name, soonest_s + LEAVE_S + line.blocked * deployment.residency_min_s)
    line.blocked += 1


def _found(need: Need, line: Line, deployments: Mapping[str, Deployment], fleet: Fleet) -> Place | None:
    if need.sizes:
        return place(need, line.now)
    if not fleet.places:
        return Place()
    # No GPU ties it to a host: where the fewest run.
    load = {host: sum(r.host == host for r in fleet.replicas.values()) for host in fleet.places}
    load_now = {host: load[host] + sum(isinstance(a, Launch) and a.host == host for a in line.actions) for host in load}
    return Place(host=min(fleet.places, key=lambda host: (load_now[host], host)))


def _victims(
    asker: Deployment, deployments: Mapping[str, Deployment], fleet: Fleet, warm: frozenset[str], now: float
) -> list[tuple[Replica, float]]:
    """Who may be sent away for it, in this order, with the seconds until they may.

    1. A lower priority: at once; what it has in hand it finishes.
    2. The same priority: once it has been ready for `residency_min_s`, unless it is kept warm; and when requests are
       in flight, once the asker has waited for `turn_max_s`: so busy models take turns.
    Sleepers first, then lower priorities, then those with nothing in flight, the least recently used first.
    """
    track = fleet.tracks.get(asker.name)
    waited_s = now - track.phase_at if track is not None and track.phase is Phase.QUEUED else 0.0
    found = []
    for replica in fleet.replicas.values():
        owner = deployments.get(replica.model)
        if owner is None or not replica.gpus or replica.unknown or replica.model == asker.name:
            continue
        if replica.phase not in (Phase.READY, Phase.SLEEPING) or owner.priority > asker.priority:
            continue
        wait_s = 0.0
        if owner.priority == asker.priority and replica.phase is Phase.READY:
            if replica.model in warm:
                continue
            residency_s = owner.residency_min_s - (now - (replica.ready_at or now))
            busy = replica.idle_at is None or fleet.demand.get(replica.model, Demand()).held > 0
            wait_s = max(residency_s, owner.turn_max_s - waited_s if busy else 0.0)
        found.append((replica, wait_s))
    return sorted(found, key=lambda victim: _order(victim[0], deployments))


def _order(victim: Replica, deployments: Mapping[str, Deployment]) -> tuple[bool, int, bool, float, str]:
    idle_at = victim.idle_at
    priority = deployments[victim.model].priority
    awake = victim.phase is not Phase.SLEEPING
    return awake, priority, awake and idle_at is None, idle_at or 0.0, victim.id


def _evictions(chosen: Plan, asker: Deployment) -> Iterator[Drain | Stop]:
    reason = f"making room for {asker.name}"
    for victim in chosen.stop:
        if victim.phase is Phase.SLEEPING:
            yield Stop(model=victim.model, replica=victim.id, reason=reason)
        else:
            yield Drain(model=victim.model, replica=victim.id, reason=reason, patient=True)
    for victim in chosen.sleep:
        yield Drain(model=victim.model, replica=victim.id, reason=reason, patient=True, then=IdleAction.SLEEP)


def _can_sleep(deployment: Deployment | None) -> bool:
    return deployment is not None and deployment.idle_action is IdleAction.SLEEP


def _wakes(sleeper: Replica, current: Sequence[Room]) -> bool:
    """Whether each of its GPUs has room for what it held."""
    mine = [room.without([sleeper.id]) for room in current if room.gpu.uuid in sleeper.gpus]
    return len(mine) == len(sleeper.gpus) and all(
        room.free_bytes >= (sleeper.gpu_bytes or room.gpu.memory_bytes) for room in mine
    )


def _launch(deployment: Deployment, fleet: Fleet, found: Place, serial: int) -> Launch:
    return Launch(
        model=deployment.name,
        replica=f"{_slug(deployment.name)}-{fleet.boot}-{fleet.serial + serial}",
        host=found.host,
        gpus=found.gpus,
        gpu_bytes=found.gpu_bytes,
        memory_fraction=found.memory_fraction,
    )


def _as_replica(deployment: Deployment, found: Place, id: str, now: float) -> Replica:
    """What it will be, to count its lease."""
    return Replica(
        id=id,
        model=deployment.name,
        spec=deployment.spec,
        phase=Phase.STARTING,
        created_at=now,
        phase_at=now,
        host=found.host,
        gpus=found.gpus,
        gpu_bytes=found.gpu_bytes,
    )


def _held(room: Room, by: Replica) -> Room:
    if room.gpu.uuid not in by.gpus:
        return room
    return replace(room, holders=(*(h for h in room.holders if h.id != by.id), by))


def _slug(model: str) -> str:
    """A model's name as part of a file or container name."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:60]
