"""The logs of engines that have ended: a folder of the newest few. Blocking."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from orchestrator.errors import NotFound

LOGS_KEPT_MAX = 20
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,120}")


class KeptLogs:
    """One file a replica. An id that could not be one of ours never becomes a path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, replica: str) -> Path:
        """Where a replica's output is kept. Raises ValueError for what is no replica id."""
        if not is_name(replica):
            raise ValueError(f"not a replica id: {replica[:80]!r}")
        return self._folder / f"{replica}.log"

    def found(self, replica: str) -> Path:
        """The same, where there is one. Raises `NotFound`."""
        if not is_name(replica) or not (path := self.path(replica)).exists():
            raise NotFound(f"no log of {replica[:80]!r}")
        return path

    def prune(self, live: Collection[str] = ()) -> None:
        """Keep those of the `live`, and the newest `LOGS_KEPT_MAX` of the others."""
        logs = sorted(self._folder.glob("*.log"), key=_changed_at)
        for path in [path for path in logs if path.stem not in live][:-LOGS_KEPT_MAX]:
            path.unlink(missing_ok=True)


def is_name(replica: str) -> bool:
    """Whether it could be one of our replica ids."""
    return _NAME.fullmatch(replica) is not None


def _changed_at(path: Path) -> float:
    """Zero for a file that another thread removed meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
