"""Who starts, wakes, waits or makes room, where GPUs are short. Pure; `decide` calls it.

The line: higher priority first, then who has waited longest. Each in turn gets what is free; or waits for what is
about to be; or has others make room, now or as soon as they may be asked to; and what it waits for is kept from those
behind it, so that a large model is not starved by small ones.

One more replica of a model that is served comes behind all who are not, has nobody's only replica make room, and is the
first to make room itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.actions import Drain, Launch, Stop, Wake
from orchestrator.crew import LEAVING, awake, spares
from orchestrator.gpu import Need, Size, Wait
from orchestrator.model import Deployment, Fleet, IdleAction, Phase, Replica
from orchestrator.placement import (
    ENGINE_DEFAULT_FRACTION,
    RESERVE_BYTES,
    Place,
    Plan,
    Room,
    place,
    plan,
    rooms,
    would_fit,
)
from orchestrator.slug import slug
from orchestrator.victims import LEAVE_S, START_S, Victim, victims_of

FINISH_S = 15.0
"""What the requests that are in flight take to end."""
BLOCKED_S = 60.0
"""Where nothing tells when a GPU will be free."""


@dataclass
class Line:
    """The GPUs as they are, and as they will be when all who are leaving have left; both with what was given away
    in this pass."""

    now: list[Room]
    later: list[Room]
    actions: list[Drain | Launch | Stop | Wake] = field(default_factory=list)
    waits: dict[str, Wait] = field(default_factory=dict)
    held: list[Victim] = field(default_factory=list)
    """Who got something in this pass, or waits for it, and when their turns will be over."""
    serial: int = 0
    served: frozenset[str] = frozenset()
    """Who wants one more replica than it has. Its users wait for nothing."""
    spare: frozenset[str] = frozenset()
    """The replicas without which their models are served all the same."""

    def hold(self, by: Replica, turn_s: float) -> None:
        """Nobody behind gets this, before its turn is over."""
        self.now, self.later = ([_held(room, by) for room in each] for each in (self.now, self.later))
        self.held.append(Victim(replica=by, wait_s=turn_s))

    def leaves(self, gone: Sequence[Replica], asleep: Sequence[Replica] = ()) -> None:
        """These will make room."""
        ids, sleepers = [r.id for r in gone], [r.id for r in asleep]
        self.later = [room.without(ids, sleepers) for room in self.later]

    def wait(self, model: str, seconds: float) -> None:
        """It waits for GPUs."""
        if model not in self.served:
            self.waits[model] = Wait(place=len(self.waits) + 1, seconds=seconds)


def line_up(
    waiting: Sequence[Deployment], deployments: Mapping[str, Deployment], fleet: Fleet, warm: frozenset[str], now: float
) -> Line:
    """What happens for those who want to start, in their order, those who want one more after the others. `warm`:
    models that are kept warm now."""
    everywhere = rooms(fleet.gpus, fleet.foreign, fleet.replicas.values())
    served = frozenset(deployment.name for deployment in waiting if awake(fleet, deployment.name))
    spare = frozenset(replica.id for each in deployments.values() for replica in spares(each, fleet))
    line = Line(now=list(everywhere), later=list(everywhere), served=served, spare=spare)
    leaving = [r for r in fleet.replicas.values() if r.phase in LEAVING and not r.unknown]
    asleep = [r for r in leaving if r.phase is Phase.DRAINING and r.then is IdleAction.SLEEP]
    line.leaves([r for r in leaving if r not in asleep], asleep)
    for deployment in sorted(waiting, key=lambda each: each.name in served):
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

    1. It sleeps: see `_wake`. 2. There is room: it is launched. 3. It has to wait: see `_wait`; or `_make_room`, if it
    is only one more.
    """
    need = need_of(deployment, fleet)
    sleeper = next((r for r in fleet.of(deployment.name) if r.phase is Phase.SLEEPING), None)
    if sleeper is not None:
        if _wake(line, deployment, need, sleeper, now):
            return
    elif found := _found(need, line, fleet):
        launch = _launch(deployment, fleet, found, line.serial)
        line.serial += 1
        line.actions.append(launch)
        line.hold(_as_replica(deployment, found, launch.replica, now), START_S + deployment.residency_min_s)
        return
    given = {victim.replica.id for victim in line.held}  # whoever has just been told to wake is no sleeper any more
    everybody = victims_of(deployment, deployments, fleet, line.spare, warm, now)
    victims = [victim for victim in everybody if victim.replica.id not in given]
    if deployment.name in line.served:
        _make_room(
            line, deployment, need, [v for v in victims if _yields(v, line, deployments, deployment)], deployments
        )
    else:
        _wait(line, deployment, need, victims, fleet, deployments, now)


