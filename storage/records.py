"""The catalogue of documents with a record of each fact beside it: which changes touch which records."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog

from orchestrator.documents.model import (
    FileBatch,
    IngestStatus,
    Part,
    StoredFile,
    StoreFile,
    Upload,
    UploadStatus,
    VectorStore,
)
from orchestrator.documents.ports import ObjectStore
from orchestrator.errors import OrchestratorError
from storage import shelf_files, shelf_stores
from storage.catalog import Catalog
from storage.keyed_locks import KeyedLocks
from storage.rebuild import Rebuilt, rebuild
from storage.record_form import each
from storage.record_keeper import DOUBTS_MAX, RecordKeeper
from storage.shelf import DuckShelf
from storage.shelf_facts import Fact, Name, named

__all__ = ["Rebuilt", "RecordedShelf", "rebuild"]

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger()


def _to_its_end(
    change: Callable[Concatenate[RecordedShelf, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[RecordedShelf, P], Coroutine[Any, Any, R]]:
    """A change that was begun is not cut off when who asked for it goes away."""

    @functools.wraps(change)
    async def whole(self: RecordedShelf, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._under_way(change(self, *args, **kwargs))

    return whole


class RecordedShelf(DuckShelf):
    """A `DuckShelf` whose every acknowledged fact has a record. Its changes raise `errors.ObjectsUnavailable` too."""

    def __init__(self, catalog: Catalog, objects: ObjectStore) -> None:
        super().__init__(catalog)
        self._records = RecordKeeper(objects, self)
        self._locks = KeyedLocks()
        self._changes: set[asyncio.Task[Any]] = set()

    async def mend(self) -> int:
        """Make doubtful records what the catalogue says; how many. To be called at the start and now and then.

        Raises `errors.ObjectsUnavailable`; what is left is for the next time.
        """

        async def mend(name: Name) -> None:
            async with self._locks.hold(name.lock):
                await self._records.mend([name])

        names = await self.doubtful(DOUBTS_MAX)
        await each(mend, names)
        return len(names)

    async def aclose(self) -> None:
        """Wait for the changes under way."""
        if self._changes:
            await asyncio.wait(self._changes)

    # --- files and uploads ---

    @_to_its_end
    async def add_file(self, file: StoredFile) -> None:
        """See `ports.Shelf.add_file`."""
        async with self._locks.hold(file.id), self._records.doubted([named(file)]) as serials:
            await self._records.write([file], serials)
            await super().add_file(file)

    @_to_its_end
    async def remove_file(self, tenant: str, id: str) -> StoredFile | None:
        """See `ports.Shelf.remove_file`."""
        async with self._locks.hold(id):
            file = await self.file(tenant, id)
            if file is None:
                return None
            await self._leave([named(member) for member in await self.memberships(tenant, id)])
            async with self._records.doubted([named(file)]):
                removed = await super().remove_file(tenant, id)
                await self._records.erase([named(file)])
        return removed

    @_to_its_end
    async def put_upload(self, upload: Upload) -> None:
        """See `ports.Shelf.put_upload`."""
        async with self._locks.hold(upload.id), self._records.doubted([named(upload)]) as serials:
            await self._records.write([upload], serials)
            await super().put_upload(upload)

    @_to_its_end
    async def add_part(self, part: Part) -> None:
        """See `DuckShelf.add_part`."""
        tenant = await self._catalog.read(partial(shelf_files.tenant_of, upload=part.upload))
        async with self._locks.hold(part.upload), self._records.doubted([named(part, tenant)]) as serials:
            await self._records.write([part], serials, tenant)
            await super().add_part(part)

    @_to_its_end
    async def complete_upload(self, upload: Upload, file: StoredFile) -> None:
        """See `DuckShelf.complete_upload`."""
        async with self._locks.hold(upload.id, file.id):
            await self._leave_parts(upload)
            async with self._records.doubted([named(file), named(upload)]) as serials:
                await self._records.write([file], serials)  # first, so that a completed upload on record has its file
                await self._records.write([upload], serials[1:])
                await super().complete_upload(upload, file)

    @_to_its_end
    async def end_upload(self, upload: Upload) -> None:
        """See `DuckShelf.end_upload`."""
        async with self._locks.hold(upload.id):
            current = await self.upload(upload.tenant, upload.id)
            if current is None or current.status is not UploadStatus.PENDING:
                return
            await self._leave_parts(upload)
            async with self._records.doubted([named(upload)]) as serials:
                await self._records.write([upload], serials)
                await super().end_upload(upload)

    # --- vector stores ---

    @_to_its_end
    async def add_store(self, store: VectorStore) -> None:
        """See `ports.Shelf.add_store`."""
        async with self._locks.hold(store.id), self._records.doubted([named(store)]) as serials:
            await self._records.write([store], serials)
            await super().add_store(store)

    @_to_its_end
    async def change_store(
        self, tenant: str, id: str, change: Callable[[VectorStore], VectorStore]
    ) -> VectorStore | None:
        """See `ports.Shelf.change_store`."""
        async with self._locks.hold(id):  # under it nobody else changes the store: record and catalogue agree
            store = await self.store(tenant, id)
            known = await self.fact(named(store)) if store else None
            if store is None or known is None:
                return None
            async with self._records.doubted([known.name]):
                await self._records.put([replace(known, value=change(store))])
                return await super().change_store(tenant, id, change)

    @_to_its_end
    async def remove_store(self, tenant: str, id: str) -> VectorStore | None:
        """See `ports.Shelf.remove_store`."""
        async with self._locks.hold(id):
            store = await self.store(tenant, id)
            if store is None:
                return None
            batches = await self._catalog.read(partial(shelf_stores.batches, store=id))
            await self._leave([*map(named, batches), *map(named, await self.all_store_files(id))])
            async with self._records.doubted([named(store)]):
                removed = await super().remove_store(tenant, id)
                await self._records.erase([named(store)])
        return removed

    @_to_its_end
    async def add_store_files(
        self, files: Sequence[StoreFile], batch: FileBatch | None = None
    ) -> tuple[StoreFile, ...]:
        """See `DuckShelf.add_store_files`."""
        files = shelf_stores.once_each(files)
        last = [batch] if batch else []
        locks = {file.store for file in files} | {file.file for file in files} | {batch.id for batch in last}
        names = [*map(named, files), *map(named, last)]
        async with self._locks.hold(*locks), self._records.doubted(names) as serials:
            entries = serials[: len(files)]
            await self._records.write(
                [replace(f, entry=entry) for f, entry in zip(files, entries, strict=True)], entries
            )
            await self._records.write(last, serials[len(files) :])  # last, so that a batch on record has all its files
            return await self._add_store_files(files, batch, entries)

    @_to_its_end
    async def put_store_file(self, file: StoreFile) -> bool:
        """See `DuckShelf.put_store_file`. One that is in progress and stays so has no record: it is a hint."""
        keep = partial(DuckShelf.put_store_file, self, file)
        async with self._locks.hold(file.file):
            fact, known = await self._entry(file)
            if fact is None or known is None or known.status is IngestStatus.CANCELLED:
                return await keep()
            if known.status is file.status is IngestStatus.IN_PROGRESS:
                return await keep()
            return await self._alter(fact, {name: getattr(file, name) for name in shelf_stores.FOUND}, keep)

    @_to_its_end
    async def set_attributes(self, file: StoreFile) -> bool:
        """See `ports.Shelf.set_attributes`."""
        async with self._locks.hold(file.file):
            fact, _ = await self._entry(file)
            if fact is None:
                return False
            keep = partial(DuckShelf.set_attributes, self, file)
            return await self._alter(fact, {"attributes": file.attributes}, keep)

    @_to_its_end
    async def remove_store_file(self, tenant: str, store: str, file: str) -> StoreFile | None:
        """See `ports.Shelf.remove_store_file`."""
        async with self._locks.hold(file):
            known = await self.store_file(tenant, store, file)
            if known is None:
                return None
            async with self._records.doubted([named(known)]):
                removed = await super().remove_store_file(tenant, store, file)
                await self._records.erase([named(known)])
        return removed

    @_to_its_end
    async def cancel_batch(self, batch: FileBatch) -> None:
        """See `ports.Shelf.cancel_batch`."""
        running = partial(shelf_stores.unfinished_of, batch=batch.id)
        locks = {batch.store, batch.id} | {file.file for file, _ in await self._catalog.read(running)}
        async with self._locks.hold(*locks):
            known = await self.fact(named(batch))
            if known is None:
                return
            facts = [replace(known, value=replace(batch, cancelled=True))]
            for file, serial in await self._catalog.read(running):
                facts.append(Fact(named(file), replace(file, status=IngestStatus.CANCELLED), serial))
            async with self._records.doubted([fact.name for fact in facts]):
                await self._records.put(facts)
                await super().cancel_batch(batch)

    async def _entry(self, file: StoreFile) -> tuple[Fact | None, StoreFile | None]:
        """What is known of it; nothing where the store has the file by another entry now, or not at all."""
        fact = await self.fact(named(file))
        if fact is None or not isinstance(fact.value, StoreFile) or fact.value.entry != file.entry:
            return None, None
        return fact, fact.value

    async def _alter(self, fact: Fact, change: Mapping[str, Any], keep: Callable[[], Awaitable[bool]]) -> bool:
        """Change an entry's record, and then by `keep` the entry; whether it was still there."""
        async with self._records.doubted([fact.name]):
            await self._records.put([replace(fact, value=replace(fact.value, **change))])
            kept = await keep()
            if not kept:
                await self._records.mend([fact.name])
        return kept

    async def _leave(self, names: Sequence[Name]) -> None:
        """Leave these to `mend`: they go with what they hang on, and a rebuild leaves out what hangs on nothing."""
        if names:
            await self.doubt(names)

    async def _leave_parts(self, upload: Upload) -> None:
        await self._leave([named(part, upload.tenant) for part in await self.parts(upload.id)])

    async def _under_way(self, change: Coroutine[Any, Any, R]) -> R:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._changes.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, OrchestratorError):
            log.error("catalog_change_bug", exc_info=error)
