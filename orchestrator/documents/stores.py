"""Vector stores: made, changed, filled and removed. The reading of files is `ingest`'s, the searching `search`'s."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from orchestrator.documents.checks import unknown
from orchestrator.documents.ids import is_id, new_id
from orchestrator.documents.model import (
    Attributes,
    FileBatch,
    FileCounts,
    IngestStatus,
    Page,
    StoreFile,
    VectorStore,
)
from orchestrator.documents.ports import Shelf, Shelves
from orchestrator.documents.roster import Roster
from orchestrator.documents.store_fields import NewStore, Wanted
from orchestrator.errors import ApiError, NotFound

ACTIVE_S = 60
"""A use is noted in the catalogue at most this often."""
STORE_FILES_MAX = 10_000
"""OpenAI's limit: https://platform.openai.com/docs/assistants/tools/file-search."""

Summary = tuple[FileCounts, int]
"""A store's files by state, and the bytes that their passages take."""


class Jobs(Protocol):
    """What reads the files; see `ingest.Ingest`."""

    def wake(self) -> None:
        """There may be something to do."""

    def stop(self, entries: Collection[int]) -> None:
        """Let go of the jobs of these entries."""

    def check(self, store: str) -> None:
        """The store's index may hold what the store does not, or be of a store that is gone."""


