"""The DuckDB catalogue: one writer thread, a few readers beside it, numbered migrations.

DuckDB takes one process at a time and blocks, so its connection lives on one thread that works a bounded queue;
what waits together is committed together. Readers have cursors and threads of their own: a long listing and a burst of
writes don't wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import structlog

from orchestrator.errors import OrchestratorError

QUEUE_JOBS_MAX = 10_000
READERS = 2
"""Reads at a time; the others wait, at most `QUEUE_JOBS_MAX` of them."""
GROUP_JOBS_MAX = 200
CLOSE_TIMEOUT_S = 10.0
HEADERS_BYTES = 3 * 4096
"""Before the blocks of DuckDB's file: https://duckdb.org/docs/stable/internals/storage."""
MEMORY = ":memory:"

T = TypeVar("T")
Job = tuple[Callable[[Any], Any], "Future[Any]"]

log = structlog.get_logger()


class CatalogError(OrchestratorError):
    """A job could not be done, or not be queued."""


class Catalog:
    """The database in one file. Opened on its own thread, so making one does not block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.Queue[Job | None] = queue.Queue(QUEUE_JOBS_MAX)
        self._reads: queue.Queue[Job | None] = queue.Queue(QUEUE_JOBS_MAX)
        self._fault = ""
        self._not_kept = ""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="catalog", daemon=True)
        self._thread.start()

    @property
    def error(self) -> str:
        """Why nothing is kept, if so."""
        return self._not_kept or self._fault

    @property
    def kept(self) -> bool:
        """Whether what is written outlives this run. Known once a job was done."""
        return not self._not_kept

    def submit(self, job: Callable[[Any], T]) -> Future[T]:
        """Run `job(connection)` on the writer's thread; done when committed. Does not block.

        Jobs run in order; one may run twice, if another of its group failed. The future fails with
        `CatalogError`, at once when too many wait; or with what of `OrchestratorError` the job itself raised.
        """
        return self._queued(self._jobs, job)

    async def run(self, job: Callable[[Any], T]) -> T:
        """`submit`, and wait for it off the event loop."""
        return await asyncio.wrap_future(self.submit(job))

    async def read(self, job: Callable[[Any], T]) -> T:
        """Run `job(cursor)` beside the writer, in a transaction that can't write, off the event loop.

        It sees what was committed before, so every change that was acknowledged. Fails as `submit` does.
        """
        return await asyncio.wrap_future(self._queued(self._reads, job))

    def close(self) -> None:
        """Finish what was submitted and close the file. Blocks, at most twice `CLOSE_TIMEOUT_S`."""
        self._closed = True
        with contextlib.suppress(queue.Full):
            self._jobs.put(None, timeout=CLOSE_TIMEOUT_S)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _queued(self, jobs: queue.Queue[Job | None], job: Callable[[Any], T]) -> Future[T]:
        future: Future[T] = Future()
        if self._closed:
            future.set_exception(CatalogError("the catalogue is closed"))
            return future
        try:
            jobs.put_nowait((job, future))
        except queue.Full:
            self._fault = f"{QUEUE_JOBS_MAX} jobs wait"
            future.set_exception(CatalogError(self._fault))
        return future

    def _run(self) -> None:
        connection = self._open()
        readers = [
            threading.Thread(target=self._read, args=(connection.cursor(),), name=f"catalog-read-{number}", daemon=True)
            for number in range(READERS)
        ]
        for reader in readers:
            reader.start()
        last = False
        while not last:
            jobs, last = self._next_group()
            self._commit(connection, [job for job in jobs if job[1].set_running_or_notify_cancel()])
        for _ in readers:
            self._reads.put(None)
        for reader in readers:
            reader.join()
        connection.close()

    def _read(self, cursor: Any) -> None:
        while (job := self._reads.get()) is not None:
            if job[1].set_running_or_notify_cancel():
                _answer(cursor, *job)
        cursor.close()

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
        if not jobs:
            return
        try:
            connection.begin()
            results = [job(connection) for job, _ in jobs]
            connection.commit()
        except Exception as error:
            _roll_back(connection)
            if len(jobs) == 1:
                self._fail(jobs[0][1], error)
                return
            for job in jobs:
                self._commit(connection, [job])
            return
        self._fault = ""
        for (_, future), result in zip(jobs, results, strict=True):
            future.set_result(result)

    def _fail(self, future: Future[Any], error: Exception) -> None:
        if not isinstance(error, OrchestratorError):
            self._fault = str(error)
            log.error("catalog_job_failed", error=str(error))
        future.set_exception(_typed(error))

    def _open(self) -> Any:
        """The connection, migrated.

        1. A file that can be read: that.
        2. One that another program holds, or a disk that refuses: a database in memory, forgotten at the end.
        3. A damaged one is set aside, never deleted (the last such is kept), and a new one begun.
        """
        import duckdb

        try:
            return _connect(str(self._path))
        except duckdb.Error as error:
            if _held_elsewhere(self._path):
                return self._forgetful(str(error))
            log.error("catalog_damaged", error=str(error), kept_as=str(_aside(self._path)))
        try:
            _set_aside(self._path)
            return _connect(str(self._path))
        except (duckdb.Error, OSError) as error:
            return self._forgetful(str(error))

    def _forgetful(self, cause: str) -> Any:
        self._not_kept = f"nothing is kept beyond this run: {cause}"
        log.error("catalog_not_kept", error=cause)
        return _connect(MEMORY)


def _connect(path: str) -> Any:
    import duckdb

    settings: dict[str, str | bool | int | float | list[str]] = {
        "threads": "1",
        "python_enable_replacements": "false",  # an unknown table would be looked up among Python's variables
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "enable_external_access": "false",
    }
    connection = duckdb.connect(path, config=settings)
    try:
        _check(connection, path)
        _migrate(connection)
    except duckdb.Error:
        connection.close()  # else a later connection to this path would get the same database again
        raise
    return connection


def _check(connection: Any, path: str) -> None:
    """Raise `duckdb.Error` unless the file is whole: DuckDB opens a truncated one, and finds out when it reads.

    Every row is read, which takes 0.1 s for a million.
    """
    import duckdb

    query = "SELECT used_blocks * block_size FROM pragma_database_size()"  # it cuts off free blocks, but counts them
    blocks_bytes = connection.execute(query).fetchone()[0]
    if path != MEMORY and Path(path).stat().st_size < HEADERS_BYTES + blocks_bytes:
        raise duckdb.IOException("the file is shorter than it says")
    for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall():
        connection.execute(f'SELECT sum(hash(rows)) FROM "{table}" AS rows').fetchall()


def _migrate(connection: Any) -> None:
    """Apply the numbered files that the database has not seen."""
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY)")
    done = {number for (number,) in connection.execute("SELECT number FROM migrations").fetchall()}
    files = (file for file in resources.files("storage").joinpath("migrations").iterdir() if file.name.endswith(".sql"))
    for file in sorted(files, key=lambda file: file.name):
        number = int(file.name.partition("_")[0])
        if number not in done:
            connection.begin()
            connection.execute(file.read_text("utf-8"))
            connection.execute("INSERT INTO migrations VALUES (?)", [number])
            connection.commit()


def _answer(cursor: Any, job: Callable[[Any], T], future: Future[T]) -> None:
    try:
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        result = job(cursor)
        cursor.commit()
    except Exception as error:
        _roll_back(cursor)
        future.set_exception(_typed(error))
    else:
        future.set_result(result)


def _typed(error: Exception) -> OrchestratorError:
    return error if isinstance(error, OrchestratorError) else CatalogError(str(error))


def _roll_back(connection: Any) -> None:
    import duckdb

    with contextlib.suppress(duckdb.Error):  # the failure ended the transaction already
        connection.rollback()


def _held_elsewhere(path: Path) -> bool:
    """Whether another process has the database open: DuckDB takes a POSIX lock on its file."""
    try:
        with path.open("rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _aside(path: Path) -> Path:
    return path.with_suffix(".damaged")


def _set_aside(path: Path) -> None:
    for suffix in ("", ".wal"):
        damaged, aside = path.with_name(path.name + suffix), _aside(path)
        if damaged.exists():
            damaged.replace(aside.with_name(aside.name + suffix))
