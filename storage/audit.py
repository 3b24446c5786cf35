"""Compares the catalogue, the object store and the indexes. Changes nothing; `storage.mending` does.

Only for a stopped service: what is under way would be taken for a fault. Memory: some hundred bytes for each fact of
the catalogue, and nothing for what lies in the object store beside that.

What nothing names is garbage only when it is older than `YOUNG_S`, and never when a record names it: then it is the
catalogue that has lost something.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.documents.keys import RECORDS, SERIALS, file_key, part_key, passages_key
from orchestrator.documents.model import IngestStatus, StoreFile, VectorStore
from orchestrator.documents.ports import ObjectFacts, ObjectStore, Shelves
from orchestrator.errors import NotFound
from storage.record_form import RECORD_BYTES_MAX, decode, each
from storage.shelf_facts import Fact, Name, doubtful, named
from storage.shelf_stores import FOUND, all_stores
from storage.shelf_tables import BATCHES, FILES, PARTS, STORE_FILES, STORES, UPLOADS, Table, Value
from storage.shelves import VERSION as SHELVES_VERSION

if TYPE_CHECKING:
    from storage.catalog import Catalog
    from storage.shelf_tables import Connection

CONTENT = "content/"
DERIVED = "derived/"
YOUNG_S = 3600
"""What is younger may be part of something that is not finished."""
DOUBTS_MAX = 1_000_000
"""Of facts that the catalogue does not have any more."""
GROUP_RECORDS = 256
"""Records read before they are compared."""

TABLES: Mapping[str, Table[Any]] = {
    "file": FILES,
    "upload": UPLOADS,
    "part": PARTS,
    "store": STORES,
    "store_file": STORE_FILES,
    "batch": BATCHES,
}
"""By the kinds of `storage.shelf_facts.Name`."""

Step = Callable[[str, int], None]
"""Told what is looked at, and how many of it so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pile:
    """Objects that nothing names."""

    keys: tuple[str, ...] = ()
    bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordsFound:
    """The records against the catalogue."""

    facts: int
    """What the catalogue has."""
    records: int
    differing: tuple[Name, ...]
    """Facts with no record, or with one that says something else."""
    unknown: tuple[str, ...]
    """Keys of records of which the catalogue knows nothing, and should."""
    unreadable: tuple[str, ...]
    """Likewise, and they can't be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentFound:
    """What was uploaded against the catalogue."""

    files: int
    bytes: int
    lost: tuple[str, ...]
    """Ids of files with no object."""
    resized: tuple[str, ...]
    """Ids of files whose object has another size."""
    lost_uploads: tuple[str, ...]
    """Ids of pending uploads of which a part has no object, or one of another size."""
    garbage: Pile


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexFound:
    """One store's index against the catalogue."""

    store: VectorStore
    lacking: int
    """Completed files that are not in it; the service puts them in when it starts."""
    stray: frozenset[int]
    """Entries that the store does not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DerivedFound:
    """What was read of documents against the catalogue."""

    read: int
    """Completed files of stores."""
    unread: tuple[StoreFile, ...]
    """Those whose passages are not there."""
    garbage: Pile


def catalog_fault(path: Path) -> str:
    """Why the catalogue's file can't be read; empty when it can. It is only looked at. Blocks."""
    import duckdb

    try:
        duckdb.connect(str(path), read_only=True).close()
    except duckdb.Error as error:
        return str(error)
    return ""


def stray_indexes(root: Path, stores: Collection[str]) -> tuple[str, ...]:
    """The names of indexes below `root` that are of none of these stores. Blocks."""
    folder = root / SHELVES_VERSION
    found = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return tuple(sorted(name for name in found if name not in stores))


class Audit:
    """The comparisons. Each may raise `errors.ObjectsUnavailable` and `storage.catalog.CatalogError`."""

    def __init__(self, *, catalog: Catalog, objects: ObjectStore, now_unix: float, step: Step) -> None:
        self._catalog = catalog
        self._objects = objects
        self._now_unix = now_unix
        self._step = step

    async def records(self) -> RecordsFound:
        """Read every record, and look for one of every fact. What is in doubt is `RecordedShelf.mend`'s."""
        names = {name.key: name for name in await self._catalog.read(_names)}
        doubts = {name.key for name in await self._catalog.read(partial(doubtful, limit=len(names) + DOUBTS_MAX))}
        facts, count = len(names), 0
        differing: list[Name] = []
        unknown: list[str] = []
        unreadable: list[str] = []
        async for group in self._grouped(RECORDS):
            keys = [key for key in group if key != SERIALS and key not in doubts]
            found = await self._read(keys)
            known = {key: name for key in keys if (name := names.pop(key, None)) is not None}
            said = dict(zip(known, await self._catalog.read(partial(_facts, names=list(known.values()))), strict=True))
            differing += [known[key] for key in known if not _same(found[key], said[key])]
            unknown += [key for key in keys if key not in known and found[key] is not None]
            unreadable += [key for key in keys if key not in known and found[key] is None]
            count += len(keys)
            self._step("records", count)
        differing += [name for key, name in names.items() if key not in doubts]
        return RecordsFound(
            facts=facts,
            records=count,
            differing=tuple(differing),
            unknown=tuple(unknown),
            unreadable=tuple(unreadable),
        )

    async def content(self, records: RecordsFound) -> ContentFound:
        """Look for the object of every file and part, and for objects of nothing."""
        files = await self._catalog.read(_files)
        sizes = {key: size for key, (_, size) in files.items()}
        parts = await self._catalog.read(_parts)
        sizes |= {key: size for key, (_, size) in parts.items()}
        total, named = sum(size for _, size in files.values()), {*map(_content_of, _strangers(records))}
        wrong, garbage = set[str](), _Heap(self._now_unix, await self._catalog.read(_waiting))
        async for found in self._listed(CONTENT):
            size = sizes.pop(found.key, None)
            if size is None and found.key not in named:
                garbage.add(found)
            elif size is not None and size != found.bytes:
                wrong.add(found.key)
        return ContentFound(
            files=len(files),
            bytes=total,
            lost=tuple(files[key][0] for key in sizes if key in files),
            resized=tuple(sorted(files[key][0] for key in wrong if key in files)),
            lost_uploads=tuple(sorted({parts[key][0] for key in {*sizes, *wrong} if key in parts})),
            garbage=garbage.pile(),
        )

    async def derived(self) -> DerivedFound:
        """Look for the passages of every completed file of a store, and for passages and vectors of nothing."""
        named = {passages_key(*row): row[1] for row in await self._catalog.read(_digests)}
        missing, garbage = set(named), _Heap(self._now_unix, await self._catalog.read(_waiting))
        async for found in self._listed(DERIVED):
            passages = _passages_of(found.key)
            if passages not in named:
                garbage.add(found)
            missing.discard(found.key)
        gone = ["", *{named[key] for key in missing}]
        unread = await self._catalog.read(partial(_completed, digests=gone))
        return DerivedFound(
            read=await self._catalog.read(_count_completed),
            unread=tuple(
                file for file in unread if not file.passages or passages_key(file.tenant, file.passages) in missing
            ),
            garbage=garbage.pile(),
        )

    async def indexes(self, shelves: Shelves) -> tuple[IndexFound, ...]:
        """Open the index of every store. An index is a cache: opening a damaged one empties it."""
        found = []
        for count, store in enumerate(await self._catalog.read(all_stores), 1):
            index = await asyncio.to_thread(shelves.open, store.id, store.embedder, store.dimension)
            held = index.entries()
            entries = await self._catalog.read(partial(_entries, store=store.id))
            completed = frozenset(entry for entry, status in entries.items() if status == IngestStatus.COMPLETED)
            found.append(IndexFound(store=store, lacking=len(completed - held), stray=held - entries.keys()))
            self._step("indexes", count)
        return tuple(one for one in found if one.lacking or one.stray)

    async def _listed(self, prefix: str) -> AsyncIterator[ObjectFacts]:
        count = 0
        async for found in self._objects.list(prefix):
            count += 1
            if count % GROUP_RECORDS == 0:
                self._step(f"objects in {prefix}", count)
            yield found

    async def _grouped(self, prefix: str) -> AsyncIterator[list[str]]:
        group: list[str] = []
        async for found in self._objects.list(prefix):
            group.append(found.key)
            if len(group) == GROUP_RECORDS:
                yield group
                group = []
        yield group

    async def _read(self, keys: Collection[str]) -> dict[str, Fact | None]:
        """The facts of records; None for what is none."""
        found: dict[str, Fact | None] = {}

        async def read(key: str) -> None:
            try:
                found[key] = decode(key, await self._objects.read_bytes(key, bytes_max=RECORD_BYTES_MAX))
            except (NotFound, ValueError):
                found[key] = None

        await each(read, keys)
        return found