class Stores:
    """The tenants' vector stores. Every method that names one raises `ApiError` 404 when the tenant has no such."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        shelves: Shelves,
        roster: Roster,
        unix: Callable[[], float],
        jobs: Jobs,
    ) -> None:
        self._shelf = shelf
        self._shelves = shelves
        self._roster = roster
        self._unix = unix
        self._jobs = jobs

    async def create(self, tenant: str, new: NewStore) -> VectorStore:
        """Make a store, and put its files into it."""
        now = int(self._unix())
        store = VectorStore(
            id=new_id("vector_store"),
            tenant=tenant,
            name=new.name,
            description=new.description,
            metadata=new.metadata,
            expires_after_days=new.expires_after_days,
            created_unix=now,
            last_active_unix=now,
        )
        members = await self._members(store, new.files, batch=None)
        await self._shelf.add_store(store)
        if members:
            await self._shelf.add_store_files(members)
            self._jobs.wake()
        return store

    async def get(self, tenant: str, id: str) -> VectorStore:
        """The store."""
        store = await self._shelf.store(tenant, id) if is_id("vector_store", id) else None
        if store is None:
            raise unknown("vector store", id, "vector_store_id")
        return store

    async def live(self, tenant: str, id: str) -> VectorStore:
        """The store, if its time is not over; notes that it was used."""
        store = await self.get(tenant, id)
        now = int(self._unix())
        if expired(store, now):
            raise ApiError(400, f"vector store {id} has expired", code="vector_store_expired", param="vector_store_id")
        if store.expires_after_days is not None and now - store.last_active_unix >= ACTIVE_S:
            return await self.change(tenant, id, lambda store: replace(store, last_active_unix=now))
        return store

    async def listing(self, tenant: str, page: Page) -> tuple[tuple[VectorStore, ...], bool]:
        """A listing, and whether more follow."""
        try:
            return await self._shelf.stores(tenant, page)
        except NotFound:
            raise _unknown_cursor(page) from None

    async def summaries(self, stores: Collection[VectorStore]) -> Mapping[str, Summary]:
        """Each store's, by id."""
        return await self._shelf.counts([store.id for store in stores])

    async def change(self, tenant: str, id: str, change: Callable[[VectorStore], VectorStore]) -> VectorStore:
        """The store as `change` makes it; see `ports.Shelf.change_store`."""
        await self.get(tenant, id)
        changed = await self._shelf.change_store(tenant, id, change)
        if changed is None:
            raise unknown("vector store", id, "vector_store_id")
        return changed

    async def remove(self, tenant: str, id: str) -> None:
        """Forget the store; its files stay."""
        await self.get(tenant, id)
        files = await self._shelf.all_store_files(id)
        if await self._shelf.remove_store(tenant, id) is None:
            raise unknown("vector store", id, "vector_store_id")
        self.left(files)
        self._roster.forget(id)
        await asyncio.to_thread(self._shelves.discard, id)
        self._jobs.check(id)

    # --- its files ---

    async def attach(self, tenant: str, id: str, wanted: Wanted) -> StoreFile:
        """Put a file into the store; it is read in the background."""
        store = await self.live(tenant, id)
        return (await self._add(store, [wanted], None))[0]

    async def attach_batch(self, tenant: str, id: str, wanted: Sequence[Wanted]) -> FileBatch:
        """Put many into it by one call: all or none."""
        store = await self.live(tenant, id)
        batch = FileBatch(id=new_id("vector_store_file_batch"), store=id, tenant=tenant, created_unix=int(self._unix()))
        await self._add(store, wanted, batch)
        return batch

    async def file(self, tenant: str, store: str, file: str) -> StoreFile:
        """One file of the store."""
        await self.get(tenant, store)
        found = await self._shelf.store_file(tenant, store, file) if is_id("file", file) else None
        if found is None:
            raise unknown("file in this vector store", file, "file_id")
        return found

    async def files(
        self, tenant: str, store: str, page: Page, *, status: IngestStatus | None, batch: str | None = None
    ) -> tuple[tuple[StoreFile, ...], bool]:
        """The store's, or its batch's."""
        await self.get(tenant, store)
        if batch is not None:
            await self.batch(tenant, store, batch)
        try:
            return await self._shelf.store_files(tenant, store, page, status=status, batch=batch)
        except NotFound:
            raise _unknown_cursor(page) from None

    async def set_attributes(self, tenant: str, store: str, file: str, attributes: Attributes) -> StoreFile:
        """In force with the next search."""
        changed = replace(await self.file(tenant, store, file), attributes=attributes)
        if not await self._shelf.set_attributes(changed):
            raise unknown("file in this vector store", file, "file_id")
        changed = await self.file(tenant, store, file)  # its state may have moved on meanwhile
        self._roster.alter(changed)
        return changed

    async def detach(self, tenant: str, store: str, file: str) -> None:
        """Take a file out of the store; the file stays."""
        await self.file(tenant, store, file)
        removed = await self._shelf.remove_store_file(tenant, store, file)
        if removed is None:
            raise unknown("file in this vector store", file, "file_id")
        self.left([removed])

    # --- batches ---

    async def batch(self, tenant: str, store: str, id: str) -> FileBatch:
        """One batch of the store."""
        await self.get(tenant, store)
        found = await self._shelf.batch(tenant, store, id) if is_id("vector_store_file_batch", id) else None
        if found is None:
            raise unknown("file batch in this vector store", id, "batch_id")
        return found

    async def batch_counts(self, batch: FileBatch) -> FileCounts:
        """The states of its files."""
        return await self._shelf.batch_counts(batch.id)

    async def cancel_batch(self, tenant: str, store: str, id: str) -> FileBatch:
        """What is not read yet will not be; a batch that is done stays as it is."""
        batch = await self.batch(tenant, store, id)
        if not (await self.batch_counts(batch)).in_progress:
            return batch
        everything = await self._shelf.all_store_files(store)
        running = [f.entry for f in everything if f.batch == id and f.status is IngestStatus.IN_PROGRESS]
        self._jobs.stop(running)
        await self._shelf.cancel_batch(batch)
        self._jobs.wake()
        return replace(batch, cancelled=True)

    # --- in the background ---

    async def expire(self) -> None:
        """Empty the stores whose time is over. Level-triggered: called now and then."""
        now = int(self._unix())
        for store in await self._shelf.all_stores():
            if expired(store, now) and (await self._shelf.counts([store.id]))[store.id][0].total:
                await self._empty(store)
                self._roster.forget(store.id)
                await asyncio.to_thread(self._shelves.discard, store.id)

    async def _empty(self, store: VectorStore) -> None:
        for file in await self._shelf.all_store_files(store.id):
            removed = await self._shelf.remove_store_file(store.tenant, store.id, file.file)
            if removed is not None:
                self.left([removed])

    def left(self, files: Collection[StoreFile]) -> None:
        """They are in their stores no more: stop what reads them, and let searches pass them over."""
        self._jobs.stop([file.entry for file in files])
        for file in files:
            self._roster.drop(file)
            self._jobs.check(file.store)

    async def _add(
        self, store: VectorStore, wanted: Sequence[Wanted], batch: FileBatch | None
    ) -> tuple[StoreFile, ...]:
        members = await self._members(store, wanted, batch=batch)
        counts = (await self._shelf.counts([store.id])).get(store.id, (FileCounts(), 0))[0]
        if counts.total + len(members) > STORE_FILES_MAX:
            raise ApiError(400, f"a vector store holds at most {STORE_FILES_MAX} files", code="vector_store_full")
        replaced = await self._shelf.members(store.tenant, store.id, [member.file for member in members])
        added = await self._shelf.add_store_files(members, batch)
        self.left(replaced.values())
        self._jobs.wake()
        return added

    async def _members(
        self, store: VectorStore, wanted: Sequence[Wanted], *, batch: FileBatch | None
    ) -> list[StoreFile]:
        """Raises `ApiError` 404 when the tenant lacks one of the files."""
        files = await self._shelf.files_of(store.tenant, [one.file for one in wanted if is_id("file", one.file)])
        for one in wanted:
            if one.file not in files:
                raise unknown("File object", one.file, "file_id", code="file_not_found")
        return [
            StoreFile(
                store=store.id,
                file=one.file,
                tenant=store.tenant,
                filename=files[one.file].filename,
                entry=0,
                status=IngestStatus.IN_PROGRESS,
                created_unix=int(self._unix()),
                attributes=one.attributes,
                chunking=one.chunking,
                batch=batch.id if batch else None,
            )
            for one in wanted
        ]


def expired(store: VectorStore, now_unix: int) -> bool:
    """Whether its time is over."""
    return store.expires_unix is not None and now_unix >= store.expires_unix


def _unknown_cursor(page: Page) -> ApiError:
    param = "after" if page.after else "before"
    return ApiError(400, f"{param} is no item of this listing", code="invalid_value", param=param)
