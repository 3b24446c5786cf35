"""The catalogue's facts one by one, as their records in the object store name them. Jobs: they block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.documents.keys import record_key
from orchestrator.documents.model import FileBatch, Part, StoredFile, StoreFile, Upload, VectorStore
from storage.shelf_tables import (
    BATCHES,
    FILES,
    PARTS,
    STORE_FILES,
    STORES,
    UPLOADS,
    Table,
    Value,
    count,
    next_serials,
    raise_serials,
)

if TYPE_CHECKING:
    from storage.shelf_tables import Connection

KINDS: dict[str, type[Value]] = {
    "file": StoredFile,
    "upload": Upload,
    "part": Part,
    "store": VectorStore,
    "store_file": StoreFile,
    "batch": FileBatch,
}
"""By the name that stands in records and their keys."""
_TABLES: dict[str, Table[Any]] = {
    "file": FILES,
    "upload": UPLOADS,
    "part": PARTS,
    "store": STORES,
    "store_file": STORE_FILES,
    "batch": BATCHES,
}
_NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Name:
    """Which fact. The `id` of a store's file is ``store.file``, that of a part ``upload.part``."""

    kind: str
    tenant: str
    id: str

    @property
    def key(self) -> str:
        """Where its record is."""
        return record_key(self.tenant, self.kind, self.id)

    @property
    def lock(self) -> str:
        """Its changes, and those of what hangs on it, come one at a time: of a file, a store, an upload or a batch."""
        first, _, second = self.id.partition(".")
        return second if self.kind == "store_file" else first


@dataclass(frozen=True, slots=True)
class Fact:
    """A value of the catalogue, and its place among those created in the same second."""

    name: Name
    value: Value
    serial: int


def named(value: Value, tenant: str = "") -> Name:
    """The name of a value. `tenant` is that of the upload, for a part, which does not tell it."""
    kind = _NAMES[type(value)]
    if isinstance(value, Part):
        return Name(kind, tenant, f"{value.upload}.{value.id}")
    if isinstance(value, StoreFile):
        return Name(kind, value.tenant, f"{value.store}.{value.file}")
    return Name(kind, value.tenant, value.id)


def find(connection: Connection, name: Name) -> Fact | None:
    """What the catalogue says of it."""
    first, _, second = name.id.partition(".")
    if name.kind == "store_file":
        rows = STORE_FILES.numbered(connection, "WHERE file = ?", [second])
        member = next((row for row in rows if row[0].store == first), None)
        return Fact(name, *member) if member else None
    found = _TABLES[name.kind].find(connection, second or first)
    return Fact(name, *found) if found else None


def fresh(connection: Connection) -> bool:
    """Whether `refill` was never called."""
    return not connection.execute("SELECT 1 FROM filled").fetchall()


def turn(connection: Connection) -> int:
    """See `DuckShelf.turn`."""
    return count(connection, "SELECT coalesce(max(turn), 0) FROM owner", [])


def put_turn(connection: Connection, turn: int) -> None:
    """See `DuckShelf.put_turn`."""
    connection.execute("DELETE FROM owner")
    connection.execute("INSERT INTO owner VALUES (?)", [turn])


def doubt(connection: Connection, names: Sequence[Name]) -> Sequence[int]:
    """See `DuckShelf.doubt`."""
    rows = [(name.kind, name.tenant, name.id) for name in names]
    columns = [list(column) for column in zip(*rows, strict=True)]
    connection.execute("INSERT INTO doubts SELECT unnest(?), unnest(?), unnest(?)", columns)
    return next_serials(connection, len(names))


def sure(connection: Connection, names: Sequence[Name]) -> None:
    """See `DuckShelf.sure`."""
    connection.execute("DELETE FROM doubts WHERE id IN (SELECT unnest(?))", [[name.id for name in names]])


def doubtful(connection: Connection, limit: int) -> tuple[Name, ...]:
    """See `DuckShelf.doubtful`."""
    rows = connection.execute("SELECT DISTINCT kind, tenant, id FROM doubts LIMIT ?", [limit]).fetchall()
    return tuple(Name(*row) for row in rows)


def refill(connection: Connection, facts: Sequence[Fact], above: int) -> None:
    """See `DuckShelf.refill`."""
    for name in (*(table.name for table in _TABLES.values()), "embedders", "garbage", "doubts", "filled"):
        connection.execute(f"DELETE FROM {name}")
    raise_serials(connection, above)
    for kind, table in _TABLES.items():
        chosen = sorted((fact for fact in facts if fact.name.kind == kind), key=lambda fact: fact.serial)
        values = [fact.value for fact in chosen]
        if kind == "store_file":
            values = list(_anew(values, next_serials(connection, len(values))))
        table.insert(connection, values, [fact.serial for fact in chosen])
    connection.execute("INSERT INTO filled VALUES (true)")
    connection.execute("INSERT INTO embedders SELECT DISTINCT embedder FROM stores WHERE embedder <> ''")


def _anew(files: Iterable[Any], entries: Iterable[int]) -> Iterable[StoreFile]:
    """Under fresh entries: an index may still hold other files under old ones."""
    return (replace(file, entry=entry) for file, entry in zip(files, entries, strict=True))
