"""Who starts, wakes, waits or makes room, where GPUs are short. Pure; `decide` calls it.

The line: higher priority first, then who has waited longest. Each in turn gets what is free; or waits for what is
about to be; or has others make room, now or as soon as they may be asked to; and what it waits for is kept from those
behind it, so that a large model is not starved by small ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.actions import Drain, Launch, Stop, Wake
from orchestrator.gpu import Need, Size, Wait
from orchestrator.model import Demand, Deployment, Fleet, IdleAction, Phase, Replica, slug
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

LEAVE_S = 3.0
"""What a replica that makes room takes to be gone."""
FINISH_S = 15.0
"""What the requests that are in flight take to end."""
START_S = 30.0
"""What others need to become ready, where somebody waits for their turn to end."""
SERVE_S_MIN = 2.0
"""Whatever is configured, who has become ready stays for this long: or two models could start in turns for ever, each
sent away before it has served anybody."""
BLOCKED_S = 60.0
"""Where nothing tells when a GPU will be free."""
LEAVING = frozenset({Phase.DRAINING, Phase.FAILED})
STARTING = frozenset({Phase.STARTING, Phase.LOADING})


@dataclass(frozen=True, kw_only=True, slots=True)
class Victim:
    """One that can make room."""

    replica: Replica
    wait_s: float
    """Seconds until it may be asked to; none: at once."""
    firm: bool = True
    """False: it goes when it is idle for long, not when it is asked."""


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
        self.waits[model] = Wait(place=len(self.waits) + 1, seconds=seconds)


def line_up(
    waiting: Sequence[Deployment], deployments: Mapping[str, Deployment], fleet: Fleet, warm: frozenset[str], now: float
) -> Line:
    """What happens for those who want to start, in their order. `warm`: models that are kept warm now."""
    everywhere = rooms(fleet.gpus, fleet.foreign, fleet.replicas.values())
    line = Line(now=list(everywhere), later=list(everywhere))
    leaving = [r for r in fleet.replicas.values() if r.phase in LEAVING and not r.unknown]
    asleep = [r for r in leaving if r.phase is Phase.DRAINING and r.then is IdleAction.SLEEP]
    line.leaves([r for r in leaving if r not in asleep], asleep)
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

    1. It sleeps: see `_wake`. 2. There is room: it is launched. 3. It has to wait: see `_wait`.
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
    victims = _victims(deployment, deployments, fleet, warm, now)
    given = {victim.replica.id for victim in line.held}  # whoever has just been told to wake is no sleeper any more
    _wait(line, deployment, need, [v for v in victims if v.replica.id not in given], fleet, deployments, now)


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


def _victims(
    asker: Deployment, deployments: Mapping[str, Deployment], fleet: Fleet, warm: frozenset[str], now: float
) -> list[Victim]:
    """Who can be sent away for it, in this order.

    Sleepers first, then those with nothing in flight, then lower priorities, the least recently used first.
    """
    track = fleet.tracks.get(asker.name)
    waited_s = now - track.phase_at if track is not None and track.phase is Phase.QUEUED else 0.0
    found: list[tuple[tuple[bool, bool, int, float, str], Victim]] = []
    for replica in fleet.replicas.values():
        owner = deployments.get(replica.model)
        if owner is None or not replica.gpus or replica.unknown or replica.model == asker.name:
            continue
        asleep = replica.phase is Phase.SLEEPING
        if replica.phase in LEAVING or (asleep and replica.ready_at is not None and replica.idle_at is None):
            continue  # it leaves already; or fell asleep with requests in flight, and is woken for them
        held = fleet.demand.get(replica.model, Demand()).held > 0
        busy = not asleep and (replica.idle_at is None or held)
        victim = _victim(
            replica, owner, asker.priority, busy=busy, warm=replica.model in warm, waited_s=waited_s, now=now
        )
        if victim is not None:
            used_at = replica.phase_at if asleep else replica.idle_at or replica.phase_at
            found.append(((not asleep, busy, owner.priority, used_at, replica.id), victim))
    return [victim for _, victim in sorted(found, key=lambda each: each[0])]


def _victim(
    replica: Replica, owner: Deployment, priority: int, *, busy: bool, warm: bool, waited_s: float, now: float
) -> Victim | None:
    """When it makes room for one of that priority that has waited for so long; None: nobody can tell.

    1. A lower priority: at once; what it has in hand it finishes. A sleeper of the same: too.
    2. The same priority: once it has been ready for `residency_min_s`; and when requests are in flight, once the asker
       has waited for `turn_max_s`: so busy models take turns. One that is kept warm: never.
    3. A higher one: when it is idle for long.
    """
    if owner.priority < priority or (owner.priority == priority and replica.phase is Phase.SLEEPING):
        return Victim(replica=replica, wait_s=0.0)
    if owner.priority > priority and replica.phase is Phase.SLEEPING:
        return Victim(replica=replica, wait_s=max(owner.sleep_timeout_s - (now - replica.phase_at), 0.001), firm=False)
    if warm:
        return None
    if owner.priority > priority:
        idle_s = 0.0 if busy or replica.idle_at is None else now - replica.idle_at
        return Victim(replica=replica, wait_s=max(owner.idle_timeout_s - idle_s, 0.001), firm=False)
    if replica.phase in STARTING:
        starts_s = max(START_S - (now - (replica.woken_at or replica.created_at)), LEAVE_S)
        return Victim(replica=replica, wait_s=starts_s + owner.residency_min_s)
    stayed_s = 0.0 if replica.ready_at is None else now - replica.ready_at
    residency_s = max(owner.residency_min_s, SERVE_S_MIN)
    return Victim(replica=replica, wait_s=max(residency_s - stayed_s, owner.turn_max_s - waited_s if busy else 0.0))


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