class _Heap:
    """Objects that nothing names, but for young ones and those that the service clears away by itself."""

    def __init__(self, now_unix: float, waiting: Collection[str]) -> None:
        self._before_unix = now_unix - YOUNG_S
        self._waiting = waiting
        self._keys: list[str] = []
        self._bytes = 0

    def add(self, found: ObjectFacts) -> None:
        """Nothing names it."""
        if found.modified_unix < self._before_unix and found.key not in self._waiting:
            self._keys.append(found.key)
            self._bytes += found.bytes

    def pile(self) -> Pile:
        """All of them."""
        return Pile(keys=tuple(self._keys), bytes=self._bytes)


def _same(record: Fact | None, known: Value | None) -> bool:
    """Whether a record says what the catalogue does. Entries are the catalogue's own, and what the job of a file in
    progress has found so far is only a hint, see `RecordedShelf.put_store_file`."""
    said = record.value if record is not None else None
    if isinstance(said, StoreFile) and isinstance(known, StoreFile):
        said = replace(said, entry=known.entry)
        if said.status is known.status is IngestStatus.IN_PROGRESS:
            said = replace(said, **{name: getattr(known, name) for name in FOUND})
    return said == known


def _strangers(records: RecordsFound) -> tuple[str, ...]:
    return records.unknown + records.unreadable


