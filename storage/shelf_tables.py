"""How documents lie in the catalogue's tables: a column for each field of their values, and their `serial`.

What takes a `connection` runs as a job of `storage.catalog.Catalog`, and blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import msgspec

from orchestrator.documents.model import (
    Chunking,
    FileBatch,
    IngestStatus,
    LastError,
    Part,
    StoredFile,
    StoreFile,
    Upload,
    UploadStatus,
    VectorStore,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    Connection: TypeAlias = DuckDBPyConnection

Value: TypeAlias = StoredFile | Upload | Part | VectorStore | StoreFile | FileBatch
T = TypeVar("T", bound=Value)

ROWS_MAX = 1000
"""Rows of one statement."""


class Table(Generic[T]):
    """The values of one kind."""

    def __init__(
        self, name: str, kind: type[T], *, key: str = "id", forms: Mapping[str, Callable[[Any], Any]] | None = None
    ) -> None:
        """`forms` makes a field's value of what its column holds, where that is not the value itself."""
        self.name = name
        self.key = key
        self._kind = kind
        self._forms = forms or {}
        self._names = [field.name for field in fields(kind)]
        self._columns = ", ".join(self._names)

    def all(self, connection: Connection, rest: str = "", values: Sequence[object] = ()) -> list[T]:
        """The values of ``SELECT … FROM table {rest}``."""
        return [value for value, _ in self.numbered(connection, rest, values)]

    def numbered(self, connection: Connection, rest: str = "", values: Sequence[object] = ()) -> list[tuple[T, int]]:
        """As `all`, each with its serial."""
        query = f"SELECT {self._columns}, serial FROM {self.name} {rest}"
        return [(self._value(row), row[-1]) for row in connection.execute(query, list(values)).fetchall()]

    def find(self, connection: Connection, key: object) -> tuple[T, int] | None:
        """The value with this key, and its serial."""
        found = self.numbered(connection, f"WHERE {self.key} = ?", [key])
        return found[0] if found else None

    def has(self, connection: Connection, key: object) -> bool:
        """Whether there is a value with this key."""
        return bool(connection.execute(f"SELECT 1 FROM {self.name} WHERE {self.key} = ?", [key]).fetchall())

    def insert(self, connection: Connection, values: Sequence[T], serials: Sequence[int] | None = None) -> None:
        """Add rows, whose keys are new; with fresh serials if none are given."""
        into = f"INSERT INTO {self.name} ({self._columns}, serial)"
        for begin in range(0, len(values), ROWS_MAX):
            rows = [self._row(value) for value in values[begin : begin + ROWS_MAX]]
            columns: list[list[object]] = [list(column) for column in zip(*rows, strict=True)]
            if serials is not None:
                columns.append(list(serials[begin : begin + ROWS_MAX]))
            places = ", ".join(["unnest(?)"] * len(columns)) + (", nextval('serials')" if serials is None else "")
            connection.execute(f"{into} SELECT {places}", columns)

    def update(self, connection: Connection, value: T, names: Sequence[str] | None = None) -> bool:
        """Give the row of this key the value's fields, all or those of `names`; whether there is such a row."""
        row = dict(zip(self._names, self._row(value), strict=True))
        key = row.pop(self.key)
        changed = {name: row[name] for name in names or row}
        assignments = ", ".join(f"{name} = ?" for name in changed)
        query = f"UPDATE {self.name} SET {assignments} WHERE {self.key} = ?"
        return count(connection, query, [*changed.values(), key]) > 0

    def _row(self, value: T) -> list[object]:
        return [_column(getattr(value, name)) for name in self._names]

    def _value(self, row: Sequence[Any]) -> T:
        given = dict(zip(self._names, row, strict=False))
        for name, form in self._forms.items():
            if given[name] is not None:
                given[name] = form(given[name])
        return self._kind(**given)


def count(connection: Connection, query: str, values: Sequence[object]) -> int:
    """Run a change; how many rows it met."""
    row = connection.execute(query, list(values)).fetchone()
    return int(row[0]) if row else 0


def next_serials(connection: Connection, number: int) -> list[int]:
    """Numbers that were never given before, in order."""
    rows = connection.execute("SELECT nextval('serials') FROM range(?)", [number]).fetchall()
    return [serial for (serial,) in rows]


def raise_serials(connection: Connection, above: int) -> None:
    """Give only numbers above `above` from now on."""
    row = connection.execute("SELECT last_value FROM duckdb_sequences() WHERE sequence_name = 'serials'").fetchone()
    start = max(above, row[0] or 0 if row else 0) + 1
    connection.execute(f"CREATE OR REPLACE SEQUENCE serials START {start:d}")


def _column(value: object) -> object:
    if isinstance(value, Mapping | Chunking | LastError):
        return msgspec.json.encode(value).decode()
    if isinstance(value, UploadStatus | IngestStatus):
        return value.value
    return value


FILES = Table("files", StoredFile)
UPLOADS = Table("uploads", Upload, forms={"status": UploadStatus})
PARTS = Table("parts", Part)
STORES = Table("stores", VectorStore, forms={"metadata": msgspec.json.decode})
STORE_FILES = Table(
    "store_files",
    StoreFile,
    key="entry",
    forms={
        "status": IngestStatus,
        "attributes": msgspec.json.decode,
        "chunking": msgspec.json.Decoder(Chunking).decode,
        "last_error": msgspec.json.Decoder(LastError).decode,
    },
)
BATCHES = Table("batches", FileBatch)