def _wake(line: Line, deployment: Deployment, need: Need, sleeper: Replica, now: float) -> bool:
    """One that sleeps; whether that settles it.

    1. Its host is silent: it waits.
    2. Its GPUs have room: it wakes.
    3. They have none, but others have: it is ended, to be started there in a later pass.
    4. It will need others to make room.
    """
    name, turn_s = deployment.name, START_S + deployment.residency_min_s
    if sleeper.unknown:
        line.wait(name, BLOCKED_S)
        return True
    if _wakes(sleeper, line.now):
        line.actions.append(Wake(model=name, replica=sleeper.id))
        line.hold(replace(sleeper, phase=Phase.LOADING), turn_s)
        return True
    line.leaves([sleeper])
    elsewhere = place(need, [room.without([sleeper.id]) for room in line.now])
    if elsewhere is None:
        return False
    line.actions.append(Stop(model=name, replica=sleeper.id, reason="its GPUs are taken"))
    line.wait(name, LEAVE_S)
    line.hold(_as_replica(deployment, elsewhere, f"for {name}", now), turn_s)
    return True


def _make_room(
    line: Line,
    deployment: Deployment,
    need: Need,
    victims: Sequence[Victim],
    deployments: Mapping[str, Deployment],
) -> None:
    """One more, for which there is no room now: sleepers and spare replicas go at once, where they may be asked to and
    nobody is about to make room. It keeps nothing from anybody."""
    able = [victim.replica for victim in victims if victim.wait_s <= 0]
    if place(need, line.later) is not None:
        return
    chosen = plan(need, line.later, able, lambda model: _can_sleep(deployments.get(model)))
    if chosen is not None:
        line.actions += _evictions(chosen, deployment)
        line.leaves(chosen.stop, chosen.sleep)


def _wait(
    line: Line,
    deployment: Deployment,
    need: Need,
    victims: Sequence[Victim],
    fleet: Fleet,
    deployments: Mapping[str, Deployment],
    now: float,
) -> None:
    """One for which there is no room now.

    1. There will be, since somebody is leaving: it waits for that.
    2. Others may make room now: they are sent away, and it waits for that.
    3. Others may later: it waits until then, and nobody behind gets between.
    4. Others may at a time that nobody can tell, or nobody may at all: it waits.
    """
    name = deployment.name
    if soon := place(need, line.later):
        wait_s, found = (
            _gone_s(r for r in fleet.replicas.values() if r.phase in LEAVING and set(r.gpus) & {*soon.gpus}),
            soon,
        )
    else:
        firm_s = _soonest(need, line.later, [v for v in victims if v.firm] + line.held)
        able = [v.replica for v in (*victims, *line.held) if v.firm and firm_s is not None and v.wait_s <= firm_s]
        chosen = plan(need, line.later, able, lambda model: _can_sleep(deployments.get(model)))
        if firm_s is None or chosen is None:
            loose_s = _soonest(need, line.later, [*victims, *line.held])
            line.wait(name, BLOCKED_S if loose_s is None else loose_s + LEAVE_S)
            return
        wait_s, found = firm_s + _gone_s((*chosen.stop, *chosen.sleep)), chosen.place
        if firm_s <= 0:
            line.actions += _evictions(chosen, deployment)
            line.leaves(chosen.stop, chosen.sleep)
    line.wait(name, wait_s)
    turn_s = wait_s + START_S + deployment.residency_min_s
    line.hold(_as_replica(deployment, found, f"for {name}", now), turn_s)


