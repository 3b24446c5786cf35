"""The DuckDB catalogue: one writer thread, numbered migrations, readers beside it.

DuckDB takes one process at a time and blocks, so its connection lives on one thread that works a bounded queue;
what waits together is committed together.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import structlog

QUEUE_JOBS_MAX = 10_000
GROUP_JOBS_MAX = 200
CLOSE_TIMEOUT_S = 10.0

T = TypeVar("T")
Job = tuple[Callable[[Any], Any], "Future[Any]"]

log = structlog.get_logger()


class Catalog:
    """The database in one file. Opened on its own thread, so making one does not block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.Queue[Job | None] = queue.Queue(QUEUE_JOBS_MAX)
        self.error = ""
        """Why nothing is kept, if so."""
        self._thread = threading.Thread(target=self._run, name="catalog", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[Any], T]) -> Future[T]:
        """Run `job(connection)` on the writer's thread; done when committed. Does not block.

        Jobs run in order. The future fails with `queue.Full` when too many wait.
        """
        future: Future[T] = Future()
        try:
            self._jobs.put_nowait((job, future))
        except queue.Full as error:
            future.set_exception(error)
        return future

    async def run(self, job: Callable[[Any], T]) -> T:
        """`submit`, and wait for it off the event loop."""
        return await asyncio.wrap_future(self.submit(job))

    def close(self) -> None:
        """Finish what was submitted and close the file. Blocks, at most `CLOSE_TIMEOUT_S`."""
        self._jobs.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        connection = self._open()
        while True:
            jobs, last = self._next_group()
            if jobs:
                self._commit(connection, jobs)
            if last:
                connection.close()
                return

    def _next_group(self) -> tuple[list[Job], bool]:
        group: list[Job] = []
        job = self._jobs.get()
        while job is not None:
            group.append(job)
            if len(group) >= GROUP_JOBS_MAX:
                return group, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, connection: Any, jobs: list[Job]) -> None:
        """One transaction for all; if any fails, each alone, so that one bad job spoils no other."""
        import duckdb

        try:
            connection.begin()
            results = [job(connection) for job, _ in jobs]
            connection.commit()
        except duckdb.Error as error:
            connection.rollback()
            if len(jobs) == 1:
                self.error = str(error)
                jobs[0][1].set_exception(error)
                return
            for job in jobs:
                self._commit(connection, [job])
            return
        self.error = ""
        for (_, future), result in zip(jobs, results, strict=True):
            future.set_result(result)

    def _open(self) -> Any:
        """The connection, migrated. A file that can't be opened is set aside, never deleted, and a new one begun."""
        import duckdb

        try:
            return _migrated(_connect(self._path))
        except duckdb.Error as error:
            aside = self._path.with_suffix(".damaged")
            log.error("catalog_damaged", error=str(error), kept_as=str(aside))
            for suffix in ("", ".wal"):
                damaged = self._path.with_name(self._path.name + suffix)
                if damaged.exists():
                    damaged.replace(aside.with_name(aside.name + suffix))
            return _migrated(_connect(self._path))


def _connect(path: Path) -> Any:
    import duckdb

    settings: dict[str, str | bool | int | float | list[str]] = {
        "threads": "1",
        "python_enable_replacements": "false",  # an unknown table would be looked up among Python's variables
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "enable_external_access": "false",
    }
    return duckdb.connect(str(path), config=settings)


def _migrated(connection: Any) -> Any:
    """Apply the numbered files that the database has not seen."""
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY)")
    done = {number for (number,) in connection.execute("SELECT number FROM migrations").fetchall()}
    files = sorted(resources.files("storage").joinpath("migrations").iterdir(), key=lambda file: file.name)
    for file in files:
        number = int(file.name.partition("_")[0])
        if number not in done:
            connection.begin()
            connection.execute(file.read_text("utf-8"))
            connection.execute("INSERT INTO migrations VALUES (?)", [number])
            connection.commit()
    return connection
