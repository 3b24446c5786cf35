"""Listings of documents by cursors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.documents.model import IngestStatus, Order, Page, VectorStore
from orchestrator.documents.ports import Shelf
from orchestrator.errors import NotFound
from tests.storage.catalog_writer import member, stored_file, vector_store
from tests.storage.shelved import TENANTS, attached, read, run


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    times=st.lists(st.integers(1, 3), max_size=9),
    limit=st.integers(1, 4),
    order=st.sampled_from(Order),
    what=st.sampled_from(["files", "stores", "store_files"]),
)
def test_pages_make_up_the_listing_both_ways(
    shelf: Shelf, times: list[int], limit: int, order: Order, what: str
) -> None:
    async def test() -> None:
        owner = next(TENANTS)
        store = vector_store(owner)
        await shelf.add_store(store)
        ids = [await add(shelf, what, owner, store, created) for created in times]
        wanted = [id for _, id in sorted(zip(times, ids, strict=True), key=lambda pair: pair[0])]
        wanted = wanted if order is Order.ASC else wanted[::-1]
        assert await walked(shelf, what, owner, store, Page(limit=limit, order=order)) == wanted
        for number, id in enumerate(wanted):
            page = Page(limit=limit, order=order, before=id)
            found, more = await listed(shelf, what, owner, store, page)
            assert found == wanted[max(0, number - limit) : number]
            assert more is (number > limit)

    run(test())


async def add(shelf: Shelf, what: str, owner: str, store: VectorStore, created: int) -> str:
    if what == "stores":
        other = vector_store(f"{owner} stores", created_unix=created)
        await shelf.add_store(other)
        await shelf.change_store(other.tenant, other.id, lambda s: replace(s, name="changed"))
        return other.id
    file = stored_file(owner, created_unix=created)
    await shelf.add_file(file)
    if what == "store_files":
        await shelf.add_store_files([member(store, file, created_unix=created)])
    return file.id


async def listed(shelf: Shelf, what: str, owner: str, store: VectorStore, page: Page) -> tuple[list[str], bool]:
    if what == "files":
        files, more = await shelf.files(owner, page)
        return [file.id for file in files], more
    if what == "stores":
        stores, more = await shelf.stores(f"{owner} stores", page)
        return [found.id for found in stores], more
    members, more = await shelf.store_files(owner, store.id, page)
    return [found.file for found in members], more


async def walked(shelf: Shelf, what: str, owner: str, store: VectorStore, page: Page) -> list[str]:
    ids: list[str] = []
    more = True
    while more:
        found, more = await listed(shelf, what, owner, store, page)
        assert len(found) <= page.limit
        ids += found
        page = replace(page, after=ids[-1]) if ids else page
    return ids


def test_listings_are_narrowed(shelf: Shelf, tenant: str) -> None:
    async def test() -> None:
        files = [stored_file(tenant, purpose=purpose) for purpose in ("batch", "assistants", "batch")]
        store = vector_store(tenant)
        members = await attached(shelf, store, files)
        await read(shelf, members[1], "d1")
        found, more = await shelf.files(tenant, Page(limit=1), purpose="batch")
        assert (found, more) == ((files[2],), True)
        found, more = await shelf.files(tenant, Page(after=files[1].id), purpose="batch")
        assert (found, more) == ((files[0],), False)
        both = await shelf.files(tenant, Page(after=files[2].id, before=files[0].id))
        assert both == ((files[1],), False)
        running, _ = await shelf.store_files(tenant, store.id, Page(), status=IngestStatus.IN_PROGRESS)
        assert [file.file for file in running] == [files[2].id, files[0].id]
        rest, _ = await shelf.store_files(
            tenant, store.id, Page(after=files[1].id), status=IngestStatus.IN_PROGRESS
        )  # the cursor was completed since
        assert [file.file for file in rest] == [files[0].id]
        assert (await shelf.store_files(tenant, store.id, Page(), batch="vsfb_none"))[0] == ()
        with pytest.raises(NotFound):
            await shelf.store_files(tenant, store.id, Page(after=files[0].id), batch="vsfb_none")
        for cursor in ("file-unknown", "", "'; DROP TABLE files; --"):
            with pytest.raises(NotFound):
                await shelf.files(tenant, Page(after=cursor))

    run(test())
