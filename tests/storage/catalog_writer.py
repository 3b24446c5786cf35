"""Random changes of a recorded shelf, told line by line: run as a program it is there to be killed.

A line before each change names the facts that it touches, one after it tells all facts of its tenant as they are now.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from orchestrator.documents.ids import new_id
from orchestrator.documents.model import (
    Chunking,
    FileBatch,
    IngestStatus,
    LastError,
    Part,
    StoredFile,
    StoreFile,
    Upload,
    UploadStatus,
    VectorStore,
)
from storage.catalog import Catalog
from storage.objects_folder import FolderObjects
from storage.records import RecordedShelf
from storage.shelf import DuckShelf
from storage.shelf_facts import Name, named
from storage.shelf_tables import BATCHES, FILES, PARTS, STORE_FILES, STORES, UPLOADS, Value

WALKERS = 3
TABLES = (FILES, UPLOADS, STORES, STORE_FILES, BATCHES)

Held = Mapping[Name, Value]
Step = tuple[Iterable[Name], Awaitable[object]]
V = TypeVar("V", bound=Value)


def stored_file(tenant: str = "acme", **fields: Any) -> StoredFile:
    """A file, new unless its id is given."""
    given: dict[str, Any] = {
        "id": new_id("file"),
        "filename": "Läuse & Flöhe.pdf",
        "purpose": "assistants",
        "bytes": 12,
        "content_type": "application/pdf",
        "sha256": "0" * 64,
        "created_unix": 1000,
    }
    return StoredFile(tenant=tenant, **(given | fields))


def vector_store(tenant: str = "acme", **fields: Any) -> VectorStore:
    """A store, new unless its id is given."""
    given: dict[str, Any] = {
        "id": new_id("vector_store"),
        "name": "a 'store'",
        "created_unix": 1000,
        "last_active_unix": 1000,
        "metadata": {"käse": '"brie"'},
    }
    return VectorStore(tenant=tenant, **(given | fields))


def member(store: VectorStore, file: StoredFile, **fields: Any) -> StoreFile:
    """A file of a store, not read yet."""
    given: dict[str, Any] = {
        "filename": file.filename,
        "entry": 0,
        "status": IngestStatus.IN_PROGRESS,
        "created_unix": 1000,
        "attributes": {"year": 2024, "share": 0.5, "draft": True, "by": "Ünal"},
        "chunking": Chunking(chunk_tokens_max=400, overlap_tokens=100, auto=False),
    }
    return StoreFile(store=store.id, file=file.id, tenant=store.tenant, **(given | fields))


def pending(tenant: str = "acme", **fields: Any) -> Upload:
    """An upload that takes parts, new unless its id is given."""
    given: dict[str, Any] = {
        "id": new_id("upload"),
        "filename": "big.txt",
        "purpose": "assistants",
        "bytes": 100,
        "content_type": "text/plain",
        "status": UploadStatus.PENDING,
        "created_unix": 1000,
        "expires_unix": 4600,
    }
    return Upload(tenant=tenant, **(given | fields))


def held(connection: Any, tenant: str | None = None) -> dict[Name, Value]:
    """All facts of a tenant, or of everybody."""
    values: list[Value] = [value for table in TABLES for value in table.all(connection)]
    owners = {upload.id: upload.tenant for upload in UPLOADS.all(connection)}
    facts = {named(value): value for value in values}
    facts |= {named(part, owners[part.upload]): part for part in PARTS.all(connection)}
    return {name: value for name, value in facts.items() if tenant in (None, name.tenant)}


class Walk:
    """Changes one tenant's documents at random."""

    def __init__(self, catalog: Catalog, shelf: DuckShelf, tenant: str, seed: int) -> None:
        self._catalog = catalog
        self._shelf = shelf
        self.tenant = tenant
        self._random = random.Random(seed)
        self._state: Held = {}

    async def steps(self, number: int, tell: Callable[[str, object], None] = lambda kind, what: None) -> Held:
        """Make so many; the state at the end."""
        for _ in range(number):
            touched, change = self._next()
            tell("begin", sorted(name.key for name in touched))
            await change
            self._state = await self.state()
            tell("done", {name.key: value for name, value in self._state.items()})
        return self._state

    async def state(self) -> Held:
        """As the catalogue tells it."""
        return await self._catalog.read(lambda connection: held(connection, self.tenant))

    def _next(self) -> Step:
        """The facts that a change touches, each of them, and the change."""
        choices: list[Callable[[], Step | None]] = [
            self._add_file,
            self._store,
            self._put_upload,
            self._add_part,
            self._complete,
            self._cancel,
        ]
        choices += [self._attach, self._attach, self._finish, self._finish, self._attributes, self._cancel_batch]
        choices += [self._detach, self._remove_file, self._remove_store]
        while True:
            if (step := self._random.choice(choices)()) is not None:
                return step

    def _pick(self, kind: type[V], wanted: Callable[[V], bool] = lambda value: True) -> V | None:
        found = [value for value in self._state.values() if isinstance(value, kind) and wanted(value)]
        return self._random.choice(found) if found else None

    def _members(self, wanted: Callable[[StoreFile], bool]) -> list[StoreFile]:
        return [value for value in self._state.values() if isinstance(value, StoreFile) and wanted(value)]

    def _add_file(self) -> Step | None:
        file = stored_file(self.tenant, bytes=self._random.randrange(1000))
        return [named(file)], self._shelf.add_file(file)

    def _store(self) -> Step | None:
        known = self._pick(VectorStore)
        if known is None or self._random.random() < 0.3:
            store = vector_store(self.tenant)
            return [named(store)], self._shelf.add_store(store)

        def change(store: VectorStore) -> VectorStore:
            return replace(store, last_active_unix=store.last_active_unix + 1, embedder="minilm", dimension=384)

        return [named(known)], self._shelf.change_store(self.tenant, known.id, change)

    def _put_upload(self) -> Step | None:
        upload = pending(self.tenant)
        return [named(upload)], self._shelf.put_upload(upload)

    def _add_part(self) -> Step | None:
        upload = self._pending()
        if upload is None:
            return None
        part = Part(id=new_id("part"), upload=upload.id, bytes=5, created_unix=1000)
        return [named(part, self.tenant)], self._shelf.add_part(part)

    def _pending(self) -> Upload | None:
        return self._pick(Upload, lambda upload: upload.status is UploadStatus.PENDING)

    def _parts(self, upload: Upload) -> list[Name]:
        parts = [value for value in self._state.values() if isinstance(value, Part) and value.upload == upload.id]
        return [named(part, self.tenant) for part in parts]

    def _complete(self) -> Step | None:
        upload = self._pending()
        if upload is None:
            return None
        file = stored_file(self.tenant)
        done = replace(upload, status=UploadStatus.COMPLETED, file_id=file.id)
        return [named(file), named(upload), *self._parts(upload)], self._shelf.complete_upload(done, file)

    def _cancel(self) -> Step | None:
        upload = self._pending()
        if upload is None:
            return None
        ended = replace(upload, status=UploadStatus.CANCELLED)
        return [named(upload), *self._parts(upload)], self._shelf.end_upload(ended)

    def _attach(self) -> Step | None:
        store = self._pick(VectorStore)
        files = [value for value in self._state.values() if isinstance(value, StoredFile)]
        if store is None or not files:
            return None
        chosen = self._random.sample(files, min(len(files), self._random.choice([1, 1, 5])))
        batch = FileBatch(id=new_id("vector_store_file_batch"), store=store.id, tenant=self.tenant, created_unix=1000)
        alone = len(chosen) == 1
        members = [member(store, file, batch=None if alone else batch.id) for file in chosen]
        touched = [*map(named, members), *([] if alone else [named(batch)])]
        return touched, self._shelf.add_store_files(members, None if alone else batch)

    def _finish(self) -> Step | None:
        file = self._pick(StoreFile, lambda file: file.status is IngestStatus.IN_PROGRESS)
        if file is None:
            return None
        if self._random.random() < 0.3:
            error = LastError(code="invalid_file", message="it's broken")
            done = replace(file, status=IngestStatus.FAILED, last_error=error)
        else:
            digest = self._random.choice(["1f", "2f", "3f"])
            done = replace(file, status=IngestStatus.COMPLETED, passages=digest, chunks=3, usage_bytes=99)
        return [named(file)], self._shelf.put_store_file(done)

    def _attributes(self) -> Step | None:
        file = self._pick(StoreFile)
        if file is None:
            return None
        return [named(file)], self._shelf.set_attributes(replace(file, attributes={"n": self._random.random()}))

    def _cancel_batch(self) -> Step | None:
        batch = self._pick(FileBatch, lambda batch: not batch.cancelled)
        if batch is None:
            return None
        open_ = self._members(lambda file: file.batch == batch.id and file.status is IngestStatus.IN_PROGRESS)
        return [named(batch), *map(named, open_)], self._shelf.cancel_batch(batch)

    def _detach(self) -> Step | None:
        file = self._pick(StoreFile)
        if file is None:
            return None
        return [named(file)], self._shelf.remove_store_file(self.tenant, file.store, file.file)

    def _remove_file(self) -> Step | None:
        file = self._pick(StoredFile)
        if file is None:
            return None
        gone = self._members(lambda member: member.file == file.id)
        return [named(file), *map(named, gone)], self._shelf.remove_file(self.tenant, file.id)

    def _remove_store(self) -> Step | None:
        store = self._pick(VectorStore) if self._random.random() < 0.3 else None
        if store is None:
            return None
        batches = [value for value in self._state.values() if isinstance(value, FileBatch) and value.store == store.id]
        gone: list[Value] = [*self._members(lambda member: member.store == store.id), *batches]
        return [named(store), *map(named, gone)], self._shelf.remove_store(self.tenant, store.id)


async def _main(folder: Path, seed: int) -> None:
    catalog = Catalog(folder / "catalog.duckdb")
    shelf = RecordedShelf(catalog, FolderObjects(folder / "objects"))

    def teller(walker: int) -> Callable[[str, object], None]:
        return lambda kind, what: print(msgspec.json.encode([walker, kind, what]).decode(), flush=True)

    walks = [Walk(catalog, shelf, f"tenant {number}", seed * 100 + number) for number in range(WALKERS)]
    await asyncio.gather(*(walk.steps(10_000, teller(number)) for number, walk in enumerate(walks)))


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2])))
