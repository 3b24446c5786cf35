"""The routes of all models: of those whose engines we start, from the loop, and of static ones, from `servers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator.activator import Route
from orchestrator.model import Deployment, EngineKind


class Routing:
    """Puts both together, in the order of the configuration, whenever one of them has news."""

    def __init__(self, publish: Callable[[Mapping[str, Route]], None]) -> None:
        self._publish = publish
        self._launched: Mapping[str, Route] = {}
        self._static: Mapping[str, Route] = {}
        self.deployments: Mapping[str, Deployment] = {}
        """As they are to be; what is not among them has no route any more."""

    def launched(self, routes: Mapping[str, Route]) -> None:
        """What the loop knows now."""
        self._launched = routes
        self._spread()

    def static(self, routes: Mapping[str, Route]) -> None:
        """What is known of servers now."""
        self._static = routes
        self._spread()

    def _spread(self) -> None:
        known = {**self._launched, **self._static}
        self._publish({name: known[name] for name in self.deployments if name in known})


def by_kind(deployments: Mapping[str, Deployment]) -> tuple[dict[str, Deployment], dict[str, Deployment]]:
    """Those whose engines we start, and the static ones."""
    static = {name: d for name, d in deployments.items() if d.engine is EngineKind.STATIC}
    return {name: d for name, d in deployments.items() if name not in static}, static
