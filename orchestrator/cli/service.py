"""``orchestrator serve``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.access.key_file import is_there
from orchestrator.access.loopback import is_loopback
from orchestrator.config import Watched
from orchestrator.errors import ConfigError
from orchestrator.settings import Settings


def run_service(config: Path | None, flags: Mapping[str, Mapping[str, Any]]) -> None:
    """Serve until told to end. Blocks. Raises `ConfigError`, `server.AddressInUse`."""
    watched = Watched(config, flags=flags)
    settings = watched.load()
    check_exposure(settings)
    from orchestrator import logs, server
    from orchestrator.app import Service

    logs.configure()
    if settings.server.workers > 1:
        _run_with_workers(settings, watched)
        return
    listener = server.listen(settings.server.host, settings.server.port)
    server.serve(Service(settings, watched), settings, listener)


def _run_with_workers(settings: Settings, watched: Watched) -> None:
    """The service itself listens on loopback, for its workers alone."""
    from orchestrator import server
    from orchestrator.app import Service
    from orchestrator.gateway.workers import Workers

    chosen = settings.server
    service = Service(settings, watched)
    workers = Workers(
        chosen.host,
        chosen.port,
        chosen.workers,
        secret=service.gateways.secret(),
        drain_timeout_s=settings.defaults.drain_timeout_s,
    )
    server.serve(service, settings, server.listen("127.0.0.1", 0), workers)


def check_exposure(settings: Settings) -> None:
    """Without keys, everybody who reaches the address may do everything: then it must be loopback."""
    host, keys_file = settings.server.host, settings.auth.keys_file
    if is_there(keys_file) or is_loopback(host):
        return
    raise ConfigError(
        f"server.host {host} is reachable from other machines, and there is no key file {keys_file}:"
        " make a key with `orchestrator keys new NAME --scope realtime`, or listen on 127.0.0.1"
    )
