"""What may have gone wrong between catalogue, object store and indexes is found, and mended without losing anything."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator.documents.ids import new_id
from orchestrator.documents.keys import file_key, passages_key, record_key
from orchestrator.documents.model import IngestStatus, Page, StoredFile, VectorStore
from storage import mending
from storage.audit import CONTENT, catalog_fault, stray_indexes
from storage.record_form import encode
from storage.shelf_facts import Fact, Name
from tests.storage.catalog_writer import pending, stored_file
from tests.storage.stored import FILES, TENANT, Stored, fill, stored

Test = Callable[[Stored, list[StoredFile], VectorStore], Awaitable[None]]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("stored") / "data"
    fill(data)
    return data


@pytest.fixture
def data(filled: Path, tmp_path: Path) -> Path:
    """Documents that are all well, in a folder of the test's own."""
    return shutil.copytree(filled, tmp_path / "data")


def run(data: Path, test: Test) -> None:
    async def whole() -> None:
        async with stored(data) as held:
            await test(held, *await held.held())

    asyncio.run(whole())


@dataclass(frozen=True, slots=True)
class Faults:
    """How many of each kind."""

    differing: int = 0
    unknown: int = 0
    unreadable: int = 0
    lost: int = 0
    resized: int = 0
    lost_uploads: int = 0
    garbage: int = 0
    unread: int = 0
    derived_garbage: int = 0
    lacking: int = 0
    stray: int = 0


async def faults(held: Stored) -> Faults:
    """All that the audit finds."""
    audit = held.audit()
    records = await audit.records()
    content, derived, indexes = await audit.content(records), await audit.derived(), await audit.indexes(held.shelves)
    return Faults(
        differing=len(records.differing),
        unknown=len(records.unknown),
        unreadable=len(records.unreadable),
        lost=len(content.lost),
        resized=len(content.resized),
        lost_uploads=len(content.lost_uploads),
        garbage=len(content.garbage.keys),
        unread=len(derived.unread),
        derived_garbage=len(derived.garbage.keys),
        lacking=sum(one.lacking for one in indexes),
        stray=sum(len(one.stray) for one in indexes),
    )


async def mend(held: Stored) -> None:
    """As doctor does."""
    audit = held.audit()
    await mending.settle(held.shelf)
    await mending.mend_records(held.objects, held.shelf, await audit.records())
    content, derived = await audit.content(await audit.records()), await audit.derived()
    await mending.clear(held.objects, content.garbage)
    await mending.read_anew(held.shelf, derived.unread)
    await mending.clear(held.objects, derived.garbage)
    await mending.mend_indexes(held.shelves, await audit.indexes(held.shelves))


# --- faults, one by one ---


