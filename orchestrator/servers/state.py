"""What is known of servers that others run, and how it follows from what is seen of them. Pure.

A server's phase:

    not checked yet   starting
    well              ready       its lane gets requests
    not well          failed      its lane gets none; checked on, so it comes back by itself
    sent away         draining    what it has in hand it finishes; not checked

`judged` says what makes a server well. After the health checks of Envoy
(https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/health_checking) and Kubernetes' probes.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

from orchestrator.model import Deployment, Phase
from orchestrator.servers.endpoint import Endpoint, HealthRules
from orchestrator.slug import slug

FAILURES_MAX = 2
"""Failed checks in a row that take a server out; after the first of them the next comes at once. So one that dies is
out within `interval_s` and twice `timeout_s`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What one look at a server found."""

    ok: bool
    seconds: float
    error: str = ""
    """One sentence without an address in it, since clients are told too."""
    path: str = ""
    """Where it answered; empty: it did not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookup:
    """What a DNS name stands for."""

    addresses: tuple[str, ...] = ()
    """As last told; a look-up that fails takes none away."""
    error: str = ""
    due_at: float = 0.0

    @property
    def pending(self) -> bool:
        """Whether nothing is known of it yet."""
        return not (self.addresses or self.error)


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """One server: one address of one endpoint."""

    id: str
    model: str
    endpoint: Endpoint
    address: str
    named: bool = False
    """Whether it is one of those that the endpoint's name stands for."""
    phase: Phase = Phase.STARTING
    phase_at: float
    created_at: float
    ready_at: float | None = None
    checks: tuple[Check, ...] = ()
    """The last ones since `phase` began, at most `HealthRules.window`."""
    due_at: float
    """When it is checked next."""
    error: str = ""
    health_path: str = "/health"
    """Where it is asked first."""
    path: str = ""
    """Where it answers checks; empty: not known yet."""


def endpoint_id(model: str, endpoint: Endpoint) -> str:
    """What it is called in addresses of the API and in listings; the same after a restart."""
    digest = hashlib.sha256(f"{model} {endpoint.url}".encode()).hexdigest()[:6]
    return f"{slug(model)}-{slug(endpoint.authority + endpoint.base)}-{digest}"


def is_address(host: str) -> bool:
    """Whether it needs no look-up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def names(deployments: Mapping[str, Deployment]) -> dict[tuple[str, int], float]:
    """The DNS names, with ports, and how often each is looked up, in seconds."""
    found: dict[tuple[str, int], float] = {}
    for deployment in deployments.values():
        for endpoint in deployment.endpoints:
            if not is_address(endpoint.host):
                name, refresh_s = (endpoint.host, endpoint.port), deployment.health.dns_refresh_s
                found[name] = min(found.get(name, refresh_s), refresh_s)
    return found


def looked_up(old: Lookup, addresses: tuple[str, ...], error: str, due_at: float) -> Lookup:
    """After a look-up, which found nothing where there is an `error`."""
    return Lookup(addresses=old.addresses if error else addresses, error=error, due_at=due_at)


def placed(
    servers: Mapping[str, Server],
    deployments: Mapping[str, Deployment],
    lookups: Mapping[tuple[str, int], Lookup],
    now: float,
) -> tuple[dict[str, Server], dict[str, Server]]:
    """The servers there should be, in the order of the configuration, and those that are leaving for good."""
    wanted = {
        server.id: server
        for deployment in deployments.values()
        for endpoint in deployment.endpoints
        for server in _servers(deployment, endpoint, lookups, now)
    }
    here = {id: _kept(servers.get(id), server, now) for id, server in wanted.items()}
    return here, {id: drained(server, now) for id, server in servers.items() if id not in wanted}


def _servers(
    deployment: Deployment, endpoint: Endpoint, lookups: Mapping[tuple[str, int], Lookup], now: float
) -> list[Server]:
    id, host = endpoint_id(deployment.name, endpoint), endpoint.host
    addresses = {host: id}
    if not is_address(host):
        found = lookups.get((host, endpoint.port), Lookup()).addresses
        addresses = {address: f"{id}-{slug(address)}" for address in found}
    return [
        Server(
            id=id,
            model=deployment.name,
            endpoint=endpoint,
            address=address,
            named=not is_address(host),
            health_path=deployment.health_path,
            phase_at=now,
            created_at=now,
            due_at=now,
        )
        for address, id in addresses.items()
    ]


def _kept(old: Server | None, wanted: Server, now: float) -> Server:
    """One that is wanted, as it is known; with other settings it is checked at once."""
    server = old or wanted
    if server.endpoint != wanted.endpoint or server.health_path != wanted.health_path:
        server = replace(server, endpoint=wanted.endpoint, health_path=wanted.health_path, path="", due_at=now)
    if wanted.endpoint.draining:
        return drained(server, now)
    return replace(wanted, created_at=server.created_at) if server.phase is Phase.DRAINING else server


def drained(server: Server, now: float) -> Server:
    """It gets no more requests."""
    return server if server.phase is Phase.DRAINING else replace(server, phase=Phase.DRAINING, phase_at=now, error="")


def judged(server: Server, check: Check, rules: HealthRules, now: float) -> Server:
    """A server after a check.

    1. It is leaving: as it was.
    2. It is ready, and the check leaves nothing to be said against it: as it was; after a failure the next check
       comes at once.
    3. It is ready, and there is a reason: failed.
    4. It is not, and the check went well: ready. What was before counts no more.
    5. Else: failed.
    """
    if server.phase is Phase.DRAINING:
        return server
    due_at, path = now + rules.interval_s, check.path or server.path
    if server.phase is Phase.READY:
        checks = (*server.checks, check)[-rules.window :]
        reason = _reason(checks, rules)
        if not reason:
            return replace(server, checks=checks, due_at=due_at if check.ok else now, path=path, error=check.error)
    else:
        checks, reason = (check,), check.error if not check.ok else _too_slow((check,), rules)
        if not reason:
            ready = replace(server, phase=Phase.READY, phase_at=now, ready_at=now)
            return replace(ready, checks=checks, due_at=due_at, path=path, error="")
    phase_at = server.phase_at if server.phase is Phase.FAILED else now
    failed = replace(server, phase=Phase.FAILED, phase_at=phase_at, ready_at=None)
    return replace(failed, checks=checks, due_at=due_at, path=path, error=reason)


def _reason(checks: tuple[Check, ...], rules: HealthRules) -> str:
    """What speaks against a ready server; empty: nothing."""
    last = checks[-FAILURES_MAX:]
    if len(last) == FAILURES_MAX and not any(check.ok for check in last):
        return last[-1].error
    if len(checks) < rules.window:
        return ""
    well = [check for check in checks if check.ok]
    if len(well) < rules.success_min * len(checks):
        return f"only {len(well)} of its last {len(checks)} checks went well"
    return _too_slow(checks, rules)


def _too_slow(checks: tuple[Check, ...], rules: HealthRules) -> str:
    seconds = median(check.seconds for check in checks)
    if not rules.slow_s or seconds <= rules.slow_s:
        return ""
    return f"its checks take {seconds:.2f} s, and {rules.slow_s:g} s is allowed"
