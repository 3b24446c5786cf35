"""What an admin changes of static models' servers by the API, kept over restarts in one small file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog

from orchestrator.model import Deployment, EngineKind
from orchestrator.servers.endpoint import Endpoint
from orchestrator.servers.state import endpoint_id

log = structlog.get_logger()


class Changes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of them."""

    added: dict[str, tuple[Endpoint, ...]] = {}
    """By model."""
    drained: frozenset[str] = frozenset()
    """The ids of endpoints that get no more requests."""


class Added:
    """The changes in force. `changed` is called after each. One that can't be written raises OSError, and is none.

    The file may hold keys of servers, so nobody else may read it. Every method blocks on it.
    """

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._path = path
        self._changed = changed
        self.changes = _read(path)

    def add(self, model: str, endpoint: Endpoint) -> None:
        """Another endpoint of a model; in place of the one with its address, if that was added too."""
        others = self._others(model, endpoint)
        drained = self.changes.drained - {endpoint_id(model, endpoint)}
        self._set(Changes(added={**self.changes.added, model: (*others, endpoint)}, drained=drained))

    def remove(self, model: str, endpoint: Endpoint) -> None:
        """Without one that was added."""
        drained = self.changes.drained - {endpoint_id(model, endpoint)}
        self._set(Changes(added={**self.changes.added, model: self._others(model, endpoint)}, drained=drained))

    def drain(self, model: str, endpoint: Endpoint, drained: bool) -> None:
        """No more requests for it; or again some."""
        one = {endpoint_id(model, endpoint)}
        all_drained = self.changes.drained | one if drained else self.changes.drained - one
        self._set(Changes(added=self.changes.added, drained=all_drained))

    def _others(self, model: str, endpoint: Endpoint) -> tuple[Endpoint, ...]:
        return tuple(other for other in self.changes.added.get(model, ()) if other.url != endpoint.url)

    def _set(self, changes: Changes) -> None:
        fresh = self._path.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(changes))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self.changes = changes
        self._changed()


def with_added(deployments: Mapping[str, Deployment], changes: Changes) -> dict[str, Deployment]:
    """The deployments as they are to be. Of an address that is configured too, the configuration counts. Pure."""
    return {
        name: replace(deployment, endpoints=_endpoints(deployment, changes))
        if deployment.engine is EngineKind.STATIC
        else deployment
        for name, deployment in deployments.items()
    }


def _endpoints(deployment: Deployment, changes: Changes) -> tuple[Endpoint, ...]:
    configured = {endpoint.url for endpoint in deployment.endpoints}
    more = [replace(e, added=True) for e in changes.added.get(deployment.name, ()) if e.url not in configured]
    return tuple(
        replace(endpoint, draining=endpoint_id(deployment.name, endpoint) in changes.drained)
        for endpoint in (*deployment.endpoints, *more)
    )


def _read(path: Path) -> Changes:
    """What can't be read is put aside for people to look at, and changes nothing."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Changes)
    except FileNotFoundError:
        return Changes()
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        aside = path.with_suffix(".broken")
        log.error("endpoints_not_read", path=str(path), kept_as=str(aside), error=type(error).__name__)
        path.replace(aside)
        return Changes()
