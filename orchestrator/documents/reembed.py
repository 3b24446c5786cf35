"""Moves vector stores to the current embedder, in the background, while their old vectors keep serving."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from orchestrator.documents.gates import Gates
from orchestrator.documents.keys import DERIVED
from orchestrator.documents.model import FileCounts, IngestStatus, StoreFile, VectorStore
from orchestrator.documents.ports import Index, Shelf, Shelves
from orchestrator.documents.reading import Read, Reading
from orchestrator.errors import EmbedderFailed, EmbedderUnavailable, NotFound, OrchestratorError, Unreadable

LOOK_S = 5.0
RETRY_S_MAX = 60.0
DOCUMENTS_MAX = 16
"""Documents that one commit of the new index takes."""
SEARCH_S_MAX = 120.0
"""No search that began with the old index lasts so long: then it goes."""

log = structlog.get_logger()


class Reembed:
    """Builds a second index for each store whose embedder is not the current one, then lets it take over.

    Level-triggered: what the second index lacks is put in, however often this begins anew.
    """

    def __init__(
        self,
        *,
        shelf: Shelf,
        shelves: Shelves,
        reading: Reading,
        gates: Gates,
        monotonic: Callable[[], float],
        changed: Callable[[str], None],
    ) -> None:
        """A store's gate is closed while its new index takes over, so that no file is completed for the old one
        meanwhile; `changed` is told each such store."""
        self._shelf = shelf
        self._shelves = shelves
        self._reading = reading
        self._gates = gates
        self._now = monotonic
        self._changed = changed
        self._old: dict[str, float] | None = None
        """The stores that may have an old index, and since when; None: not known yet."""
        self.moving: dict[str, float] = {}
        """The stores on the move, and how far they are, 0 to 1."""
        self.cause = ""
        """Why they don't get further, if something is in the way."""

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            wait_s, cause = LOOK_S, ""
            try:
                await self.move_all()
            except OrchestratorError as error:
                wait_s, cause = RETRY_S_MAX, str(error)
                if isinstance(error, EmbedderUnavailable):
                    wait_s = min(max(error.retry_after_s, LOOK_S), RETRY_S_MAX)
            if cause and cause != self.cause:
                log.warning("reembed_waits", cause=cause)
            self.cause = cause
            await asyncio.sleep(wait_s)

    async def move_all(self) -> None:
        """Move every store that needs it, one after the other; clear away the old indexes of those that don't.

        Raises, at the end, what stopped the last one that was stopped.
        """
        stores = await self._shelf.all_stores()
        counts = await self._shelf.counts([store.id for store in stores])
        needy = [store for store in stores if self._needs(store, counts[store.id][0])]
        await self._clear({store.id: store for store in stores if store not in needy})
        failure: OrchestratorError | None = None
        for store in needy:
            try:
                await self._move(store)
            except OrchestratorError as error:
                failure = error
            finally:
                self.moving.pop(store.id, None)
        if failure is not None:
            raise failure

    def _needs(self, store: VectorStore, files: FileCounts) -> bool:
        wanted = self._reading.embedder
        return bool(wanted) and store.embedder != wanted and bool(store.embedder or files.completed)

    async def _move(self, store: VectorStore) -> None:
        dimension, skipped = 0, set[int]()
        while True:
            files, lacking = await self._lacking(store, dimension, skipped)
            if not lacking:
                async with self._gates.closed(store.id):
                    files, lacking = await self._lacking(store, dimension, skipped)
                    if not lacking:
                        await self._take_over(store, dimension, len(files))
                        return
            self.moving[store.id] = 1 - len(lacking) / len(files)
            await self._reading.prepare()
            async with self._gates.passing(DERIVED):
                before, dimension = dimension, await self._put_in(store, lacking[:DOCUMENTS_MAX], dimension, skipped)
            if not before and dimension:
                skipped.clear()  # what has no vectors goes in, too, now that their dimension is known

    async def _lacking(
        self, store: VectorStore, dimension: int, skipped: set[int]
    ) -> tuple[Sequence[StoreFile], Sequence[StoreFile]]:
        """The store's completed files, and those that its new index lacks."""
        files = [f for f in await self._shelf.all_store_files(store.id) if f.status is IngestStatus.COMPLETED]
        held = frozenset[int]()
        if dimension:
            held = (await self._index(store, dimension)).entries()
        return files, [file for file in files if file.entry not in held and file.entry not in skipped]

    async def _take_over(self, store: VectorStore, dimension: int, files: int) -> None:
        """Searches use the new index from now on. A store without files has no embedder, until its first one has."""
        current = await self._shelf.store(store.tenant, store.id)
        embedder = self._reading.embedder if dimension else ""
        if current is None or current.embedder == embedder:
            return
        if files and not dimension:
            raise EmbedderFailed(f"{self._reading.embedder} made no vectors of any file of {store.id}")
        await self._shelf.change_store(
            store.tenant, store.id, lambda store: replace(store, embedder=embedder, dimension=dimension)
        )
        if self._old is not None:
            self._old[store.id] = self._now()
        self._changed(store.id)
        log.info("store_reembedded", store=store.id, files=files)

    async def _put_in(self, store: VectorStore, files: Sequence[StoreFile], dimension: int, skipped: set[int]) -> int:
        """Put these files into the new index; the dimension of its vectors. What can't be read is `skipped`."""
        found = await self._read_all(files)
        dimension = dimension or max(read.dimension if read else 0 for read in found)
        documents = [read.indexed for read in found if read] if dimension else []
        skipped |= {file.entry for file in files} - {document.entry for document in documents}
        if documents:
            index = await self._index(store, dimension)
            await asyncio.to_thread(index.add, documents)
            for file, read in zip(files, found, strict=True):
                if read is not None:
                    await self._note(file, read)
        return dimension

    async def _read_all(self, files: Sequence[StoreFile]) -> Sequence[Read | None]:
        try:
            async with asyncio.TaskGroup() as group:
                jobs = [group.create_task(self._read(file)) for file in files]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [job.result() for job in jobs]

    async def _read(self, file: StoreFile) -> Read | None:
        """The file as the current embedder wants it, else as it is; None when it can't be read at all."""
        for anew in (True, False):
            try:
                return await self._reading.read(file, self._reading.embedder, lambda done: None, anew=anew)
            except (NotFound, Unreadable):
                continue
        return None

    async def _note(self, file: StoreFile, read: Read) -> None:
        changed = replace(
            file, usage_bytes=read.bytes, chunks=len(read.indexed.chunks), passages=read.digest, last_error=None
        )
        if changed != file:
            await self._shelf.put_store_file(changed)

    async def _index(self, store: VectorStore, dimension: int) -> Index:
        return await asyncio.to_thread(self._shelves.open, store.id, self._reading.embedder, dimension)

    async def _clear(self, settled: Mapping[str, VectorStore]) -> None:
        """Remove the indexes of these stores that no search can be in any more."""
        if self._old is None:  # no search is older than this process
            self._old = dict.fromkeys(settled, -math.inf)
        for id, since in list(self._old.items()):
            if self._now() - since >= SEARCH_S_MAX:
                del self._old[id]
                if id in settled:
                    await asyncio.to_thread(self._shelves.discard, id, keep=settled[id].embedder)
