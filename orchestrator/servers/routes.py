"""The routes of static models, from what is known of their servers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.activator import Route
from orchestrator.balance.lane import CAPACITY_DEFAULT, Lane
from orchestrator.model import Backoff, Deployment, Phase, Replica, Track
from orchestrator.servers.state import Lookup, Server

RETRY_S = 1.0
"""When to come back where no check is due."""


def route(
    deployment: Deployment,
    servers: Sequence[Server],
    lanes: Mapping[str, Lane],
    lookups: Sequence[Lookup],
    was: Track | None,
    now: float,
) -> Route:
    """What requests for a model find. `servers` and `lookups`: its own, `lanes`: by the id of
    their server."""
    track = _track(servers, lookups, was, now)
    ready = [server for server in servers if server.phase is Phase.READY]
    together, spec = _together(ready, deployment.limits.max_concurrent), deployment.spec
    return Route(
        deployment=_limited(deployment, together),
        track=track,
        lanes=tuple(lanes[server.id] for server in ready),
        servers_take=together,
        backoff=None if track.phase is not Phase.FAILED else _backoff(deployment, servers, lookups, track),
        replicas=tuple(_replica(server, spec) for server in servers),
    )


def capacity(server: Server, servers: Sequence[Server]) -> int:
    """The requests that it takes at once; one that does not say takes as many as the greatest that does."""
    known = [s.endpoint.max_concurrent_requests for s in servers if s.model == server.model]
    return server.endpoint.max_concurrent_requests or max(known, default=0) or CAPACITY_DEFAULT


def _track(servers: Sequence[Server], lookups: Sequence[Lookup], was: Track | None, now: float) -> Track:
    phases = {server.phase for server in servers} | {Phase.STARTING for lookup in lookups if lookup.pending}
    phase = next((p for p in (Phase.READY, Phase.STARTING) if p in phases), Phase.FAILED)
    return was if was is not None and was.phase is phase else Track(phase=phase, phase_at=now)


def _together(ready: Sequence[Server], each_max: int) -> int:
    """How many requests they take, where each of them says so; else 0. `each_max`: the model's own limit, or 0."""
    most = [server.endpoint.max_concurrent_requests for server in ready]
    return sum(min(each, each_max or each) for each in most) if all(most) else 0


def _limited(deployment: Deployment, together: int) -> Deployment:
    """As one that has a limit, so that requests stand in line at it."""
    if not together or deployment.limits.max_concurrent:
        return deployment
    return replace(deployment, limits=replace(deployment.limits, max_concurrent=together))


def _backoff(deployment: Deployment, servers: Sequence[Server], lookups: Sequence[Lookup], track: Track) -> Backoff:
    """Why nobody can be served, and when that is looked at again: at the end of the next check or look-up."""
    failed = [server for server in servers if server.phase is Phase.FAILED]
    due = [lookup.due_at for lookup in lookups] + [server.due_at + deployment.health.timeout_s for server in failed]
    return Backoff(
        failures=1,
        failed_at=track.phase_at,
        retry_at=min(due, default=track.phase_at) + RETRY_S,
        error=_why(servers, failed, lookups),
    )


def _why(servers: Sequence[Server], failed: Sequence[Server], lookups: Sequence[Lookup]) -> str:
    if failed:
        count = "its server is" if len(failed) == 1 else f"its {len(failed)} servers are"
        return f"{count} not well: {failed[0].error}"
    if errors := [lookup.error for lookup in lookups if lookup.error]:
        return f"it has no servers: {errors[0]}"
    return "its servers are drained" if servers else "it has no servers"


def _replica(server: Server, spec: str) -> Replica:
    """A server as listings show replicas."""
    return Replica(
        id=server.id,
        model=server.model,
        spec=spec,
        phase=server.phase,
        created_at=server.created_at,
        phase_at=server.phase_at,
        ready_at=server.ready_at,
        endpoint=server.endpoint.url,
        host=server.address if server.named else "",
        error=server.error,
        leaving="drained" if server.phase is Phase.DRAINING else "",
    )
