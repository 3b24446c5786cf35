"""Models that somebody keeps warm by hand, beside what the configuration says. They outlive the service."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from orchestrator.model import Deployment

log = structlog.get_logger()


class Pins:
    """The pinned models, kept in one small file of the data folder. `changed` is called after each change."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._path = path
        self._changed = changed
        self.models = _read(path)

    def set(self, model: str, pinned: bool) -> None:
        """Pin the model, or let go of it. Blocks on a small file. Raises OSError when that can't be written; then
        nothing has changed."""
        models = self.models | {model} if pinned else self.models - {model}
        if models == self.models:
            return
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(sorted(models)), "utf-8")
        fresh.replace(self._path)
        self.models = models
        self._changed()


def kept_warm(deployments: Mapping[str, Deployment], pins: frozenset[str]) -> dict[str, Deployment]:
    """The deployments as they are to be: a pinned model keeps a replica. Pure."""
    return {
        name: replace(deployment, min_replicas=max(deployment.min_replicas, 1)) if name in pins else deployment
        for name, deployment in deployments.items()
    }


def _read(path: Path) -> frozenset[str]:
    """What can't be read pins nothing: a model that is cold is woken by whoever asks."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, RecursionError) as error:
        log.warning("pins_not_read", path=str(path), error=str(error))
        return frozenset()
    return frozenset(name for name in found if isinstance(name, str)) if isinstance(found, list) else frozenset()
