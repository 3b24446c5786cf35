"""Jobs that read documents, over the real catalogue, object store and indexes, with an embedder that can be held up."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.documents.embedders import Embedders
from orchestrator.documents.gates import Gates
from orchestrator.documents.ids import new_id
from orchestrator.documents.ingest import Ingest
from orchestrator.documents.keys import file_key, vectors_key
from orchestrator.documents.model import (
    AttributeValue,
    Chunk,
    Chunking,
    IngestStatus,
    Passages,
    StoredFile,
    StoreFile,
    VectorStore,
)
from orchestrator.documents.ports import Embedder, Source
from orchestrator.documents.reading import Reading
from orchestrator.documents.reembed import Reembed
from orchestrator.documents.roster import Roster
from orchestrator.documents.store_fields import NewStore, Wanted
from orchestrator.documents.stores import Stores
from orchestrator.errors import EmbedderFailed, EmbedderUnavailable, Unreadable
from storage.catalog import Catalog
from storage.objects_folder import FolderObjects
from storage.shelf import DuckShelf
from storage.shelves import DiskShelves

if TYPE_CHECKING:
    from orchestrator.documents.ports import Vectors

TENANT = "ada"
WAIT_S = 20.0


class Words:
    """An extractor within the process: a chunk for each line."""

    version = "1"

    async def read(self, source: Source, chunking: Chunking, *, piece_tokens_max: int) -> Passages:
        """See `ports.Extractor.read`."""
        text = source.path.read_text()
        if "unreadable" in text:
            raise Unreadable("is no document")
        return Passages(chunks=tuple(Chunk(text=line) for line in text.splitlines()), title="")


class Numbers:
    """An embedder whose vectors follow from the texts; it can be held up, be away, and refuses some texts."""

    def __init__(self, name: str = "numbers", dimension: int = 8, piece_tokens_max: int = 100) -> None:
        self.name = name
        self.piece_tokens_max = piece_tokens_max
        self.dimension = dimension
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()
        self.fault: EmbedderUnavailable | None = None
        self.unprepared = ""
        self.texts: list[str] = []

    async def prepare(self) -> Path | None:
        """See `ports.Embedder.prepare`."""
        if self.unprepared:
            raise EmbedderUnavailable(self.unprepared, retry_after_s=1)
        return None

    async def embed(self, texts: Sequence[str], *, wait: bool) -> Vectors:
        """See `ports.Embedder.embed`."""
        self.asked.set()
        await self.open.wait()
        if self.fault is not None:
            raise self.fault
        if any("refused" in text for text in texts):
            raise EmbedderFailed("this text won't do")
        self.texts += texts
        rows = [np.frombuffer(hashlib.sha512(text.encode()).digest(), np.uint8)[: self.dimension] for text in texts]
        numbers = np.array(rows, np.float32) - 127.5
        units: Vectors = numbers / np.linalg.norm(numbers, axis=1, keepdims=True)
        return units

    async def aclose(self) -> None:
        """Nothing."""


def wanted(file: str, **attributes: AttributeValue) -> Wanted:
    """The file, to be put into a store."""
    return Wanted(file=file, attributes=attributes, chunking=Chunking())


class Lab:
    """All parts, and short ways to use them."""

    def __init__(self, folder: Path, embedder: Embedder | None) -> None:
        self.catalog = Catalog(folder / "catalog.duckdb")
        self.shelf = DuckShelf(self.catalog)
        self.objects = FolderObjects(folder / "objects")
        self.folder = folder
        self.shelves = DiskShelves(folder / "indexes")
        self.roster, gates = Roster(self.shelf), Gates()
        (folder / "reading").mkdir(exist_ok=True)
        self.reading = Reading(
            shelf=self.shelf,
            objects=self.objects,
            embedders=Embedders(embedder),
            make_extractor=lambda tokenizer: Words(),
            folder=folder / "reading",
        )
        self.now = 1000.0
        self.ingest = Ingest(
            shelf=self.shelf,
            shelves=self.shelves,
            roster=self.roster,
            reading=self.reading,
            gates=gates,
            monotonic=lambda: self.now,
            jobs_max=4,
        )
        self.reembed = Reembed(
            shelf=self.shelf,
            shelves=self.shelves,
            reading=self.reading,
            gates=gates,
            monotonic=lambda: self.now,
            changed=self.ingest.check,
        )
        self.stores = Stores(
            shelf=self.shelf, shelves=self.shelves, roster=self.roster, unix=time.time, jobs=self.ingest
        )

    async def store(self) -> VectorStore:
        """A new one."""
        return await self.stores.create(TENANT, NewStore())

    async def file(self, text: str) -> str:
        """A new file; its id."""
        id, data = new_id("file"), text.encode()
        await self.objects.put_bytes(file_key(TENANT, id), data)
        file = StoredFile(
            id=id,
            tenant=TENANT,
            filename=f"{id}.txt",
            purpose="assistants",
            bytes=len(data),
            content_type="text/plain",
            sha256=hashlib.sha256(data).hexdigest(),
            created_unix=0,
        )
        await self.shelf.add_file(file)
        return id

    async def put(self, store: VectorStore, *texts: str) -> list[str]:
        """New files in the store, not read yet; their ids."""
        ids = [await self.file(text) for text in texts]
        for id in ids:
            await self.stores.attach(TENANT, store.id, wanted(id))
        return ids

    async def status(self, store: VectorStore, id: str) -> IngestStatus:
        """Of the file in the store."""
        return (await self.member(store, id)).status

    async def member(self, store: VectorStore, id: str) -> StoreFile:
        """The file in the store."""
        found = await self.shelf.store_file(TENANT, store.id, id)
        assert found is not None
        return found

    async def words(self, store: VectorStore, query: str) -> set[int]:
        """The entries that words find now."""
        current = await self.shelf.store(TENANT, store.id)
        assert current is not None
        index = self.shelves.open(current.id, current.embedder, current.dimension)
        return {hit.entry for hit in index.words(query, allowed=None, limit=100)} & (
            await self.roster.of(store.id)
        ).keys()


@contextlib.asynccontextmanager
async def lab(folder: Path, embedder: Embedder | None) -> AsyncIterator[Lab]:
    """The parts, which are let go of at the end."""
    made = Lab(folder, embedder)
    try:
        yield made
    finally:
        made.shelves.close()
        await made.objects.aclose()
        await asyncio.to_thread(made.catalog.close)


@contextlib.asynccontextmanager
async def working(made: Lab) -> AsyncIterator[None]:
    """While it reads in the background."""
    job = asyncio.create_task(made.ingest.run())
    try:
        yield
    finally:
        job.cancel()
        await asyncio.wait([job])


def scenario(folder: Path, play: Callable[[Lab, Numbers], Awaitable[None]]) -> None:
    """Play it on a loop of its own, with the embedder."""

    async def run() -> None:
        embedder = Numbers()
        async with asyncio.timeout(WAIT_S), lab(folder, embedder) as made:
            await play(made, embedder)

    asyncio.run(run())


async def until_so(condition: Callable[[], Awaitable[bool]]) -> None:
    """Bounded by the scenario."""
    while not await condition():  # noqa: ASYNC110  # the catalogue tells nobody
        await asyncio.sleep(0.005)


def test_what_is_removed_while_it_is_read_leaves_nothing(tmp_path: Path) -> None:
    async def play(made: Lab, embedder: Numbers) -> None:
        store = await made.store()
        embedder.open.clear()
        (id,) = await made.put(store, "a line about ships")
        entry = (await made.member(store, id)).entry
        async with working(made):
            await embedder.asked.wait()
            await made.stores.detach(TENANT, store.id, id)
            embedder.open.set()
            (other,) = await made.put(store, "another about ships")
            await until_so(lambda: _is(made, store, other, IngestStatus.COMPLETED))
        assert entry not in await made.words(store, "ships")

    scenario(tmp_path, play)


async def _is(made: Lab, store: VectorStore, id: str, status: IngestStatus) -> bool:
    return await made.status(store, id) is status


def test_a_store_that_is_removed_while_its_files_are_read(tmp_path: Path) -> None:
    async def play(made: Lab, embedder: Numbers) -> None:
        store, other = await made.store(), await made.store()
        embedder.open.clear()
        await made.put(store, "one", "two", "three")
        async with working(made):
            await embedder.asked.wait()
            await made.stores.remove(TENANT, store.id)
            embedder.open.set()
            (id,) = await made.put(other, "four")
            await until_so(lambda: _is(made, other, id, IngestStatus.COMPLETED))
        await made.ingest.settle()
        assert other.id in {path.name for path in (made.folder / "indexes" / "v1").iterdir()}
        assert not (made.folder / "indexes" / "v1" / store.id).exists()

    scenario(tmp_path, play)


def test_a_file_replaced_while_it_is_read_is_found_once(tmp_path: Path) -> None:
    async def play(made: Lab, embedder: Numbers) -> None:
        store = await made.store()
        embedder.open.clear()
        (id,) = await made.put(store, "a line about ships")
        before = (await made.member(store, id)).entry
        async with working(made):
            await embedder.asked.wait()
            await made.stores.attach(TENANT, store.id, wanted(id, second=True))
            embedder.open.set()
            await until_so(lambda: _is(made, store, id, IngestStatus.COMPLETED))
        after = (await made.member(store, id)).entry
        assert after != before
        assert await made.words(store, "ships") == {after}

    scenario(tmp_path, play)


def test_a_cancelled_batch_is_not_read(tmp_path: Path) -> None:
    async def play(made: Lab, embedder: Numbers) -> None:
        store = await made.store()
        embedder.open.clear()
        ids = [await made.file(f"text {number}") for number in range(20)]
        batch = await made.stores.attach_batch(TENANT, store.id, [wanted(id) for id in ids])
        async with working(made):
            await embedder.asked.wait()
            await made.stores.cancel_batch(TENANT, store.id, batch.id)
            embedder.open.set()
            (id,) = await made.put(store, "after it")
            await until_so(lambda: _is(made, store, id, IngestStatus.COMPLETED))
        counts = await made.stores.batch_counts(batch)
        assert (counts.cancelled, counts.total) == (20, 20)
        assert await made.words(store, "text") == set()

    scenario(tmp_path, play)


def test_an_index_that_lacks_files_gets_them_without_the_embedder(tmp_path: Path) -> None:
    async def play(made: Lab, embedder: Numbers) -> None:
        store = await made.store()
        ids = await made.put(store, *(f"text of {number}" for number in range(10)))
        await made.ingest.settle()
        made.shelves.discard(store.id)
        embedder.fault = EmbedderUnavailable("gone", retry_after_s=60)
        made.ingest.check(store.id)
        await made.ingest.settle()
        assert len(await made.words(store, "text")) == len(ids)
        current = await made.shelf.store(TENANT, store.id)
        assert current is not None and current.embedder == "numbers"
        index = made.shelves.open(store.id, current.embedder, current.dimension)
        assert len(index.nearest(np.eye(8, dtype=np.float32)[0], allowed=None, limit=100)) == len(ids)

    scenario(tmp_path, play)


def test_a_fault_of_the_embedder_is_told_and_tried_again(tmp_path: Path) -> None:
    async def play(made: Lab, embedder: Numbers) -> None:
        store = await made.store()
        embedder.fault = EmbedderUnavailable("the server is down", retry_after_s=3)
        (id,) = await made.put(store, "text")
        await made.ingest.settle()
        assert await made.status(store, id) is IngestStatus.IN_PROGRESS
        assert "the server is down" in made.ingest.progress.cause
        embedder.fault = None
        made.now += 2
        await made.ingest.settle()
        assert await made.status(store, id) is IngestStatus.IN_PROGRESS
        made.now += 2
        await made.ingest.settle()
        assert await made.status(store, id) is IngestStatus.COMPLETED
        assert made.ingest.progress.cause == ""

    scenario(tmp_path, play)


def test_what_can_not_be_read_or_embedded_fails_alone(tmp_path: Path) -> None:
    async def play(made: Lab, embedder: Numbers) -> None:
        store = await made.store()
        good, unreadable, refused = await made.put(store, "text", "unreadable", "this one is refused")
        await made.ingest.settle()
        assert await made.status(store, good) is IngestStatus.COMPLETED
        for id, code in ((unreadable, "invalid_file"), (refused, "server_error")):
            member = await made.member(store, id)
            assert member.status is IngestStatus.FAILED
            assert member.last_error is not None and member.last_error.code == code

    scenario(tmp_path, play)


def test_the_same_content_is_embedded_once(tmp_path: Path) -> None:
    async def play(made: Lab, embedder: Numbers) -> None:
        first, second = await made.store(), await made.store()
        await made.put(first, "the same text")
        await made.ingest.settle()
        await made.put(second, "the same text")
        await made.ingest.settle()
        assert embedder.texts == ["the same text"]
        assert len(await made.words(second, "same")) == 1

    scenario(tmp_path, play)


def test_words_come_first_while_the_embedder_is_not_to_be_had(tmp_path: Path) -> None:
    async def play(made: Lab, embedder: Numbers) -> None:
        store = await made.store()
        embedder.unprepared = "no package index"
        await made.put(store, "early text", "a text that is refused")
        await made.ingest.settle()
        assert len(await made.words(store, "text")) == 2
        embedder.unprepared = ""
        await made.put(store, "late text")
        await made.ingest.settle()
        assert len(await made.words(store, "text")) == 3, "a store without vectors takes more files without"
        await made.reembed.move_all()
        current = await made.shelf.store(TENANT, store.id)
        assert current is not None and (current.embedder, current.dimension) == ("numbers", 8)
        assert len(await made.words(store, "text")) == 3
        index = made.shelves.open(store.id, "numbers", 8)
        assert len(index.nearest(np.eye(8, dtype=np.float32)[0], allowed=None, limit=9)) == 2
        await made.ingest.settle()
        assert len(await made.words(store, "text")) == 3

    scenario(tmp_path, play)


def test_a_smaller_window_has_files_cut_anew(tmp_path: Path) -> None:
    async def run() -> None:
        async with asyncio.timeout(WAIT_S), lab(tmp_path, Numbers("wide", 8, 100)) as made:
            store = await made.store()
            (id,) = await made.put(store, "some text")
            await made.ingest.settle()
            before = await made.member(store, id)
        async with asyncio.timeout(WAIT_S), lab(tmp_path, Numbers("narrow", 16, 10)) as made:
            await made.reembed.move_all()
            after = await made.member(store, id)
            assert after.passages != before.passages
            assert replace(after, passages="", usage_bytes=0) == replace(before, passages="", usage_bytes=0)
            assert vectors_key(TENANT, before.passages, "wide") in await made.shelf.garbage(10)
            assert (await made.words(store, "text")) == {after.entry}
            indexes = tmp_path / "indexes" / "v1" / store.id
            await made.reembed.move_all()
            assert len(list(indexes.iterdir())) > 1, "searches may still be in the old index"
            made.now += 1000
            await made.reembed.move_all()
            assert len(list(indexes.iterdir())) == 1

    asyncio.run(run())


def test_a_store_that_was_emptied_takes_the_new_embedder(tmp_path: Path) -> None:
    async def run() -> None:
        async with asyncio.timeout(WAIT_S), lab(tmp_path, Numbers("old")) as made:
            store = await made.store()
            (id,) = await made.put(store, "some text")
            await made.ingest.settle()
            await made.stores.detach(TENANT, store.id, id)
        async with asyncio.timeout(WAIT_S), lab(tmp_path, Numbers("new", 16)) as made:
            await made.reembed.move_all()
            await made.put(store, "other text")
            await made.ingest.settle()
            current = await made.shelf.store(TENANT, store.id)
            assert current is not None and (current.embedder, current.dimension) == ("new", 16)

    asyncio.run(run())


def test_no_file_is_completed_while_another_index_takes_over() -> None:
    async def run() -> None:
        gates, order = Gates(), list[str]()

        async def passes(name: str, leave: asyncio.Event) -> None:
            async with gates.passing("s"):
                order.append(f"{name} in")
                await leave.wait()
            order.append(f"{name} out")

        async def closes() -> None:
            async with gates.closed("s"):
                order.append("closed")

        leave = asyncio.Event()
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(passes("a", leave))
            await asyncio.sleep(0)
            tasks.create_task(closes())
            await asyncio.sleep(0)
            tasks.create_task(passes("b", leave))
            await asyncio.sleep(0)
            async with gates.passing("another"):
                leave.set()
        assert order == ["a in", "a out", "closed", "b in", "b out"]

    asyncio.run(run())
