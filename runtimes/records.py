"""What is remembered of an engine process: one small file each, written before and after its birth. Blocking."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from runtimes.kept_logs import KeptLogs, is_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The facts of one engine. The field names in the file are the contract's labels where it has one."""

    replica: str
    instance: str
    model: str
    spec: str
    port: int
    gpus: tuple[str, ...] = ()
    gpu_bytes: int = 0
    pid: int | None = None
    """None: about to be started, or started by a process that died before it could say so."""
    born_at: float | None = None
    """The process's own start time, which tells it from a later one with the same pid."""


class Records:
    """The files, in a folder of ours."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = KeptLogs(folder / "logs")

    def write(self, record: Record) -> None:
        """Keep it; on disk when this returns."""
        path = self._path(record.replica)
        fresh = path.with_suffix(".new")
        facts = asdict(record)
        labels = {f"orchestrator.{key}": facts.pop(key) for key in ("instance", "model", "replica", "spec")}
        with fresh.open("w") as file:
            json.dump({**labels, **facts}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)

    def all(self) -> Iterator[Record]:
        """Every one that makes sense; a torn or foreign file is passed over.

        Raises OSError when the folder or a file of it can't be read: what it holds is unknown then, not gone.
        """
        for path in sorted(self._folder.iterdir()):
            if path.suffix != ".json":
                continue
            try:
                facts = json.loads(path.read_text())
                facts = {key.removeprefix("orchestrator."): value for key, value in facts.items()}
                yield Record(**{**facts, "gpus": tuple(facts["gpus"])})
            except FileNotFoundError:  # removed meanwhile
                continue
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    def remove(self, replica: str) -> None:
        """Forget it; its log stays, among the newest few."""
        self._path(replica).unlink(missing_ok=True)
        self.logs.prune({record.replica for record in self.all()})

    def log_path(self, replica: str) -> Path:
        """Where its output goes."""
        return self.logs.path(replica)

    def _path(self, replica: str) -> Path:
        if not is_name(replica):
            raise ValueError(f"not a replica id: {replica[:80]!r}")
        return self._folder / f"{replica}.json"
