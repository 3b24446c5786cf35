"""Short ways to fill a shelf, for tests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.documents.model import IngestStatus, StoredFile, StoreFile, VectorStore
from orchestrator.documents.ports import Shelf
from storage.shelf import DuckShelf
from tests.storage.catalog_writer import member
from tests.storage.test_history import catalog

TENANTS = (f"tenant {number}" for number in itertools.count())


@contextmanager
def opened(folder: Path) -> Iterator[DuckShelf]:
    """A shelf of its own."""
    with catalog(folder / "catalog.duckdb") as made:
        yield DuckShelf(made)


def run(test: Awaitable[None]) -> None:
    async def main() -> None:
        await test

    asyncio.run(main())


async def attached(shelf: Shelf, store: VectorStore, files: Collection[StoredFile], **fields: Any) -> list[StoreFile]:
    for file in files:
        await shelf.add_file(file)
    await shelf.add_store(store)
    return list(await shelf.add_store_files([member(store, file, **fields) for file in files]))


async def read(shelf: Shelf, file: StoreFile, digest: str) -> StoreFile:
    """The file, completed with passages of this digest."""
    done = replace(file, status=IngestStatus.COMPLETED, passages=digest, chunks=3, usage_bytes=100)
    assert await shelf.put_store_file(done)
    return done


async def clear(shelf: Shelf) -> set[str]:
    """All garbage, taken away."""
    keys = await shelf.garbage(10_000)
    assert len(keys) == len(set(keys))
    await shelf.cleared(keys)
    assert await shelf.garbage(1) == ()
    return set(keys)