def _soonest(need: Need, later: Sequence[Room], victims: Sequence[Victim]) -> float | None:
    """Seconds until enough of them may be sent away, 0 at least; None: all of them are not enough."""
    times = sorted({max(victim.wait_s, 0.0) for victim in victims})
    if not times or not would_fit(need, later, [v.replica for v in victims]):
        return None
    at = bisect_left(times, True, key=lambda t: would_fit(need, later, [v.replica for v in victims if v.wait_s <= t]))
    return times[at]


def _gone_s(leaving: Iterable[Replica]) -> float:
    """What these take to be gone."""
    serve = frozenset({Phase.READY, Phase.DRAINING})
    return max((FINISH_S if r.phase in serve and r.idle_at is None else LEAVE_S for r in leaving), default=LEAVE_S)


def _found(need: Need, line: Line, fleet: Fleet) -> Place | None:
    if need.sizes:
        return place(need, line.now)
    if not fleet.places:
        return Place()
    # No GPU ties it to a host: where the fewest run.
    load = {host: sum(r.host == host for r in fleet.replicas.values()) for host in fleet.places}
    load_now = {host: load[host] + sum(isinstance(a, Launch) and a.host == host for a in line.actions) for host in load}
    return Place(host=min(fleet.places, key=lambda host: (load_now[host], host)))


def _yields(victim: Victim, line: Line, deployments: Mapping[str, Deployment], asker: Deployment) -> bool:
    """Whether it makes room for one more of a model: a sleeper does, and a spare one of a lower priority."""
    replica = victim.replica
    if replica.phase is Phase.SLEEPING:
        return True
    return replica.id in line.spare and deployments[replica.model].priority < asker.priority


def _evictions(chosen: Plan, asker: Deployment) -> Iterator[Drain | Stop]:
    reason = f"making room for {asker.name}"
    for victim in chosen.stop:
        if victim.phase is not Phase.READY:
            yield Stop(model=victim.model, replica=victim.id, reason=reason)
        else:
            yield Drain(model=victim.model, replica=victim.id, reason=reason, patient=True)
    for victim in chosen.sleep:
        yield Drain(model=victim.model, replica=victim.id, reason=reason, patient=True, then=IdleAction.SLEEP)


def _can_sleep(deployment: Deployment | None) -> bool:
    return deployment is not None and deployment.idle_action is IdleAction.SLEEP


def _wakes(sleeper: Replica, current: Sequence[Room]) -> bool:
    """Whether each of its GPUs has room for what it held. No sleeper keeps to `ASLEEP_BYTES` to the byte, and what it
    takes beyond looks like another program's: so the reserve counts here."""
    mine = [room.without([sleeper.id]) for room in current if room.gpu.uuid in sleeper.gpus]
    return len(mine) == len(sleeper.gpus) and all(
        room.free_bytes + RESERVE_BYTES >= _awake_bytes(sleeper, room.gpu.memory_bytes) for room in mine
    )


def _awake_bytes(sleeper: Replica, whole: int) -> float:
    """What it takes at most: one that has a GPU to itself leaves some of it by default."""
    return min(sleeper.gpu_bytes or whole, ENGINE_DEFAULT_FRACTION * whole)


def _launch(deployment: Deployment, fleet: Fleet, found: Place, serial: int) -> Launch:
    return Launch(
        model=deployment.name,
        replica=f"{slug(deployment.name)}-{fleet.boot}-{fleet.serial + serial}",
        host=found.host,
        gpus=found.gpus,
        gpu_bytes=found.gpu_bytes,
        memory_fraction=found.memory_fraction,
        serial=fleet.serial + serial,
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
