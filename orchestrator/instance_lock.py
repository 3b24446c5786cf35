"""One orchestrator on a data folder: a lock that dies with its process, and the folder's identity."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from orchestrator.errors import ConfigError

LOCK_FILE = "orchestrator.lock"
INSTANCE_FILE = "instance"


class InstanceLock:
    """Holds ``data_dir`` (made if missing) until `release` or the end of the process, kill -9 included.

    Raises `ConfigError` that names the holder.
    """

    def __init__(self, data_dir: Path) -> None:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self._file = (data_dir / LOCK_FILE).open("a+")
        except OSError as error:
            raise ConfigError(f"server.data_dir: {data_dir} can't be used: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = holder_pid(data_dir)
            self._file.close()
            raise ConfigError(
                f"server.data_dir: {data_dir} is in use by an orchestrator (process {holder or 'unknown'});"
                " stop that one, or give this one a folder of its own"
            ) from None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let go. Harmless when done twice."""
        self._file.close()


def holder_pid(data_dir: Path) -> int | None:
    """The process that last took the lock; it may be gone."""
    try:
        return int((data_dir / LOCK_FILE).read_text().strip())
    except (OSError, ValueError):
        return None


def instance_id(data_dir: Path) -> str:
    """The random id that marks this folder's engines; made at first use."""
    if found := known_instance(data_dir):
        return found
    fresh = secrets.token_hex(8)
    with (data_dir / INSTANCE_FILE).open("w") as file:
        file.write(fresh)
        file.flush()
        os.fsync(file.fileno())
    return fresh


def known_instance(data_dir: Path) -> str:
    """The same, or nothing where there is none yet."""
    path = data_dir / INSTANCE_FILE
    return path.read_text().strip() if path.exists() else ""
