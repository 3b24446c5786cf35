"""The catalogue of documents: whose they are, and what becomes of them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.documents.ids import Kind, is_id, new_id
from orchestrator.documents.keys import file_key, part_key, passages_key, record_key, vectors_key
from orchestrator.documents.model import FileBatch, FileCounts, IngestStatus, LastError, Page, Part, UploadStatus
from orchestrator.documents.ports import Shelf
from orchestrator.errors import NotFound
from tests.storage.catalog_writer import member, pending, stored_file, vector_store
from tests.storage.shelved import attached, clear, opened, read, run

KINDS: tuple[Kind, ...] = ("file", "upload", "part", "vector_store", "vector_store_file_batch")
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


# --- whose they are ---


def test_anothers_is_unknown(shelf: Shelf, tenant: str) -> None:
    async def test() -> None:
        store, file, upload = vector_store(tenant), stored_file(tenant), pending(tenant)
        await attached(shelf, store, [file])
        await shelf.put_upload(upload)
        batch = FileBatch(id=new_id("vector_store_file_batch"), store=store.id, tenant=tenant, created_unix=1)
        await shelf.add_store_files([member(store, file, batch=batch.id)], batch)
        for other, mine in ((tenant, True), ("other", False), (tenant.upper(), False), ("", False)):
            assert (await shelf.file(other, file.id) == file) is mine
            assert (await shelf.upload(other, upload.id) == upload) is mine
            assert (await shelf.store(other, store.id) == store) is mine
            assert (await shelf.batch(other, store.id, batch.id) == batch) is mine
            assert (await shelf.store_file(other, store.id, file.id) is not None) is mine
            assert bool(await shelf.memberships(other, file.id)) is mine
            assert bool((await shelf.files(other, Page()))[0]) is mine
            assert bool((await shelf.stores(other, Page()))[0]) is mine
            assert bool((await shelf.store_files(other, store.id, Page()))[0]) is mine
            assert (await shelf.used_bytes(other) > 0) is mine
        cursors = (
            lambda: shelf.files("other", Page(after=file.id)),
            lambda: shelf.stores("other", Page(before=store.id)),
            lambda: shelf.store_files("other", store.id, Page(after=file.id)),
        )
        for listing in cursors:
            with pytest.raises(NotFound):
                await listing()
        assert await shelf.remove_file("other", file.id) is None
        assert await shelf.remove_store("other", store.id) is None
        assert await shelf.remove_store_file("other", store.id, file.id) is None
        with pytest.raises(NotFound):
            await shelf.add_store_files([member(replace(store, tenant="other"), file)])
        with pytest.raises(NotFound):
            await shelf.add_store_files([member(store, stored_file(tenant))])
        assert await shelf.file(tenant, file.id) == file
        assert await shelf.batch(tenant, "vs_other", batch.id) is None

    run(test())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    filename=NAMES,
    owner=NAMES,
    attributes=st.dictionaries(NAMES, NAMES | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()),
)
def test_names_are_data(shelf: Shelf, filename: str, owner: str, attributes: dict[str, Any]) -> None:
    async def test() -> None:
        file, store = (
            stored_file(owner, filename=filename),
            vector_store(owner, name=filename, metadata={filename: owner}),
        )
        (added,) = await attached(shelf, store, [file], attributes=attributes)
        assert await shelf.file(owner, file.id) == file
        assert await shelf.store(owner, store.id) == store
        assert await shelf.store_file(owner, store.id, file.id) == added
        assert added.attributes == attributes

    run(test())


# --- files and uploads ---


def test_expired_files_and_the_sum_of_bytes(tmp_path: Path) -> None:
    async def test(shelf: Shelf) -> None:
        files = [stored_file(f"t{n % 2}", bytes=10**n, expires_unix=100 - n if n else None) for n in range(4)]
        for file in files:
            await shelf.add_file(file)
            await shelf.add_file(file)
        assert await shelf.expired_files(98, 10) == (files[3], files[2])
        assert await shelf.expired_files(98, 1) == (files[3],)
        assert [await shelf.used_bytes(tenant) for tenant in ("t0", "t1", "t2")] == [101, 1010, 0]

    with opened(tmp_path) as shelf:
        run(test(shelf))


def test_a_removed_file_leaves_its_stores_and_its_content(tmp_path: Path) -> None:
    async def test(shelf: Shelf) -> None:
        files, stores = [stored_file(), stored_file()], [vector_store(embedder="mini lm"), vector_store()]
        for store in stores:
            members = await attached(shelf, store, files)
            await read(shelf, members[0], "d1")
        assert {found.store for found in await shelf.memberships("acme", files[0].id)} == {s.id for s in stores}
        assert await shelf.remove_file("acme", files[0].id) == files[0]
        assert await shelf.remove_file("acme", files[0].id) is None
        assert await shelf.memberships("acme", files[0].id) == ()
        assert [found.file for found in await shelf.all_store_files(stores[0].id)] == [files[1].id]
        left = {file_key("acme", files[0].id), passages_key("acme", "d1"), vectors_key("acme", "d1", "mini lm")}
        assert await clear(shelf) == left

    with opened(tmp_path) as shelf:
        run(test(shelf))


@pytest.mark.parametrize("status", [UploadStatus.COMPLETED, UploadStatus.CANCELLED, UploadStatus.EXPIRED])
def test_an_upload_ends_once_and_its_parts_are_garbage(tmp_path: Path, status: UploadStatus) -> None:
    async def test(shelf: Shelf) -> None:
        upload, file = pending(), stored_file()
        await shelf.put_upload(upload)
        parts = [Part(id=new_id("part"), upload=upload.id, bytes=n, created_unix=5 - n // 2) for n in range(4)]
        for part in parts:
            await shelf.add_part(part)
        assert await shelf.parts(upload.id) == (parts[2], parts[3], parts[0], parts[1])
        assert await shelf.expired_uploads(upload.expires_unix, 10) == (upload,)
        assert await shelf.expired_uploads(upload.expires_unix - 1, 10) == ()
        ended = replace(upload, status=status, file_id=file.id if status is UploadStatus.COMPLETED else None)
        for _ in range(2):
            await (shelf.complete_upload(ended, file) if ended.file_id else shelf.end_upload(ended))
        assert await shelf.upload("acme", upload.id) == ended
        assert await shelf.file("acme", file.id) == (file if ended.file_id else None)
        assert await shelf.parts(upload.id) == ()
        assert await shelf.expired_uploads(10**10, 10) == ()
        assert await clear(shelf) == {part_key("acme", upload.id, part.id) for part in parts}
        other = stored_file()
        with pytest.raises(NotFound):
            await shelf.complete_upload(replace(ended, status=UploadStatus.COMPLETED, file_id=other.id), other)
        with pytest.raises(NotFound):
            await shelf.add_part(replace(parts[0], id="part_late"))
        await shelf.end_upload(replace(ended, status=UploadStatus.CANCELLED))
        assert await shelf.upload("acme", upload.id) == ended
        assert await clear(shelf) == {file_key("acme", other.id), part_key("acme", upload.id, "part_late")}

    with opened(tmp_path) as shelf:
        run(test(shelf))


# --- vector stores ---


def test_entries_are_never_given_twice(tmp_path: Path) -> None:
    store, files = vector_store(), [stored_file() for _ in range(3)]
    given: list[int] = []
    for _ in range(3):
        with opened(tmp_path) as shelf:

            async def test(shelf: Shelf) -> None:
                given.extend(file.entry for file in await attached(shelf, store, files))
                given.extend(file.entry for file in await shelf.add_store_files([member(store, files[0])]))
                for file in files:
                    await shelf.remove_store_file("acme", store.id, file.id)

            run(test(shelf))
    assert given == sorted(set(given))


def test_a_file_that_is_added_again_is_replaced(shelf: Shelf, tenant: str) -> None:
    async def test() -> None:
        store, file = vector_store(tenant), stored_file(tenant)
        (old,) = await attached(shelf, store, [file])
        old = await read(shelf, old, "d1")
        twice = [member(store, file, attributes={"n": n}) for n in (1, 2)]
        (new,) = await shelf.add_store_files(twice)
        assert new.attributes == {"n": 2}
        assert await shelf.all_store_files(store.id) == (new,)
        assert not await shelf.put_store_file(old)
        assert not await shelf.set_attributes(replace(old, attributes={}))
        assert await shelf.store_file(tenant, store.id, file.id) == new
        assert (await shelf.counts([store.id]))[store.id] == (FileCounts(in_progress=1), 0)

    run(test())


def test_what_a_job_finds_leaves_attributes_alone_and_the_other_way_round(shelf: Shelf, tenant: str) -> None:
    async def test() -> None:
        store, file = vector_store(tenant), stored_file(tenant)
        (added,) = await attached(shelf, store, [file])
        assert await shelf.set_attributes(replace(added, attributes={"a": 1}, status=IngestStatus.FAILED))
        error = LastError(code="invalid_file", message="it's “broken”")
        failed = replace(added, status=IngestStatus.FAILED, last_error=error, filename="other")
        assert await shelf.put_store_file(failed)
        found = await shelf.store_file(tenant, store.id, file.id)
        assert found == replace(added, attributes={"a": 1}, status=IngestStatus.FAILED, last_error=error)

    run(test())


def test_counts_and_unfinished(tmp_path: Path) -> None:
    async def test(shelf: Shelf) -> None:
        store, files = vector_store(), [stored_file() for _ in range(4)]
        members = await attached(shelf, store, files)
        await read(shelf, members[1], "d1")
        await shelf.put_store_file(replace(members[3], status=IngestStatus.FAILED, usage_bytes=7))
        assert await shelf.counts([store.id, "vs_none"]) == {
            store.id: (FileCounts(in_progress=2, completed=1, failed=1), 107),
            "vs_none": (FileCounts(), 0),
        }
        assert await shelf.counts([]) == {}
        assert await shelf.unfinished(10) == (members[0], members[2])
        assert await shelf.unfinished(1) == (members[0],)

    with opened(tmp_path) as shelf:
        run(test(shelf))


def test_a_cancelled_batch_stays_cancelled(shelf: Shelf, tenant: str) -> None:
    async def test() -> None:
        store, files = vector_store(tenant), [stored_file(tenant) for _ in range(3)]
        for file in files:
            await shelf.add_file(file)
        await shelf.add_store(store)
        batch = FileBatch(id=new_id("vector_store_file_batch"), store=store.id, tenant=tenant, created_unix=9)
        members = await shelf.add_store_files([member(store, file, batch=batch.id) for file in files], batch)
        assert await shelf.batch(tenant, store.id, batch.id) == batch
        await read(shelf, members[0], "d1")
        await shelf.cancel_batch(batch)
        assert await shelf.batch(tenant, store.id, batch.id) == replace(batch, cancelled=True)
        assert await shelf.batch_counts(batch.id) == FileCounts(completed=1, cancelled=2)
        assert not await shelf.put_store_file(replace(members[1], status=IngestStatus.COMPLETED))
        found, _ = await shelf.store_files(tenant, store.id, Page(), batch=batch.id, status=IngestStatus.CANCELLED)
        assert [file.file for file in found] == [files[2].id, files[1].id]

    run(test())


def test_a_late_change_does_not_bring_a_store_back(shelf: Shelf, tenant: str) -> None:
    async def test() -> None:
        store, file = vector_store(tenant), stored_file(tenant)
        await attached(shelf, store, [file])
        assert await shelf.remove_store(tenant, store.id) == store
        assert await shelf.remove_store(tenant, store.id) is None
        assert await shelf.change_store(tenant, store.id, lambda s: replace(s, last_active_unix=5000)) is None
        assert await shelf.store(tenant, store.id) is None
        assert await shelf.memberships(tenant, file.id) == ()
        assert await shelf.file(tenant, file.id) == file
        assert store.id not in [found.id for found in await shelf.all_stores()]

    run(test())


# --- ids and keys ---


@pytest.mark.parametrize("kind", KINDS)
def test_ids(kind: Kind) -> None:
    ids = {new_id(kind) for _ in range(1000)}
    assert len(ids) == 1000
    for id in itertools.islice(ids, 10):
        assert is_id(kind, id)
        assert [other for other in KINDS if is_id(other, id)] == [kind]
        for wrong in (id[:-1], id + "0", id + "\n", id.upper(), f" {id}", id[:-1] + "/", id[:-1] + "٣", ""):
            assert not is_id(kind, wrong), wrong


@given(tenant=st.text(max_size=50), embedder=st.text(max_size=50))
def test_keys_are_safe_whatever_the_tenant(tenant: str, embedder: str) -> None:
    keys = (
        file_key(tenant, "file-1"),
        part_key(tenant, "upload_1", "part_1"),
        passages_key(tenant, "d1"),
        vectors_key(tenant, "d1", embedder),
        record_key(tenant, "file", "file-1"),
    )
    for key in keys:
        assert key.isascii()
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789/._-")
        assert ".." not in key and "//" not in key
    assert file_key(tenant, "file-1") != file_key(tenant + "x", "file-1")
