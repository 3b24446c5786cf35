"""Keeps a part of the disk free: the least recently used weights go, never those in use or pinned. Blocking."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import structlog

from storage.disk_space import choose, remove, snapshots

log = structlog.get_logger()


class DiskRoom:
    """Makes room in one cache, one caller at a time. `keep` is set by whoever knows what is in use: folders as in
    `Weights.path`, or hub ids."""

    def __init__(
        self,
        cache: Path,
        *,
        free_bytes_min: int,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        self._cache = cache
        self._free_bytes_min = free_bytes_min
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        self.keep: Collection[str] | None = None
        """None: not known yet, so nothing is removed."""

    def make(self, for_bytes: int = 0) -> None:
        """Remove until the limit, and `for_bytes` beyond it, are free, or nothing more may go. A disk that refuses is
        asked again at the next call."""
        with self._lock, contextlib.suppress(OSError):
            wanted = self._free_bytes_min + for_bytes
            free = self._free_bytes(self._cache)
            if self.keep is None or free >= wanted:
                return
            found = snapshots(self._cache)
            for snapshot in choose(found, free_bytes=free, free_bytes_min=wanted, keep=self.keep):
                if remove(snapshot):
                    log.info("weights_removed", model=snapshot.repo, revision=snapshot.path.name, why="disk")
