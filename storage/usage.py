"""Usage by key, model and hour, kept in the catalogue."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from orchestrator.metering.usage import COLUMNS, HOUR_S, Counts, Place, Query
from storage.catalog import Catalog

KEPT_DAYS = 400
"""So that a month can be compared with the same of the year before."""
_PLACE = ("key", "model", "hour")
_SUMS = ", ".join(f"{name} = {name} + excluded.{name}" for name in COLUMNS)


class DuckUsage:
    """`ports.UsageStore` in DuckDB."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def add(self, rows: Mapping[Place, Counts], serials: Mapping[str, int]) -> None:
        """See `ports.UsageStore.add`."""
        await self._catalog.run(lambda connection: _add(connection, rows, serials))

    async def rows(self, query: Query, *, rows_max: int) -> list[tuple[Place, Counts]]:
        """See `ports.UsageStore.rows`."""
        return await self._catalog.read(lambda cursor: _rows(cursor, query, rows_max))

    async def tokens(self, since_unix: float) -> dict[str, int]:
        """See `ports.UsageStore.tokens`."""
        query = "SELECT key, sum(prompt_tokens + completion_tokens)::BIGINT FROM usage WHERE hour >= ? GROUP BY key"
        since = [int(since_unix // HOUR_S)]
        return await self._catalog.read(lambda cursor: dict(cursor.execute(query, since).fetchall()))

    async def serials(self) -> dict[str, int]:
        """See `ports.UsageStore.serials`."""
        query = "SELECT source, serial FROM usage_serials ORDER BY hour"
        return await self._catalog.read(lambda cursor: dict(cursor.execute(query).fetchall()))


def _add(connection: Any, rows: Mapping[Place, Counts], serials: Mapping[str, int]) -> None:
    names = (*_PLACE, *COLUMNS)
    values = [[getattr(place, name) for place in rows] for name in _PLACE]
    values += [[getattr(counts, name) for counts in rows.values()] for name in COLUMNS]
    connection.execute(
        f"INSERT INTO usage ({', '.join(names)}) SELECT {', '.join('unnest(?)' for _ in names)}"
        f" ON CONFLICT (key, model, hour) DO UPDATE SET {_SUMS}",
        values,
    )
    newest = max(place.hour for place in rows)
    if serials:
        connection.execute(
            "INSERT INTO usage_serials SELECT unnest(?), unnest(?), ?"
            " ON CONFLICT (source) DO UPDATE SET serial = excluded.serial, hour = excluded.hour",
            [list(serials), list(serials.values()), newest],
        )
    for table in ("usage", "usage_serials"):
        connection.execute(f"DELETE FROM {table} WHERE hour < ?", [newest - KEPT_DAYS * 24])


def _rows(cursor: Any, query: Query, rows_max: int) -> list[tuple[Place, Counts]]:
    """Always by model, too: which of them a key may see is not the database's business."""
    key = "key" if "key" in query.by else "''"
    hour = "hour" if "hour" in query.by else "hour - hour % 24" if "day" in query.by else "0"
    where: dict[str, Any] = {"hour >= ?": query.first_hour, "hour < ?": query.end_hour}
    asked = {"key = ?": query.key, "model = ?": query.model}
    where |= {condition: value for condition, value in asked.items() if value is not None}
    sums = ", ".join(f"sum({name})" for name in COLUMNS)
    found = cursor.execute(
        f"SELECT {key}, model, {hour}, {sums} FROM usage WHERE {' AND '.join(where)} GROUP BY ALL LIMIT ?",
        [*where.values(), rows_max],
    )
    return [_row(row) for row in found.fetchall()]


def _row(row: tuple[Any, ...]) -> tuple[Place, Counts]:
    """Sums of BIGINT come as HUGEINT: `int` all the same."""
    return Place(key=row[0], model=row[1], hour=row[2]), Counts(**dict(zip(COLUMNS, row[3:], strict=True)))


def table_file(columns: Mapping[str, Collection[Any]], kind: str) -> bytes:
    """A table as a file's content, csv or parquet, from its columns by name. Blocks."""
    import duckdb

    names = ", ".join(f'unnest(?) AS "{name}"' for name in columns)
    with tempfile.TemporaryDirectory() as folder, duckdb.connect(":memory:") as connection:
        file = Path(folder) / "table"
        connection.execute(f"CREATE TABLE found AS SELECT {names}", [list(values) for values in columns.values()])
        connection.execute(f"COPY found TO '{file}' (FORMAT {kind})")
        return file.read_bytes()
