"""Who can be sent away to make room on GPUs, and when. Pure; `arrive` chooses among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.crew import LEAVING, STARTING
from orchestrator.model import Demand, Deployment, Fleet, Phase, Replica

LEAVE_S = 3.0
"""What a replica that makes room takes to be gone."""
START_S = 30.0
"""What others need to become ready, where somebody waits for their turn to end."""
SERVE_S_MIN = 2.0
"""Whatever is configured, who has become ready stays for this long: or two models could start in turns for ever, each
sent away before it has served anybody."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Victim:
    """One that can make room."""

    replica: Replica
    wait_s: float
    """Seconds until it may be asked to; none: at once."""
    firm: bool = True
    """False: it goes when it is idle for long, not when it is asked."""


def victims_of(
    asker: Deployment,
    deployments: Mapping[str, Deployment],
    fleet: Fleet,
    spare: frozenset[str],
    warm: frozenset[str],
    now: float,
) -> list[Victim]:
    """Who can be sent away for it, in this order.

    Sleepers first, then spare ones, those with nothing in flight, lower priorities, the least recently used first.
    """
    track = fleet.tracks.get(asker.name)
    waited_s = now - track.phase_at if track is not None and track.phase is Phase.QUEUED else 0.0
    found: list[tuple[tuple[bool, bool, bool, int, float, str], Victim]] = []
    for replica in fleet.replicas.values():
        owner = deployments.get(replica.model)
        if owner is None or not replica.gpus or replica.unknown or replica.model == asker.name:
            continue
        asleep = replica.phase is Phase.SLEEPING
        if replica.phase in LEAVING or (asleep and replica.ready_at is not None and replica.idle_at is None):
            continue  # it leaves already; or fell asleep with requests in flight, and is woken for them
        held = fleet.demand.get(replica.model, Demand()).held > 0
        busy = not asleep and (replica.idle_at is None or held)
        more = replica.id in spare
        kept = replica.model in warm and not more
        victim = _victim(replica, owner, asker.priority, busy=busy, spare=more, warm=kept, waited_s=waited_s, now=now)
        if victim is not None:
            used_at = replica.phase_at if asleep else replica.idle_at or replica.phase_at
            found.append(((not asleep, not more, busy, owner.priority, used_at, replica.id), victim))
    return [victim for _, victim in sorted(found, key=lambda each: each[0])]


def _victim(
    replica: Replica,
    owner: Deployment,
    priority: int,
    *,
    busy: bool,
    spare: bool,
    warm: bool,
    waited_s: float,
    now: float,
) -> Victim | None:
    """When it makes room for one of that priority that has waited for so long; None: nobody can tell.

    1. A lower priority: at once; what it has in hand it finishes. A sleeper, or a spare one, of the same: too.
    2. The same priority: once it has been ready for `residency_min_s`; and when requests are in flight, once the asker
       has waited for `turn_max_s`: so busy models take turns. One that is kept warm: never.
    3. A higher one: when it is idle for long.
    """
    if owner.priority < priority or (owner.priority == priority and (spare or replica.phase is Phase.SLEEPING)):
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
