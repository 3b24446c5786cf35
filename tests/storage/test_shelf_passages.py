"""When passages and vectors become garbage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.documents.keys import passages_key, vectors_key
from orchestrator.documents.model import StoreFile
from orchestrator.documents.ports import Shelf
from tests.storage.catalog_writer import member, stored_file, vector_store
from tests.storage.shelved import attached, clear, opened, read, run

Leave = Callable[[Shelf, StoreFile], Awaitable[object]]
LEAVES: dict[str, Leave] = {
    "detached": lambda shelf, file: shelf.remove_store_file(file.tenant, file.store, file.file),
    "file removed": lambda shelf, file: shelf.remove_file(file.tenant, file.file),
    "store removed": lambda shelf, file: shelf.remove_store(file.tenant, file.store),
    "replaced": lambda shelf, file: shelf.add_store_files([replace(file, passages="")]),
    "read otherwise": lambda shelf, file: shelf.put_store_file(replace(file, passages="d2")),
}


@pytest.mark.parametrize("leave", LEAVES.values(), ids=list(LEAVES))
def test_passages_are_garbage_with_the_last_entry_that_names_them(tmp_path: Path, leave: Leave) -> None:
    async def test(shelf: Shelf) -> None:
        owners = ("acme", "acme", "other")
        members = []
        for owner in owners:
            (added,) = await attached(shelf, vector_store(owner, embedder="e1"), [stored_file(owner)])
            members.append(await read(shelf, added, "d1"))
        store = await shelf.store("acme", members[0].store)
        assert store is not None
        # vectors of the old embedder may still be there
        await shelf.change_store(store.tenant, store.id, lambda s: replace(s, embedder="e2"))
        derived = {passages_key("acme", "d1"), vectors_key("acme", "d1", "e1"), vectors_key("acme", "d1", "e2")}
        others = {passages_key("other", "d1"), vectors_key("other", "d1", "e1")}
        await leave(shelf, members[0])
        assert not await clear(shelf) & derived
        await leave(shelf, members[1])
        cleared = await clear(shelf)
        assert derived <= cleared and not others & cleared
        await leave(shelf, members[2])
        assert others <= await clear(shelf)

    with opened(tmp_path) as shelf:
        run(test(shelf))


def test_passages_that_are_named_again_are_no_garbage(tmp_path: Path) -> None:
    async def test(shelf: Shelf) -> None:
        store, file = vector_store(embedder="e1"), stored_file()
        (first,) = await attached(shelf, store, [file])
        await read(shelf, first, "d1")
        (again,) = await shelf.add_store_files([member(store, file)])
        assert passages_key("acme", "d1") in await shelf.garbage(10)
        await read(shelf, again, "d1")
        assert await shelf.garbage(10) == ()
        assert not await shelf.put_store_file(replace(first, passages="d1"))
        assert await shelf.garbage(10) == ()
        assert not await shelf.put_store_file(replace(first, passages="d3"))
        assert await shelf.garbage(10) == (passages_key("acme", "d3"), vectors_key("acme", "d3", "e1"))
        assert await shelf.garbage(1) == (passages_key("acme", "d3"),)

    with opened(tmp_path) as shelf:
        run(test(shelf))
