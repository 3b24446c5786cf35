"""Moves vector stores to the current embedder, in the background, while their old vectors keep serving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from orchestrator.documents.model import IngestStatus, StoreFile, VectorStore
from orchestrator.documents.ports import Index, Shelf, Shelves
from orchestrator.documents.reading import Reading
from orchestrator.errors import NotFound, OrchestratorError, Unreadable

RETRY_S = 10.0
LOOK_S = 60.0
DOCUMENTS_MAX = 16
"""Documents that one commit of the new index takes."""

log = structlog.get_logger()


class Reembed:
    """Builds a second index for each store whose embedder is not the current one, then lets it take over.

    Level-triggered: what the second index lacks is put in, however often this begins anew.
    """

    def __init__(self, *, shelf: Shelf, shelves: Shelves, reading: Reading, changed: Callable[[str], None]) -> None:
        """`changed` is told each store that has changed its embedder."""
        self._shelf = shelf
        self._shelves = shelves
        self._reading = reading
        self._changed = changed
        self.moving: dict[str, float] = {}
        """The stores on the move, and how far they are, 0 to 1."""

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            wait_s = LOOK_S
            try:
                await self.move_all()
            except OrchestratorError as error:
                log.warning("reembed_waits", error=str(error))
                wait_s = RETRY_S
            await asyncio.sleep(wait_s)

    async def move_all(self) -> None:
        """Move every store that needs it, one after the other."""
        for store in await self._shelf.all_stores():
            if self._reading.embedder and store.embedder != self._reading.embedder:
                try:
                    await self._move(store)
                finally:
                    self.moving.pop(store.id, None)

    async def _move(self, store: VectorStore) -> None:
        target, dimension, skipped = self._reading.embedder, 0, set[int]()
        while True:
            files = [f for f in await self._shelf.all_store_files(store.id) if f.status is IngestStatus.COMPLETED]
            index = await asyncio.to_thread(self._shelves.open, store.id, target, dimension) if dimension else None
            held = index.entries() if index else frozenset()
            lacking = [file for file in files if file.entry not in held and file.entry not in skipped]
            if not lacking:
                break
            self.moving[store.id] = 1 - len(lacking) / len(files)
            dimension = await self._embed(store, lacking[:DOCUMENTS_MAX], dimension, skipped)
        current = await self._shelf.store(store.tenant, store.id)
        if current is None or not files:
            return  # an empty store takes the embedder of its first file
        await self._shelf.put_store(replace(current, embedder=target, dimension=dimension))
        self._changed(store.id)
        await asyncio.to_thread(self._shelves.discard, store.id, keep=target)
        log.info("store_reembedded", store=store.id, files=len(files))

    async def _embed(self, store: VectorStore, files: list[StoreFile], dimension: int, skipped: set[int]) -> int:
        """Put these files into the new index; the dimension of its vectors. What can't be read is `skipped`."""
        documents = []
        for file in files:
            try:
                read = await self._reading.read(file, self._reading.embedder, lambda done: None)
            except (NotFound, Unreadable):
                read = None
            if read is None:
                skipped.add(file.entry)
                continue
            dimension = dimension or read.dimension
            documents.append(read.indexed)
        if documents and dimension:
            index: Index = await asyncio.to_thread(self._shelves.open, store.id, self._reading.embedder, dimension)
            await asyncio.to_thread(index.add, documents)
        elif documents:
            skipped.update(document.entry for document in documents)  # no text in any of them
        return dimension
