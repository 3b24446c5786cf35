"""`orchestrator.documents.ports.Shelf` in DuckDB."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from functools import partial

from orchestrator.documents.model import (
    FileBatch,
    FileCounts,
    IngestStatus,
    Page,
    Part,
    StoredFile,
    StoreFile,
    Upload,
    VectorStore,
)
from orchestrator.errors import NotFound
from storage import shelf_facts, shelf_files, shelf_garbage, shelf_stores
from storage.catalog import Catalog
from storage.shelf_facts import Fact, Name


class DuckShelf:
    """The catalogue of documents. Durable when a method returns; reads don't wait for writes."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    # --- files ---

    async def add_file(self, file: StoredFile) -> None:
        """See `ports.Shelf.add_file`."""
        await self._catalog.run(partial(shelf_files.add_file, file=file))

    async def file(self, tenant: str, id: str) -> StoredFile | None:
        """See `ports.Shelf.file`."""
        return await self._catalog.read(partial(shelf_files.find_file, tenant=tenant, id=id))

    async def files_of(self, tenant: str, ids: Collection[str]) -> Mapping[str, StoredFile]:
        """See `ports.Shelf.files_of`."""
        return await self._catalog.read(partial(shelf_files.find_files, tenant=tenant, ids=ids))

    async def files(
        self, tenant: str, page: Page, *, purpose: str | None = None
    ) -> tuple[tuple[StoredFile, ...], bool]:
        """See `ports.Shelf.files`."""
        return await self._catalog.read(partial(shelf_files.list_files, tenant=tenant, page=page, purpose=purpose))

    async def remove_file(self, tenant: str, id: str) -> StoredFile | None:
        """See `ports.Shelf.remove_file`."""
        return await self._catalog.run(partial(shelf_files.remove_file, tenant=tenant, id=id))

    async def expired_files(self, now_unix: int, limit: int) -> tuple[StoredFile, ...]:
        """See `ports.Shelf.expired_files`. The longest over first."""
        return await self._catalog.read(partial(shelf_files.expired_files, now_unix=now_unix, limit=limit))

    async def used_bytes(self, tenant: str) -> int:
        """See `ports.Shelf.used_bytes`."""
        return await self._catalog.read(partial(shelf_files.used_bytes, tenant=tenant))

    # --- uploads ---

    async def put_upload(self, upload: Upload) -> None:
        """See `ports.Shelf.put_upload`."""
        await self._catalog.run(partial(shelf_files.put_upload, upload=upload))

    async def upload(self, tenant: str, id: str) -> Upload | None:
        """See `ports.Shelf.upload`."""
        return await self._catalog.read(partial(shelf_files.find_upload, tenant=tenant, id=id))

    async def add_part(self, part: Part) -> None:
        """See `ports.Shelf.add_part`. Raises `errors.NotFound` when the upload is not pending any more; the part's
        content is garbage then."""
        if not await self._catalog.run(partial(shelf_files.add_part, part=part)):
            raise NotFound(f"upload {part.upload} is not pending")

    async def parts(self, upload: str) -> tuple[Part, ...]:
        """See `ports.Shelf.parts`. None are left once the upload has ended."""
        return await self._catalog.read(partial(shelf_files.parts, upload=upload))

    async def complete_upload(self, upload: Upload, file: StoredFile) -> None:
        """See `ports.Shelf.complete_upload`. Idempotent by the file's id. Raises `errors.NotFound` when the upload
        has ended otherwise; the file's content is garbage then."""
        if not await self._catalog.run(partial(shelf_files.complete_upload, upload=upload, file=file)):
            raise NotFound(f"upload {upload.id} is not pending")

    async def end_upload(self, upload: Upload) -> None:
        """See `ports.Shelf.end_upload`. Nothing, if it has ended before."""
        await self._catalog.run(partial(shelf_files.end_upload, upload=upload))

    async def expired_uploads(self, now_unix: int, limit: int) -> tuple[Upload, ...]:
        """See `ports.Shelf.expired_uploads`. The longest over first."""
        return await self._catalog.read(partial(shelf_files.expired_uploads, now_unix=now_unix, limit=limit))

    # --- what is to be cleared away ---

    async def garbage(self, limit: int, *, but: str = "") -> tuple[str, ...]:
        """See `ports.Shelf.garbage`. There need not be an object for each key."""
        return await self._catalog.read(partial(shelf_garbage.oldest, limit=limit, but=but))

    async def cleared(self, keys: Sequence[str]) -> None:
        """See `ports.Shelf.cleared`."""
        await self._catalog.run(partial(shelf_garbage.forget, keys=keys))

    # --- vector stores ---

    async def add_store(self, store: VectorStore) -> None:
        """See `ports.Shelf.add_store`."""
        await self._catalog.run(partial(shelf_stores.add_store, store=store))

    async def change_store(
        self, tenant: str, id: str, change: Callable[[VectorStore], VectorStore]
    ) -> VectorStore | None:
        """See `ports.Shelf.change_store`."""
        return await self._catalog.run(partial(shelf_stores.change_store, tenant=tenant, id=id, change=change))

    async def store(self, tenant: str, id: str) -> VectorStore | None:
        """See `ports.Shelf.store`."""
        return await self._catalog.read(partial(shelf_stores.find_store, tenant=tenant, id=id))

    async def stores(self, tenant: str, page: Page) -> tuple[tuple[VectorStore, ...], bool]:
        """See `ports.Shelf.stores`."""
        return await self._catalog.read(partial(shelf_stores.list_stores, tenant=tenant, page=page))

    async def all_stores(self) -> tuple[VectorStore, ...]:
        """See `ports.Shelf.all_stores`."""
        return await self._catalog.read(shelf_stores.all_stores)

    async def remove_store(self, tenant: str, id: str) -> VectorStore | None:
        """See `ports.Shelf.remove_store`."""
        return await self._catalog.run(partial(shelf_stores.remove_store, tenant=tenant, id=id))

    async def counts(self, stores: Collection[str]) -> Mapping[str, tuple[FileCounts, int]]:
        """See `ports.Shelf.counts`."""
        return await self._catalog.read(partial(shelf_stores.counts, stores=stores))

    # --- files of a store ---

    async def add_store_files(
        self, files: Sequence[StoreFile], batch: FileBatch | None = None
    ) -> tuple[StoreFile, ...]:
        """See `ports.Shelf.add_store_files`. Of the same file twice, the last. Raises `errors.NotFound`, and keeps
        nothing, when the store or one of the files is gone."""
        return await self._add_store_files(files, batch, None)

    async def _add_store_files(
        self, files: Sequence[StoreFile], batch: FileBatch | None, entries: Sequence[int] | None
    ) -> tuple[StoreFile, ...]:
        job = partial(shelf_stores.add_store_files, files=files, batch=batch, entries=entries)
        added = await self._catalog.run(job)
        if added is None:
            raise NotFound("the vector store, or one of the files, is gone")
        return added

    async def store_file(self, tenant: str, store: str, file: str) -> StoreFile | None:
        """See `ports.Shelf.store_file`."""
        job = partial(shelf_stores.find_store_file, tenant=tenant, store=store, file=file)
        return await self._catalog.read(job)

    async def members(self, tenant: str, store: str, files: Collection[str]) -> Mapping[str, StoreFile]:
        """See `ports.Shelf.members`."""
        job = partial(shelf_stores.find_members, tenant=tenant, store=store, files=files)
        return await self._catalog.read(job)

    async def store_files(
        self,
        tenant: str,
        store: str,
        page: Page,
        *,
        status: IngestStatus | None = None,
        batch: str | None = None,
    ) -> tuple[tuple[StoreFile, ...], bool]:
        """See `ports.Shelf.store_files`. A cursor whose file has another status by now is still in the listing."""
        job = partial(shelf_stores.list_store_files, tenant=tenant, store=store, page=page, status=status, batch=batch)
        return await self._catalog.read(job)

    async def all_store_files(self, store: str) -> tuple[StoreFile, ...]:
        """See `ports.Shelf.all_store_files`."""
        return await self._catalog.read(partial(shelf_stores.all_store_files, store=store))

    async def put_store_file(self, file: StoreFile) -> bool:
        """See `ports.Shelf.put_store_file`. If not kept, the passages it names are garbage unless another names
        them."""
        return await self._catalog.run(partial(shelf_stores.put_store_file, file=file))

    async def set_attributes(self, file: StoreFile) -> bool:
        """See `ports.Shelf.set_attributes`."""
        return await self._catalog.run(partial(shelf_stores.set_attributes, file=file))

    async def remove_store_file(self, tenant: str, store: str, file: str) -> StoreFile | None:
        """See `ports.Shelf.remove_store_file`."""
        job = partial(shelf_stores.remove_store_file, tenant=tenant, store=store, file=file)
        return await self._catalog.run(job)

    async def memberships(self, tenant: str, file: str) -> tuple[StoreFile, ...]:
        """See `ports.Shelf.memberships`."""
        return await self._catalog.read(partial(shelf_files.memberships, tenant=tenant, file=file))

    async def unfinished(self, limit: int) -> tuple[StoreFile, ...]:
        """See `ports.Shelf.unfinished`."""
        return await self._catalog.read(partial(shelf_stores.unfinished, limit=limit))

    async def batch(self, tenant: str, store: str, id: str) -> FileBatch | None:
        """See `ports.Shelf.batch`."""
        return await self._catalog.read(partial(shelf_stores.find_batch, tenant=tenant, store=store, id=id))

    async def batch_counts(self, batch: str) -> FileCounts:
        """See `ports.Shelf.batch_counts`."""
        return await self._catalog.read(partial(shelf_stores.batch_counts, batch=batch))

    async def cancel_batch(self, batch: FileBatch) -> None:
        """See `ports.Shelf.cancel_batch`."""
        await self._catalog.run(partial(shelf_stores.cancel_batch, batch=batch))

    # --- the records beside it, see `storage.record_keeper` ---

    async def fresh(self) -> bool:
        """Whether this catalogue was begun anew, and `refill` not called since: there may be records for it."""
        return await self._catalog.read(shelf_facts.fresh)

    async def refill(self, facts: Sequence[Fact], above: int) -> None:
        """Hold these facts and nothing else, with entries and serials above `above`. All or nothing; takes seconds."""
        await self._catalog.run(partial(shelf_facts.refill, facts=facts, above=above))

    async def turn(self) -> int:
        """The last that `put_turn` kept, 0 at first."""
        return await self._catalog.read(shelf_facts.turn)

    async def put_turn(self, turn: int) -> None:
        """Keep the turn of our mark in the object store; see `documents.ownership`."""
        await self._catalog.run(partial(shelf_facts.put_turn, turn=turn))

    async def fact(self, name: Name) -> Fact | None:
        """What the catalogue says of it."""
        return await self._catalog.read(partial(shelf_facts.find, name=name))

    async def doubt(self, names: Sequence[Name]) -> Sequence[int]:
        """Note, durably, that their records may differ from the catalogue until `sure`. A fresh serial for each."""
        return await self._catalog.run(partial(shelf_facts.doubt, names=names))

    def sure(self, names: Sequence[Name]) -> Future[None]:
        """Their records are as the catalogue has them. Done when that is kept; does not block."""
        return self._catalog.submit(partial(shelf_facts.sure, names=names))

    async def doubtful(self, limit: int) -> tuple[Name, ...]:
        """Those noted by `doubt` and not cleared by `sure`."""
        return await self._catalog.read(partial(shelf_facts.doubtful, limit=limit))
