"""Vector stores over the real catalogue: time, replacement, and what is told to the ingest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from orchestrator.documents.files import Files
from orchestrator.documents.garbage import Garbage
from orchestrator.documents.gates import Gates
from orchestrator.documents.ids import new_id
from orchestrator.documents.keys import DERIVED, passages_key
from orchestrator.documents.model import Chunking, IngestStatus, Order, Page, StoredFile, VectorStore
from orchestrator.documents.roster import Roster
from orchestrator.documents.spool import Spool
from orchestrator.documents.store_fields import NewStore, Wanted
from orchestrator.documents.stores import Stores
from orchestrator.documents.uploads import Uploads
from orchestrator.errors import ApiError, NotFound
from storage.catalog import Catalog
from storage.objects_folder import FolderObjects
from storage.records import RecordedShelf
from storage.shelves import DiskShelves

DAY_S = 86400
TENANT = "ada"


@dataclass(slots=True)
class Jobs:
    """Writes down what it is told."""

    stopped: list[int] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    woken: int = 0

    def wake(self) -> None:
        self.woken += 1

    def stop(self, entries: Collection[int]) -> None:
        self.stopped += entries

    def check(self, store: str) -> None:
        self.checked.append(store)


@dataclass(slots=True)
class World:
    """Stores, and the clock they read."""

    stores: Stores
    shelf: RecordedShelf
    jobs: Jobs
    now: float = 1_000_000.0

    async def file(self, name: str = "a.txt") -> str:
        id = new_id("file")
        await self.shelf.add_file(
            StoredFile(
                id=id,
                tenant=TENANT,
                filename=name,
                purpose="assistants",
                bytes=1,
                content_type="text/plain",
                sha256="0" * 64,
                created_unix=int(self.now),
            )
        )
        return id

    def files(self, folder: Path) -> Files:
        """The files themselves, with their content in a folder."""
        objects = FolderObjects(folder)
        return Files(shelf=self.shelf, objects=objects, unix=lambda: self.now, left=self.stores.left)

    async def store(self, **more: object) -> VectorStore:
        return await self.stores.create(TENANT, NewStore(name="s", **more))  # type: ignore[arg-type]  # as the tests give it


def wanted(file: str) -> Wanted:
    return Wanted(file=file, attributes={}, chunking=Chunking())


def played(folder: Path, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def play() -> None:
        catalog, objects = Catalog(folder / "catalog.duckdb"), FolderObjects(folder / "objects")
        shelf, jobs = RecordedShelf(catalog, objects), Jobs()
        stores = Stores(
            shelf=shelf,
            shelves=DiskShelves(folder / "indexes"),
            roster=Roster(shelf),
            unix=lambda: world.now,
            jobs=jobs,
        )
        world = World(stores, shelf, jobs)
        try:
            await scenario(world)
        finally:
            await shelf.aclose()
            await objects.aclose()
            catalog.close()

    asyncio.run(play())


def test_a_store_that_nobody_uses_expires(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        store = await world.store(expires_after_days=2)
        file = await world.file()
        await world.stores.attach(TENANT, store.id, wanted(file))
        world.now += DAY_S
        await world.stores.live(TENANT, store.id)  # a use: two days from now
        world.now += 1.5 * DAY_S
        await world.stores.expire()
        assert (await world.stores.file(TENANT, store.id, file)).status is IngestStatus.IN_PROGRESS
        world.now += 0.6 * DAY_S
        with pytest.raises(ApiError, match="has expired"):
            await world.stores.attach(TENANT, store.id, wanted(file))
        await world.stores.expire()
        assert (await world.shelf.all_store_files(store.id)) == ()
        assert await world.shelf.file(TENANT, file) is not None
        assert (await world.stores.get(TENANT, store.id)).id == store.id

    played(tmp_path, scenario)


def test_a_file_that_is_put_in_again_is_read_again(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        store, file = await world.store(), await world.file()
        first = await world.stores.attach(TENANT, store.id, wanted(file))
        second = await world.stores.attach(TENANT, store.id, wanted(file))
        assert second.entry > first.entry
        assert world.jobs.stopped == [first.entry]
        assert world.jobs.checked == [store.id]
        found, more = await world.stores.files(TENANT, store.id, Page(), status=None)
        assert ([one.entry for one in found], more) == ([second.entry], False)

    played(tmp_path, scenario)


def test_a_batch_is_all_or_nothing(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        store, file = await world.store(), await world.file()
        with pytest.raises(ApiError) as caught:
            await world.stores.attach_batch(TENANT, store.id, [wanted(file), wanted(new_id("file"))])
        assert caught.value.status == 404
        assert await world.shelf.all_store_files(store.id) == ()
        batch = await world.stores.attach_batch(TENANT, store.id, [wanted(file)])
        assert (await world.stores.cancel_batch(TENANT, store.id, batch.id)).cancelled
        assert (await world.stores.batch_counts(batch)).cancelled == 1
        assert (await world.stores.file(TENANT, store.id, file)).status is IngestStatus.CANCELLED

    played(tmp_path, scenario)


def test_what_is_removed_is_told(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        store, file, other = await world.store(), await world.file(), await world.file("b.txt")
        entries = [(await world.stores.attach(TENANT, store.id, wanted(id))).entry for id in (file, other)]
        await world.files(tmp_path / "objects").remove(TENANT, file)
        assert world.jobs.stopped == entries[:1]
        with pytest.raises(ApiError):
            await world.stores.file(TENANT, store.id, file)
        await world.stores.remove(TENANT, store.id)
        assert world.jobs.stopped == entries
        with pytest.raises(ApiError):
            await world.stores.get(TENANT, store.id)
        assert await world.shelf.file(TENANT, other) is not None

    played(tmp_path, scenario)


def test_changes_at_once_do_not_undo_each_other(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        store = await world.store(expires_after_days=1)
        world.now += 3600
        change = world.stores.change
        for turn in range(5):
            await asyncio.gather(
                change(TENANT, store.id, partial(replace, name=f"name {turn}")),
                change(TENANT, store.id, partial(replace, metadata={"turn": str(turn)})),
                change(TENANT, store.id, lambda store: replace(store, embedder="e", dimension=2)),
                world.stores.live(TENANT, store.id),
            )
            found = await world.stores.get(TENANT, store.id)
            assert (found.name, found.metadata) == (f"name {turn}", {"turn": str(turn)})
            assert (found.embedder, found.last_active_unix) == ("e", int(world.now))

    played(tmp_path, scenario)


def test_a_listing_goes_on_from_what_was_removed(tmp_path: Path) -> None:
    """As a script does that deletes each item while it lists them."""

    async def scenario(world: World) -> None:
        store = await world.store()
        files = [await world.file(f"{number}.txt") for number in range(5)]
        for file in files:
            await world.stores.attach(TENANT, store.id, wanted(file))
        seen: list[str] = []
        more, page = True, Page(limit=2, order=Order.ASC)
        while more:
            found, more = await world.stores.files(TENANT, store.id, page, status=None)
            for one in found:
                seen.append(one.file)
                await world.shelf.remove_file(TENANT, one.file)
            page = replace(page, after=found[-1].file)
        assert seen == files
        assert await world.shelf.files(TENANT, Page(after=files[2])) == ((), False)
        with pytest.raises(NotFound):
            await world.shelf.files("bob", Page(after=files[2]))
        await world.stores.remove(TENANT, store.id)
        assert await world.stores.listing(TENANT, Page(after=store.id)) == ((), False)

    played(tmp_path, scenario)


def test_what_a_job_may_name_is_not_cleared_away(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        objects, gates = FolderObjects(tmp_path / "objects"), Gates()
        files = world.files(tmp_path / "objects")
        spool = Spool(tmp_path / "spool", files_max=1, free_bytes_min=0)
        uploads = Uploads(
            shelf=world.shelf, objects=objects, spool=spool, files=files, unix=lambda: world.now, bytes_max=1
        )
        garbage = Garbage(shelf=world.shelf, objects=objects, files=files, uploads=uploads, gates=gates)
        store, file = await world.store(), await world.file()
        member = await world.stores.attach(TENANT, store.id, wanted(file))
        key = passages_key(TENANT, "d")
        await objects.put_bytes(key, b"passages")
        done = replace(member, status=IngestStatus.COMPLETED, passages="d")
        assert await world.shelf.put_store_file(done)
        await world.stores.detach(TENANT, store.id, file)
        again = await world.stores.attach(TENANT, store.id, wanted(file))
        async with gates.passing(DERIVED):
            await garbage.sweep(world.now)
            assert await objects.read_bytes(key, bytes_max=10) == b"passages"
            assert await world.shelf.put_store_file(replace(done, entry=again.entry))
        await garbage.sweep(world.now)
        assert await objects.read_bytes(key, bytes_max=10) == b"passages"
        await world.stores.detach(TENANT, store.id, file)
        await garbage.sweep(world.now)
        with pytest.raises(NotFound):
            await objects.read_bytes(key, bytes_max=10)
        await objects.aclose()

    played(tmp_path, scenario)
