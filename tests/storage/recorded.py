"""A recorded shelf over a folder that can be away, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.documents.keys import RECORDS, SERIALS
from orchestrator.documents.model import StoreFile
from orchestrator.errors import ObjectsUnavailable
from storage.catalog import Catalog
from storage.objects_folder import FolderObjects
from storage.records import RecordedShelf, rebuild
from storage.shelf_tables import Value
from tests.storage.catalog_writer import held

State = Mapping[str, Value]


class Objects(FolderObjects):
    """A folder that can be away, or fail after so many writes; counts."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.puts_left = 10**9
        self.puts = 0
        self.at_once = self.at_once_most = 0
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def put_bytes(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        self.puts_left -= 1
        if self.puts_left < 0:
            raise ObjectsUnavailable("down")
        self.puts += 1
        self.at_once += 1
        self.at_once_most = max(self.at_once, self.at_once_most)
        self.begun.set()
        await self.gate.wait()
        await super().put_bytes(key, data, content_type=content_type)
        self.at_once -= 1

    async def delete(self, key: str) -> None:
        if self.puts_left <= 0:
            raise ObjectsUnavailable("down")
        await super().delete(key)


class Parts:
    """A recorded shelf and what it stands on."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "catalog.duckdb"
        self.objects = Objects(folder / "objects")
        self.catalog = Catalog(self.path)
        self.shelf = RecordedShelf(self.catalog, self.objects)

    async def state(self) -> dict[str, Value]:
        """All facts of the catalogue, by the keys of their records."""
        return {name.key: value for name, value in (await self.catalog.read(held)).items()}

    async def records(self) -> set[str]:
        """The keys of all records."""
        return {found.key async for found in self.objects.list(RECORDS)} - {SERIALS}

    async def rebuilt(self, folder: Path) -> dict[str, Value]:
        """What another catalogue makes of the records."""
        other = Catalog(folder.with_suffix(".duckdb"))
        try:
            result = await rebuild(self.objects, RecordedShelf(other, self.objects))
            assert result.problems == ()
            return {name.key: value for name, value in (await other.read(held)).items()}
        finally:
            other.close()

    async def aclose(self) -> None:
        """Let go of all."""
        await self.shelf.aclose()
        self.catalog.close()
        await self.objects.aclose()


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Parts]:
    parts = Parts(folder)
    try:
        yield parts
    finally:
        await parts.aclose()


def without_entries(state: State) -> State:
    return {key: replace(value, entry=0) if isinstance(value, StoreFile) else value for key, value in state.items()}


def run(test: Callable[[Parts], Awaitable[None]], folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as parts:
            await test(parts)

    asyncio.run(main())
