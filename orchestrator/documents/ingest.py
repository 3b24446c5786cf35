"""Reads what was put into vector stores: text, passages, vectors, index. A level-triggered loop.

What is to be done follows from the catalogue and the indexes alone, so a restart, at whatever point, goes on where the
last run ended:

1. A file in progress is read, indexed, and then marked completed; or failed, with the reason.
2. A completed file that its store's index lacks (lost, damaged, or of another embedder) is indexed again.
3. What an index holds and its store does not is taken out.

Passages and vectors are kept in the object store by the digest of what they were made from, so the same content is
read and embedded once, and an index is rebuilt without its embedder.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial

import structlog

from orchestrator.crash import crash_point
from orchestrator.documents.gates import Gates
from orchestrator.documents.grouping import Grouped
from orchestrator.documents.keys import DERIVED
from orchestrator.documents.model import IngestStatus, LastError, StoreFile, VectorStore
from orchestrator.documents.ports import Index, Indexed, Shelf, Shelves
from orchestrator.documents.reading import Read, Reading
from orchestrator.documents.roster import Roster
from orchestrator.documents.threads import finished
from orchestrator.errors import (
    EmbedderFailed,
    EmbedderUnavailable,
    MachineRefused,
    NotFound,
    ObjectsUnavailable,
    OrchestratorError,
    Unreadable,
)

INDEX_ROUND_MAX = 64
"""Documents that one commit of an index takes."""
RETRY_S_MIN = 1.0
RETRY_S_MAX = 60.0
PASS_S_MIN = 0.05
PASS_S_MAX = 30.0
"""The loop looks again after this long, whether anything was told or not."""

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far the loop is with all it has to do."""

    running: int = 0
    waiting: int = 0
    cause: str = ""
    """Why what waits does not go on, if something is in its way."""


@dataclass(slots=True)
class _Later:
    """A job that something outside stopped."""

    tries: int
    again_at: float


