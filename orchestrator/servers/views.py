"""What the API shows of static models' servers, as JSON values. No key is among them."""

from __future__ import annotations

from typing import Protocol

from orchestrator.balance.lane import Lane
from orchestrator.servers.endpoint import Endpoint
from orchestrator.servers.state import Lookup, Server, endpoint_id


class Known(Protocol):
    """What is known of servers; see `watch.Servers`."""

    def of(self, model: str, endpoint: Endpoint) -> list[Server]:
        """Those that an endpoint stands for."""

    def lookup(self, endpoint: Endpoint) -> Lookup | None:
        """Of its name, if it has one."""

    def lane(self, server: str) -> Lane | None:
        """The lane to a server."""


def endpoint_view(model: str, endpoint: Endpoint, known: Known, now: float) -> dict[str, object]:
    """One endpoint, and the servers that it stands for."""
    lookup = known.lookup(endpoint)
    return {
        "id": endpoint_id(model, endpoint),
        "object": "endpoint",
        "model": model,
        "url": endpoint.url,
        "from": "api" if endpoint.added else "configuration",
        "max_concurrent_requests": endpoint.max_concurrent_requests,
        "weight": endpoint.weight,
        "served_model": endpoint.model or model,
        "has_key": bool(endpoint.key),
        "draining": endpoint.draining,
        "error": lookup.error if lookup is not None else "",
        "servers": [_server_view(server, known.lane(server.id), now) for server in known.of(model, endpoint)],
    }


def _server_view(server: Server, lane: Lane | None, now: float) -> dict[str, object]:
    last = server.checks[-1] if server.checks else None
    well = sum(check.ok for check in server.checks)
    return {
        "id": server.id,
        "address": server.address,
        "phase": server.phase,
        "phase_s": round(now - server.phase_at, 1),
        "in_flight": lane.taken if lane is not None else 0,
        "error": server.error,
        "check_s": round(last.seconds, 4) if last is not None else None,
        "success_rate": round(well / len(server.checks), 3) if server.checks else None,
    }
