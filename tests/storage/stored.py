"""A data folder with documents in it, as a service leaves one; and what may have gone wrong with it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.documents.ids import new_id
from orchestrator.documents.keys import file_key, part_key, passages_key, record_key, vectors_key
from orchestrator.documents.model import Chunk, IngestStatus, Page, Part, Passages, StoredFile, StoreFile, VectorStore
from orchestrator.documents.passages import encode
from orchestrator.documents.ports import Indexed
from storage.audit import Audit
from storage.catalog import Catalog
from storage.objects_folder import FolderObjects
from storage.records import RecordedShelf, rebuild
from storage.shelves import DiskShelves
from tests.storage.catalog_writer import member, pending, stored_file, vector_store

FILES = 3
OLD_S = 7200
TENANT = "acme"
EMBEDDER = "minilm"


@dataclass(slots=True)
class Stored:
    """Open parts on a data folder. What `fill` made: three files, all read into one store, and an upload's part."""

    data: Path
    catalog: Catalog
    objects: FolderObjects
    shelf: RecordedShelf
    shelves: DiskShelves

    def audit(self) -> Audit:
        """The comparisons."""
        return Audit(catalog=self.catalog, objects=self.objects, now_unix=time.time(), step=lambda what, count: None)

    async def fill(self) -> None:
        """Put everything there."""
        await rebuild(self.objects, self.shelf)  # as a service does at its first start
        files = [stored_file(bytes=len(_content(number))) for number in range(FILES)]
        store = vector_store(embedder=EMBEDDER, dimension=4)
        await self.shelf.add_store(store)
        for number, file in enumerate(files):
            await self.put(file_key(TENANT, file.id), _content(number))
            await self.shelf.add_file(file)
        for found in await self.shelf.add_store_files([member(store, file) for file in files]):
            await self.read(store, found)
        upload = pending(expires_unix=int(time.time()) + 3600)
        await self.shelf.put_upload(upload)
        part = Part(id=new_id("part"), upload=upload.id, bytes=4, created_unix=1000)
        await self.put(part_key(TENANT, upload.id, part.id), b"part")
        await self.shelf.add_part(part)

    async def held(self) -> tuple[list[StoredFile], VectorStore]:
        """The files and the store."""
        (files, _), (stores, _) = await self.shelf.files(TENANT, Page()), await self.shelf.stores(TENANT, Page())
        return list(files), stores[0]

    async def read(self, store: VectorStore, file: StoreFile) -> None:
        """As the ingest does it."""
        digest = hashlib.sha256(file.file.encode()).hexdigest()
        chunks = (Chunk(text=f"the text of {file.file}"),)
        await self.put(passages_key(TENANT, digest), encode(Passages(chunks=chunks)))
        await self.put(vectors_key(TENANT, digest, EMBEDDER), b"vectors")
        index = self.shelves.open(store.id, store.embedder, store.dimension)
        index.add([Indexed(entry=file.entry, title="", chunks=chunks)])
        done = replace(file, status=IngestStatus.COMPLETED, passages=digest, chunks=1, usage_bytes=10)
        assert await self.shelf.put_store_file(done)

    async def put(self, key: str, data: bytes, *, age_s: float = OLD_S) -> None:
        """An object that is so old."""
        await self.objects.put_bytes(key, data)
        self.age(key, age_s)

    def age(self, key: str, age_s: float = OLD_S) -> None:
        """Make an object this old."""
        then = time.time() - age_s
        os.utime(self.path(key), (then, then))

    def path(self, key: str) -> Path:
        """Where an object lies."""
        return self.data / "objects" / key

    def record(self, kind: str, id: str) -> Path:
        """Where a record lies."""
        return self.path(record_key(TENANT, kind, id))

    def objects_there(self) -> set[str]:
        """All keys."""
        root = self.data / "objects"
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@contextlib.asynccontextmanager
async def stored(data: Path) -> AsyncIterator[Stored]:
    """The parts on this folder, closed at the end."""
    await asyncio.to_thread(data.mkdir, exist_ok=True)
    catalog, objects = Catalog(data / "catalog.duckdb"), FolderObjects(data / "objects")
    shelf, shelves = RecordedShelf(catalog, objects), DiskShelves(data / "indexes")
    try:
        yield Stored(data, catalog, objects, shelf, shelves)
    finally:
        await shelf.aclose()
        shelves.close()
        catalog.close()
        await objects.aclose()


def fill(data: Path) -> None:
    """Make such a folder."""

    async def make() -> None:
        async with stored(data) as held:
            await held.fill()

    asyncio.run(make())


def _content(number: int) -> bytes:
    return b"content" * (number + 1)
