"""What was acknowledged is on record: it outlives kill -9, a damaged catalogue and an object store that is away."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.documents.keys import RECORDS, SERIALS
from orchestrator.documents.model import FileBatch, IngestStatus, Order, Page, Part, StoreFile, UploadStatus
from orchestrator.errors import NotFound, ObjectsUnavailable
from storage import rebuild as rebuilding
from storage import record_keeper
from storage.record_form import AT_ONCE_MAX
from storage.records import rebuild
from storage.shelf_facts import named
from tests.storage.catalog_writer import Walk, member, pending, stored_file, vector_store
from tests.storage.recorded import Parts, State, opened, run, without_entries


async def filled(parts: Parts, files: int = 3) -> tuple[Any, list[Any], list[StoreFile]]:
    """A store with files, one of them completed."""
    store, stored = vector_store(), [stored_file(bytes=n) for n in range(files)]
    for file in stored:
        await parts.shelf.add_file(file)
    await parts.shelf.add_store(store)
    members = list(await parts.shelf.add_store_files([member(store, file) for file in stored]))
    members[0] = replace(members[0], status=IngestStatus.COMPLETED, passages="1f", chunks=2, usage_bytes=7)
    assert await parts.shelf.put_store_file(members[0])
    return store, stored, members


@pytest.mark.parametrize("seed", [1, 2])
def test_a_rebuilt_catalogue_is_the_same(tmp_path: Path, seed: int) -> None:
    async def test(parts: Parts) -> None:
        walk = Walk(parts.catalog, parts.shelf, "acme", seed)
        before = {name.key: value for name, value in (await walk.steps(30)).items()}
        after = await parts.rebuilt(tmp_path / "other")
        assert without_entries(after) == without_entries(before)
        old, new = ({v.entry for v in state.values() if isinstance(v, StoreFile)} for state in (before, after))
        assert not old or min(new) > max(old)
        await parts.shelf.mend()
        assert await parts.records() == set(before)
        assert await parts.shelf.mend() == 0

    run(test, tmp_path)


def test_a_rebuild_keeps_the_order_and_gives_no_entry_twice(tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        store, stored, members = await filled(parts)
        last = (await parts.shelf.add_store_files([member(store, stored[0])]))[0]
        await parts.shelf.remove_store_file("acme", store.id, stored[0].id)
        await parts.shelf.change_store("acme", store.id, lambda s: replace(s, name="renamed"))
        second = vector_store()
        await parts.shelf.add_store(second)
        await parts.shelf.change_store("acme", store.id, lambda s: replace(s, name="again"))
        await rebuild(parts.objects, parts.shelf)
        files, _ = await parts.shelf.files("acme", Page(order=Order.ASC))
        assert files == tuple(stored)
        stores, _ = await parts.shelf.stores("acme", Page(order=Order.ASC))
        assert [found.id for found in stores] == [store.id, second.id]
        found = await parts.shelf.all_store_files(store.id)
        assert [file.file for file in found] == [file.file for file in members[1:]]
        assert min(file.entry for file in found) > last.entry
        again = await parts.shelf.add_store_files([member(store, stored[0])])
        assert again[0].entry > max(file.entry for file in found)

    run(test, tmp_path)


def test_a_catalogue_is_fresh_until_it_was_filled(tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        assert await parts.shelf.fresh()
        assert (await rebuild(parts.objects, parts.shelf)).counts == {}
        assert not await parts.shelf.fresh()

    run(test, tmp_path)


def test_a_truncated_catalogue_is_set_aside_and_rebuilt(tmp_path: Path) -> None:
    async def before() -> State:
        async with opened(tmp_path) as parts:
            await rebuild(parts.objects, parts.shelf)
            return {n.key: v for n, v in (await Walk(parts.catalog, parts.shelf, "acme", 3).steps(20)).items()}

    state = asyncio.run(before())
    os.truncate(tmp_path / "catalog.duckdb", (tmp_path / "catalog.duckdb").stat().st_size - 1)

    async def test(parts: Parts) -> None:
        assert await parts.shelf.fresh()
        await rebuild(parts.objects, parts.shelf)
        assert without_entries(await parts.state()) == without_entries(state)

    run(test, tmp_path)
    assert (tmp_path / "catalog.damaged").exists()


def changes(parts: Parts, store: Any, stored: list[Any], members: list[StoreFile]) -> dict[str, Awaitable[object]]:
    """One of every kind that adds or alters."""
    shelf, upload = parts.shelf, pending(id="upload_1")
    batch = FileBatch(id="vsfb_1", store=store.id, tenant="acme", created_unix=1)
    done = replace(upload, status=UploadStatus.COMPLETED, file_id="file-1")
    return {
        "add_file": shelf.add_file(stored_file()),
        "put_upload": shelf.put_upload(pending()),
        "add_part": shelf.add_part(Part(id="part_2", upload=upload.id, bytes=1, created_unix=1)),
        "complete_upload": shelf.complete_upload(done, stored_file(id="file-1")),
        "end_upload": shelf.end_upload(replace(upload, status=UploadStatus.EXPIRED)),
        "add_store": shelf.add_store(vector_store()),
        "change_store": shelf.change_store("acme", store.id, lambda s: replace(s, name="other")),
        "add_store_files": shelf.add_store_files([member(store, file) for file in stored], batch),
        "put_store_file": shelf.put_store_file(replace(members[1], status=IngestStatus.FAILED)),
        "set_attributes": shelf.set_attributes(replace(members[0], attributes={})),
        "cancel_batch": shelf.cancel_batch(FileBatch(id="vsfb_0", store=store.id, tenant="acme", created_unix=1)),
    }


def test_while_the_object_store_is_away_the_catalogue_stays_as_it_was(tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        store, stored, members = await filled(parts)
        await parts.shelf.put_upload(pending(id="upload_1"))
        await parts.shelf.add_part(Part(id="part_1", upload="upload_1", bytes=1, created_unix=1))
        batch = FileBatch(id="vsfb_0", store=store.id, tenant="acme", created_unix=1)
        await parts.shelf.add_store_files([member(store, stored[2], batch=batch.id)], batch)
        before = await parts.state()
        for puts_left in (0, 1):  # at once, or in the middle
            for name, change in changes(parts, store, stored, members).items():
                parts.objects.puts_left = puts_left
                try:
                    await change
                except ObjectsUnavailable:
                    assert await parts.state() == before, name
                else:
                    assert puts_left == 1, name
                    before = await parts.state()
        parts.objects.puts_left = 10**9
        assert await parts.shelf.mend() > 0
        assert await parts.shelf.mend() == 0
        assert await parts.records() == set(before)
        assert without_entries(await parts.rebuilt(tmp_path / "other")) == without_entries(before)

    run(test, tmp_path)


def test_what_is_removed_while_it_is_away_is_mended_later(tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        store, stored, members = await filled(parts)
        removals = (
            lambda: parts.shelf.remove_store_file("acme", store.id, stored[1].id),
            lambda: parts.shelf.remove_file("acme", stored[0].id),
            lambda: parts.shelf.remove_store("acme", store.id),
        )
        for remove in removals:
            parts.objects.puts_left = 0
            with pytest.raises(ObjectsUnavailable):
                await remove()
            assert await remove() is None
        parts.objects.puts_left = 10**9
        assert await parts.shelf.mend() == 5
        assert await parts.records() == set(await parts.state())
        assert len(members) == 3

    run(test, tmp_path)


def test_a_change_goes_on_when_who_asked_goes_away(tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        file = stored_file()
        parts.objects.gate.clear()
        asked = asyncio.ensure_future(parts.shelf.add_file(file))
        await parts.objects.begun.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        parts.objects.gate.set()
        await parts.shelf.aclose()
        assert await parts.shelf.file("acme", file.id) == file
        assert await parts.records() == {named(file).key}

    run(test, tmp_path)


def test_progress_of_a_job_has_no_record(tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        _, _, members = await filled(parts)
        before = parts.objects.puts
        assert await parts.shelf.put_store_file(replace(members[1], usage_bytes=5))
        assert parts.objects.puts == before
        assert await parts.shelf.put_store_file(replace(members[1], status=IngestStatus.COMPLETED))
        assert parts.objects.puts == before + 1

    run(test, tmp_path)


def test_what_comes_too_late_leaves_no_record(tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        store, stored, members = await filled(parts)
        await parts.shelf.put_upload(pending(id="upload_1"))
        await parts.shelf.end_upload(pending(id="upload_1", status=UploadStatus.CANCELLED))
        await parts.shelf.remove_store("acme", store.id)
        await parts.shelf.mend()
        assert await parts.shelf.change_store("acme", store.id, lambda s: replace(s, name="late")) is None
        assert not await parts.shelf.put_store_file(members[1])
        assert not await parts.shelf.set_attributes(members[1])
        late = (
            parts.shelf.add_store_files([member(store, stored[0])]),
            parts.shelf.add_part(Part(id="part_1", upload="upload_1", bytes=1, created_unix=1)),
            parts.shelf.add_part(Part(id="part_2", upload="upload_2", bytes=1, created_unix=1)),
            parts.shelf.complete_upload(
                pending(id="upload_1", status=UploadStatus.COMPLETED, file_id="file-1"), stored_file(id="file-1")
            ),
        )
        for change in late:
            with pytest.raises(NotFound):
                await change
        assert await parts.records() == set(await parts.state())
        assert await parts.shelf.mend() == 0

    run(test, tmp_path)


def test_a_store_that_goes_while_its_file_is_noted_takes_the_record_along(tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        store, _, members = await filled(parts)
        parts.objects.begun.clear()
        parts.objects.gate.clear()
        noted = asyncio.ensure_future(parts.shelf.put_store_file(replace(members[1], status=IngestStatus.FAILED)))
        await parts.objects.begun.wait()
        await parts.shelf.remove_store("acme", store.id)
        parts.objects.gate.set()
        assert not await noted
        await parts.shelf.mend()
        assert await parts.records() == set(await parts.state())

    run(test, tmp_path)


def test_many_records_are_written_at_once_but_not_too_many(tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        await filled(parts, files=20)
        assert 1 < parts.objects.at_once_most <= AT_ONCE_MAX

    run(test, tmp_path)


def test_records_that_cant_be_read_are_told_and_cost_no_other(tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        _, stored, _ = await filled(parts)
        good = named(stored[0])
        data = await parts.objects.read_bytes(good.key, bytes_max=10_000)
        bad = {"a": b"{", "b": b"\xff\x00", "c": data, "d": data.replace(b'"file"', b'"fiel"')}
        for name, content in bad.items():
            await parts.objects.put_bytes(f"{RECORDS}x/file/{name}.json", content)
        result = await rebuild(parts.objects, parts.shelf)
        assert [problem.split(":")[0][-6:-5] for problem in result.problems] == list(bad)
        assert result.counts == {"file": 3, "store": 1, "store_file": 3}

    run(test, tmp_path)


@pytest.mark.parametrize(
    ("gone", "left", "stray"),
    [("file", {"file": 2, "store": 1, "store_file": 2}, 1), ("store", {"file": 3}, 3)],
)
def test_leftovers_of_removals_that_were_cut_off_do_not_come_back(
    tmp_path: Path, gone: str, left: dict[str, int], stray: int
) -> None:
    async def test(parts: Parts) -> None:
        store, stored, _ = await filled(parts)
        await parts.objects.delete(named(stored[0] if gone == "file" else store).key)
        assert (await rebuild(parts.objects, parts.shelf)).counts == left
        assert await parts.shelf.mend() == stray
        assert await parts.records() == set(await parts.state())

    run(test, tmp_path)


def test_the_object_store_knows_a_number_above_all_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_keeper, "SERIALS_STEP", 3)
    monkeypatch.setattr(rebuilding, "SERIALS_STEP", 0)

    async def test(parts: Parts) -> None:
        store, stored, _ = await filled(parts)
        for _ in range(5):
            (last,) = await parts.shelf.add_store_files([member(store, stored[0])])
            await parts.shelf.remove_store_file("acme", store.id, stored[0].id)
        found = await parts.rebuilt(tmp_path / "other")
        assert min(value.entry for value in found.values() if isinstance(value, StoreFile)) > last.entry

    run(test, tmp_path)


def test_without_the_number_of_serials_entries_still_rise(tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        store, stored, members = await filled(parts)
        await parts.objects.delete(SERIALS)
        await rebuild(parts.objects, parts.shelf)
        fresh = await parts.shelf.add_store_files([member(store, stored[1])])
        assert fresh[0].entry > max(file.entry for file in members)

    run(test, tmp_path)
