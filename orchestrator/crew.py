"""The replicas of one model beside each other: who is up, and who is missed least. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.model import Deployment, Fleet, Phase, Replica

LEAVING = frozenset({Phase.DRAINING, Phase.FAILED})
STARTING = frozenset({Phase.STARTING, Phase.LOADING})


def awake(fleet: Fleet, model: str) -> list[Replica]:
    """The replicas of a model that serve or are about to, oldest first."""
    return [r for r in fleet.of(model) if r.phase not in LEAVING and r.phase is not Phase.SLEEPING]


def leave_order(replicas: Iterable[Replica]) -> list[Replica]:
    """Who of a model's replicas is missed least: those that leave already, that start, that sleep, then those with
    settings of old, with the fewest requests; of equals the newest."""
    ranks = {Phase.SLEEPING: 2, Phase.READY: 3, **dict.fromkeys(STARTING, 1)}
    return sorted(
        sorted(replicas, key=lambda r: (r.created_at, r.id), reverse=True),
        key=lambda r: (ranks.get(r.phase, 0), r.stale_at is None, r.in_flight),
    )


def spares(deployment: Deployment, fleet: Fleet) -> list[Replica]:
    """Those beyond the one that serves, or `min_replicas`; one whose host is silent may not serve."""
    if deployment.max_replicas == 1:
        return []
    up = [replica for replica in awake(fleet, deployment.name) if not replica.unknown]
    return leave_order(up)[: max(len(up) - max(deployment.min_replicas, 1), 0)]