async def nothing(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    """All is well."""


async def record_gone(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    held.record("file", files[0].id).unlink()


async def record_differs(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    name = Name("store", TENANT, store.id)
    held.path(name.key).write_bytes(encode(Fact(name, replace(store, name="another"), 1)))


async def record_damaged(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    held.record("file", files[1].id).write_bytes(b"\x00\x01")


async def record_of_nothing_damaged(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    id = new_id("file")
    await held.put(record_key(TENANT, "file", id), b"{")
    await held.put(file_key(TENANT, id), b"may be somebody's")


async def fact_lost(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    """As in a catalogue that was restored from an old copy."""
    file = stored_file(bytes=3)
    await held.put(file_key(TENANT, file.id), b"abc")
    name = Name("file", TENANT, file.id)
    await held.put(name.key, encode(Fact(name, file, 1)))


async def object_gone(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    held.path(file_key(TENANT, files[2].id)).unlink()


async def object_cut(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    held.path(file_key(TENANT, files[2].id)).write_bytes(b"c")


async def part_gone(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    (found,) = (key for key in held.objects_there() if "/uploads/" in key and key.startswith("content/"))
    held.path(found).unlink()


async def garbage(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    await held.put(file_key(TENANT, new_id("file")), b"of a dead process")
    await held.put(file_key("nobody", new_id("file")), b"of a tenant that is gone")
    await held.put(file_key(TENANT, new_id("file")), b"under way", age_s=60)


async def passages_gone(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    (first, *_) = await held.shelf.all_store_files(store.id)
    held.path(passages_key(TENANT, first.passages)).unlink()


async def passages_of_nothing(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    await held.put(passages_key(TENANT, "0" * 64), b"read of something")


async def index_gone(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    held.shelves.discard(store.id)


async def index_has_more(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
    """Of a membership that ended while the service was being killed."""
    (first, *_) = await held.shelf.all_store_files(store.id)
    await held.shelf.remove_store_file(TENANT, store.id, first.file)


@pytest.mark.parametrize(
    ("harm", "found", "left"),
    [
        (nothing, Faults(), Faults()),
        (record_gone, Faults(differing=1), Faults()),
        (record_differs, Faults(differing=1), Faults()),
        (record_damaged, Faults(differing=1), Faults()),
        (record_of_nothing_damaged, Faults(unreadable=1), Faults(unreadable=1)),
        (fact_lost, Faults(unknown=1), Faults(lacking=FILES)),
        (object_gone, Faults(lost=1), Faults(lost=1)),
        (object_cut, Faults(resized=1), Faults(resized=1)),
        (part_gone, Faults(lost_uploads=1), Faults(lost_uploads=1)),
        (garbage, Faults(garbage=2), Faults()),
        (passages_gone, Faults(unread=1), Faults()),
        (passages_of_nothing, Faults(derived_garbage=1), Faults()),
        (index_gone, Faults(lacking=FILES), Faults(lacking=FILES)),
        (index_has_more, Faults(stray=1), Faults()),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_fault_is_found_and_mended(data: Path, harm: Test, found: Faults, left: Faults) -> None:
    async def test(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
        await harm(held, files, store)
        before = held.objects_there()
        assert await faults(held) == found
        assert held.objects_there() == before  # looking changes nothing
        await mend(held)
        assert await faults(held) == left
        listed, _ = await held.shelf.files(TENANT, Page(limit=100))
        assert {file.id for file in files} <= {file.id for file in listed}
        kept = {file_key(TENANT, file.id) for file in listed} & before
        assert kept <= held.objects_there()

    run(data, test)


def test_what_was_lost_comes_back_and_its_content_was_not_garbage(data: Path) -> None:
    async def test(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
        await fact_lost(held, files, store)
        content = {key for key in held.objects_there() if key.startswith(CONTENT)}
        await mend(held)
        listed, _ = await held.shelf.files(TENANT, Page(limit=100))
        assert len(listed) == FILES + 1
        assert content <= held.objects_there()

    run(data, test)


def test_a_file_without_passages_is_read_anew(data: Path) -> None:
    async def test(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
        await passages_gone(held, files, store)
        await mend(held)
        (again,) = await held.shelf.unfinished(10)
        assert (again.status, again.passages) == (IngestStatus.IN_PROGRESS, "")

    run(data, test)


def test_a_cut_off_change_is_settled_first(data: Path) -> None:
    """A record of a file that nobody was told of: it goes, and its content with it."""

    async def test(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
        await fact_lost(held, files, store)
        ids = {name.stem for name in held.path(record_key(TENANT, "file", "x")).parent.iterdir()}
        (id,) = ids - {file.id for file in files}
        await held.shelf.doubt([Name("file", TENANT, id)])
        assert await faults(held) == Faults(garbage=1)
        await mend(held)
        assert await faults(held) == Faults()
        assert not held.path(file_key(TENANT, id)).exists()

    run(data, test)


def test_overdue_uploads_end(data: Path) -> None:
    async def test(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
        for _ in range(3):
            await held.shelf.put_upload(pending(expires_unix=1001))
        assert await mending.end_uploads(held.shelf, int(time.time())) == 3
        assert await mending.end_uploads(held.shelf, int(time.time())) == 0

    run(data, test)


def test_indexes_of_no_store_are_named(data: Path) -> None:
    async def test(held: Stored, files: list[StoredFile], store: VectorStore) -> None:
        held.shelves.open("vs_gone", "", 0)
        assert stray_indexes(held.data / "indexes", {store.id}) == ("vs_gone",)
        assert stray_indexes(held.data / "nowhere", {store.id}) == ()

    run(data, test)


def test_a_damaged_catalogue_is_only_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    path.write_bytes(b"no catalogue" * 1000)
    assert "valid" in catalog_fault(path)
    assert path.read_bytes() == b"no catalogue" * 1000