class Ingest:
    """The loop and its jobs. One for the service; it is the only one that changes an index."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        shelves: Shelves,
        roster: Roster,
        reading: Reading,
        gates: Gates,
        monotonic: Callable[[], float],
        jobs_max: int,
    ) -> None:
        """A store's gate is passed to complete a file: while it is closed, none is."""
        self._shelf = shelf
        self._shelves = shelves
        self._roster = roster
        self._reading = reading
        self._gates = gates
        self._now = monotonic
        self._jobs_max = jobs_max
        self._wakeup = asyncio.Event()
        self._jobs: dict[int, asyncio.Task[None]] = {}
        self._later: dict[int, _Later] = {}
        self._adding: dict[tuple[str, str], Grouped[Indexed, None]] = {}
        self._changing: dict[str, asyncio.Lock] = {}
        self._unchecked: set[str] | None = None
        """Stores whose index may differ from the catalogue; None: all."""
        self._lacking: dict[int, StoreFile] = {}
        """Completed files that their stores' indexes lack."""
        self._fractions: dict[int, float] = {}
        self.progress = Progress()

    def wake(self) -> None:
        """There may be something to do."""
        self._wakeup.set()

    def stop(self, entries: Collection[int]) -> None:
        """Let go of the jobs of these entries, and see to their stores' indexes."""
        for entry in entries:
            self._forget(entry)
            if (job := self._jobs.get(entry)) is not None:
                job.cancel()

    def check(self, store: str) -> None:
        """The store's index may hold what the store does not, or lack what it does."""
        if self._unchecked is not None:
            self._unchecked.add(store)
        self._wakeup.set()

    def lacking(self, store: str) -> None:
        """A search found that the store's index lacks files."""
        if all(file.store != store for file in self._lacking.values()):  # else they are on their way
            self.check(store)

    def fraction(self, entry: int) -> float | None:
        """How far a file's job is, 0 to 1; None when none runs."""
        return self._fractions.get(entry)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                self._wakeup.clear()
                try:
                    wait_s = await self._pass()
                except OrchestratorError as error:  # the catalogue or the disk: everything waits for it
                    self.progress = replace(self.progress, cause=str(error))
                    wait_s = RETRY_S_MIN
                try:
                    async with asyncio.timeout(wait_s):
                        await self._wakeup.wait()
                except TimeoutError:
                    pass
        finally:
            for job in self._jobs.values():
                job.cancel()
            await asyncio.gather(*self._jobs.values(), return_exceptions=True)

    async def settle(self) -> None:
        """Return once nothing is left that could be done now. For tests and the command line."""
        while True:
            await self._pass()
            if not self._jobs:
                return
            await asyncio.wait(self._jobs.values())

    async def _pass(self) -> float:
        """Start what there is room for; how long until something is worth another look."""
        todo = await self._shelf.unfinished(self._jobs_max + len(self._jobs) + len(self._later))
        cause = await self._check()
        now = self._now()
        waiting = [file for file in (*todo, *self._lacking.values()) if file.entry not in self._jobs]
        for file in waiting:
            if len(self._jobs) >= self._jobs_max:
                break
            later = self._later.get(file.entry)
            if later is None or later.again_at <= now:
                self._start(file)
        left = {file.entry for file in waiting if file.entry not in self._jobs}
        self._later = {entry: later for entry, later in self._later.items() if entry in left or entry in self._jobs}
        if self._later:
            cause = cause or self.progress.cause
        self.progress = Progress(running=len(self._jobs), waiting=len(left), cause=cause)
        next_at = min((later.again_at for entry, later in self._later.items() if entry in left), default=math.inf)
        return min(max(next_at - now, PASS_S_MIN), RETRY_S_MIN if self._unchecked else PASS_S_MAX)

    def _start(self, file: StoreFile) -> None:
        job = asyncio.create_task(self._job(file), name=f"ingest-{file.entry}")
        self._jobs[file.entry] = job

        def ended(job: asyncio.Task[None]) -> None:
            del self._jobs[file.entry]
            self._fractions.pop(file.entry, None)
            self._wakeup.set()

        job.add_done_callback(ended)

    async def _job(self, file: StoreFile) -> None:
        """One file, to its end; whatever comes of it is seen in the catalogue or in `_later`."""
        try:
            async with self._gates.passing(DERIVED):  # what it finds there is not cleared away before it is named
                await self._ingest(file)
            self._forget(file.entry)
        except (ObjectsUnavailable, EmbedderUnavailable) as error:
            self._postpone(file, error)
        except Unreadable as error:
            await self._fail(file, LastError(code=error.code, message=str(error)))
        except EmbedderFailed as error:
            await self._fail(file, LastError(code="server_error", message=str(error)))
        except NotFound:
            await self._fail(file, LastError(code="server_error", message="the file's content is not there any more"))
        except OrchestratorError as error:
            self._postpone(file, error)
        except OSError as error:
            self._postpone(file, MachineRefused(f"the machine refuses: {error.strerror or type(error).__name__}"))
        except Exception as error:
            log.error("ingest_bug", entry=file.entry, kind=type(error).__name__, exc_info=error)
            await self._fail(file, LastError(code="server_error", message="the orchestrator failed; see its log"))

    async def _ingest(self, file: StoreFile) -> None:
        while (store := await self._shelf.store(file.tenant, file.store)) is not None:
            embedder = await self._embedder(store, file)
            read = await self._reading.read(file, embedder, lambda done: self._fractions.__setitem__(file.entry, done))
            if read is None:
                return  # the file itself is gone, and its membership with it
            home = await self._home(file, read)
            if home is None:
                continue
            await self._add(home, read.indexed)
            async with self._gates.passing(home.id):
                if await self._still(home):
                    await self._complete(file, read)
                    return

    async def _complete(self, file: StoreFile, read: Read) -> None:
        done = replace(
            file,
            status=IngestStatus.COMPLETED,
            last_error=None,
            usage_bytes=read.bytes,
            chunks=len(read.indexed.chunks),
            passages=read.digest,
        )
        crash_point("ingest.before_completed")
        await self._roster.admit(done)  # first: who sees it completed finds it
        try:
            kept = await self._shelf.put_store_file(done)
        except BaseException:
            self._roster.forget(done.store)  # it is completed, or not
            raise
        if not kept:
            self._roster.drop(done)
            self.check(done.store)
        elif not self._roster.has(done):  # it was read meanwhile
            await self._roster.admit(done)

    async def _embedder(self, store: VectorStore, file: StoreFile) -> str:
        """Whose vectors the file gets:

        1. a store that has an embedder: that one's; while it moves to another, those that were kept;
        2. a store without, since it has no files yet: the current one's, if that is ready;
        3. one whose files were read without: none; `reembed` sees to them all.
        """
        if store.embedder:
            return store.embedder
        if await self._alone(file) and await self._reading.ready():
            return self._reading.embedder
        return ""

    async def _alone(self, file: StoreFile) -> bool:
        return not (await self._roster.of(file.store)).keys() - {file.entry}

    async def _home(self, file: StoreFile, read: Read) -> VectorStore | None:
        """The store as it takes what was read; None when it must be read for another embedder, as the store has
        changed meanwhile. The first file that has vectors decides whose the store's are."""
        store = await self._shelf.store(file.tenant, file.store)
        if store is None or (store.embedder != read.embedder and (store.embedder or not await self._alone(file))):
            return None
        if not store.embedder and read.dimension:
            store = await self._shelf.change_store(
                file.tenant,
                file.store,
                lambda s: s if s.embedder else replace(s, embedder=read.embedder, dimension=read.dimension),
            )
            if store is None or store.embedder != read.embedder:
                return None
        if read.dimension not in (0, store.dimension):
            known = f"{store.embedder} now gives {read.dimension} numbers a vector, and gave {store.dimension}"
            raise EmbedderFailed(f"{known}: a model of other vectors needs another name")
        return store

    async def _still(self, store: VectorStore) -> bool:
        """Whether the store's vectors are still those of the same embedder."""
        current = await self._shelf.store(store.tenant, store.id)
        return current is None or current.embedder == store.embedder

    # --- indexes ---

    async def _add(self, store: VectorStore, document: Indexed) -> None:
        """Durable and searchable on return; what comes at the same time shares a commit."""
        await self._adder(store)([document])

    def _adder(self, store: VectorStore) -> Grouped[Indexed, None]:
        key = (store.id, store.embedder)
        if key not in self._adding:

            async def add(documents: Iterable[Indexed]) -> list[None]:
                given = list(documents)
                async with self._lock(store.id):
                    index = await asyncio.to_thread(self._open, store)
                    await finished(partial(index.add, given))
                return [None] * len(given)

            self._adding[key] = Grouped(add, round_max=INDEX_ROUND_MAX)
        return self._adding[key]

    def _open(self, store: VectorStore) -> Index:
        return self._shelves.open(store.id, store.embedder, store.dimension)

    def _lock(self, store: str) -> asyncio.Lock:
        return self._changing.setdefault(store, asyncio.Lock())

    async def _check(self) -> str:
        """Compare the indexes of the stores that are not checked; why not, where that failed."""
        if self._unchecked is not None and not self._unchecked:
            return ""
        stores = await self._shelf.all_stores()
        known = {store.id for store in stores}
        self._changing = {store: lock for store, lock in self._changing.items() if store in known or lock.locked()}
        self._adding = {(store, name): adding for (store, name), adding in self._adding.items() if store in known}
        for gone in (self._unchecked or frozenset[str]()) - known:  # it may have been opened while it was removed
            await asyncio.to_thread(self._shelves.discard, gone)
        self._unchecked = known if self._unchecked is None else self._unchecked & known
        cause = ""
        for store in stores:
            if store.id not in self._unchecked:
                continue
            self._unchecked.discard(store.id)  # first: what changes from now on is for the next pass
            try:
                await self._compare(store)
            except OrchestratorError as error:
                self._unchecked.add(store.id)
                cause = str(error)
        return cause

    async def _compare(self, store: VectorStore) -> None:
        """Take out of the store's index what it should not hold, and note the completed files that it lacks."""
        files = await self._shelf.all_store_files(store.id)
        mine = {file.entry for file in files}
        async with self._lock(store.id):
            index = await asyncio.to_thread(self._open, store)
            held = index.entries()
            if stray := held - mine:
                await finished(partial(index.remove, stray))
        if stray & self._jobs.keys():  # a job that was told to stop may still put it in
            self.check(store.id)
        self._lacking = {entry: file for entry, file in self._lacking.items() if file.store != store.id}
        completed = (file for file in files if file.status is IngestStatus.COMPLETED)
        self._lacking |= {file.entry: file for file in completed if file.entry not in held}

    # --- failures ---

    def _postpone(self, file: StoreFile, error: OrchestratorError) -> None:
        tries = self._later[file.entry].tries + 1 if file.entry in self._later else 1
        wait_s = min(RETRY_S_MIN * 2 ** (tries - 1), RETRY_S_MAX)
        if isinstance(error, EmbedderUnavailable):
            wait_s = min(max(error.retry_after_s, RETRY_S_MIN), RETRY_S_MAX)
        self._later[file.entry] = _Later(tries=tries, again_at=self._now() + wait_s)
        self.progress = replace(self.progress, cause=str(error))

    async def _fail(self, file: StoreFile, error: LastError) -> None:
        log.info("ingest_failed", entry=file.entry, code=error.code)
        failed = replace(file, status=IngestStatus.FAILED, last_error=error)
        try:
            await self._shelf.put_store_file(failed)
        except OrchestratorError as cause:
            self._postpone(file, cause)
            return
        self._forget(file.entry)
        self._roster.drop(failed)

    def _forget(self, entry: int) -> None:
        """Nothing is left to be done for it."""
        self._later.pop(entry, None)
        self._lacking.pop(entry, None)
