"""Starts, cold and from sleep, kept in the catalogue: what Retry-After rests on."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.model import Phase, StartRecord
from storage.catalog import Catalog, CatalogError

STARTS_KEPT_MAX = 10_000
_COLUMNS = (
    "started_at, model, replica, spec, engine, seconds, outcome, error, pulled_bytes, weights_bytes, gpu_fixed_bytes,"
    " wake"
)


class DuckHistory:
    """`ports.History` in DuckDB."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def record(self, start: StartRecord) -> None:
        """See `ports.History.record`. A record that can't be written is dropped: it is a hint, not a fact."""
        self._catalog.submit(lambda connection: _insert(connection, start))

    async def starts(
        self, *, model: str | None = None, wake: bool | None = None, limit: int = 100
    ) -> tuple[StartRecord, ...]:
        """See `ports.History.starts`. Empty when the catalogue can't be read, which its `error` tells: what is
        remembered makes waits more exact, and nothing may fail for want of it."""
        try:
            return await self._catalog.run(lambda connection: _select(connection, model, wake, limit))
        except CatalogError:
            return ()


def _insert(connection: Any, start: StartRecord) -> None:
    connection.execute(
        f"INSERT INTO starts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            start.started_at_unix,
            start.model,
            start.replica,
            start.spec,
            start.engine,
            json.dumps({str(phase): spent for phase, spent in start.seconds.items()}),
            start.outcome,
            start.error,
            start.pulled_bytes,
            start.weights_bytes,
            start.gpu_fixed_bytes,
            start.wake,
        ],
    )
    oldest = "SELECT started_at FROM starts ORDER BY started_at DESC OFFSET ? LIMIT 1"
    connection.execute(f"DELETE FROM starts WHERE started_at <= ({oldest})", [STARTS_KEPT_MAX])


def _select(connection: Any, model: str | None, wake: bool | None, limit: int) -> tuple[StartRecord, ...]:
    asked = {"model": model, "wake": wake}
    given = {column: value for column, value in asked.items() if value is not None}
    where = "WHERE " + " AND ".join(f"{column} = ?" for column in given) if given else ""
    query = f"SELECT {_COLUMNS} FROM starts {where} ORDER BY started_at DESC LIMIT ?"
    return tuple(_start(row) for row in connection.execute(query, [*given.values(), limit]).fetchall())


def _start(row: tuple[Any, ...]) -> StartRecord:
    return StartRecord(
        started_at_unix=row[0],
        model=row[1],
        replica=row[2],
        spec=row[3],
        engine=row[4],
        seconds={Phase(phase): spent for phase, spent in json.loads(row[5]).items()},
        outcome=row[6],
        error=row[7],
        pulled_bytes=row[8],
        weights_bytes=row[9],
        gpu_fixed_bytes=row[10] or 0,
        wake=bool(row[11]),
    )