def _content_of(record: str) -> str:
    """The key of the content that a record of this key speaks of; empty: of none."""
    _, tenant, kind, id = record.removesuffix(".json").split("/", 3) if record.count("/") == 3 else ("", "", "", "")
    if kind == "file":
        return f"{CONTENT}{tenant}/files/{id}"
    return f"{CONTENT}{tenant}/uploads/{id.replace('.', '/')}" if kind == "part" else ""


def _passages_of(key: str) -> str:
    """The key of the passages that an object below `DERIVED` belongs to."""
    folder, _, name = key.rpartition("/")
    return (
        f"{folder.removesuffix('/vectors')}/passages/{name.partition('-')[0]}" if folder.endswith("/vectors") else key
    )


# --- jobs of the catalogue ---

_NAMES = """
SELECT 'file', tenant, id FROM files
UNION ALL SELECT 'upload', tenant, id FROM uploads
UNION ALL SELECT 'part', tenant, parts.upload || '.' || parts.id FROM parts JOIN uploads ON uploads.id = parts.upload
UNION ALL SELECT 'store', tenant, id FROM stores
UNION ALL SELECT 'store_file', tenant, store || '.' || file FROM store_files
UNION ALL SELECT 'batch', tenant, id FROM batches
"""


def _names(connection: Connection) -> list[Name]:
    return [Name(*row) for row in connection.execute(_NAMES).fetchall()]


def _facts(connection: Connection, names: Sequence[Name]) -> list[Value | None]:
    """What the catalogue says of each. A query for each kind: one for each name would take 20 times as long."""
    found: dict[str, Value] = {}
    for kind, table in TABLES.items():
        ids = [name.id.rpartition(".")[2] for name in names if name.kind == kind]
        column = "file" if kind == "store_file" else table.key
        for value in table.all(connection, f"WHERE {column} IN (SELECT unnest(?))", [ids]) if ids else ():
            found[f"{kind} {named(value).id}"] = value
    return [found.get(f"{name.kind} {name.id}") for name in names]


def _files(connection: Connection) -> dict[str, tuple[str, int]]:
    rows = connection.execute("SELECT tenant, id, bytes FROM files").fetchall()
    return {file_key(tenant, id): (id, size) for tenant, id, size in rows}


def _parts(connection: Connection) -> dict[str, tuple[str, int]]:
    query = "SELECT tenant, upload, parts.id, parts.bytes FROM parts JOIN uploads ON uploads.id = parts.upload"
    rows = connection.execute(query).fetchall()
    return {part_key(tenant, upload, id): (upload, size) for tenant, upload, id, size in rows}


def _waiting(connection: Connection) -> frozenset[str]:
    return frozenset(key for (key,) in connection.execute("SELECT key FROM garbage").fetchall())


def _digests(connection: Connection) -> list[tuple[str, str]]:
    return connection.execute("SELECT DISTINCT tenant, passages FROM store_files WHERE passages <> ''").fetchall()


def _completed(connection: Connection, digests: Sequence[str]) -> list[StoreFile]:
    rest = "WHERE status = ? AND passages IN (SELECT unnest(?))"
    return STORE_FILES.all(connection, rest, [IngestStatus.COMPLETED.value, list(digests)])


def _count_completed(connection: Connection) -> int:
    query = "SELECT count(*) FROM store_files WHERE status = ?"
    row = connection.execute(query, [IngestStatus.COMPLETED.value]).fetchone()
    return int(row[0]) if row else 0


def _entries(connection: Connection, store: str) -> dict[int, str]:
    return dict(connection.execute("SELECT entry, status FROM store_files WHERE store = ?", [store]).fetchall())
