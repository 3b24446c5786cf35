"""Listings by OpenAI's cursors, ordered by creation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.documents.model import Order, Page
from orchestrator.errors import NotFound
from storage.shelf_tables import T, Table

if TYPE_CHECKING:
    from storage.shelf_tables import Connection

DEPARTED_MAX = 10_000
"""Places of removed items that are remembered."""
Find = Callable[[str], tuple[T, int] | None]
"""A cursor's row, by its id, if it is in the listing."""


@dataclass(frozen=True, slots=True)
class _Conditions:
    """What follows WHERE, and its values."""

    texts: tuple[str, ...]
    values: tuple[object, ...]

    def beyond(self, place: tuple[int, int], sign: str) -> _Conditions:
        text = f"(created_unix {sign} ? OR (created_unix = ? AND serial {sign} ?))"
        return _Conditions((*self.texts, text), (*self.values, place[0], *place))


def depart(connection: Connection, table: Table[T], owner: str, id: str, removed: tuple[T, int]) -> None:
    """An item leaves its listing (of its tenant, or store: `owner`): cursors that name it go on from its place."""
    value, serial = removed
    row = [f"{table.name} {owner}", id, value.created_unix, serial]
    connection.execute("INSERT INTO departed VALUES (?, ?, ?, ?, nextval('serials'))", row)
    last = "SELECT number FROM departed ORDER BY number DESC OFFSET ? LIMIT 1"
    connection.execute(f"DELETE FROM departed WHERE number <= ({last})", [DEPARTED_MAX])


def listing(
    connection: Connection, table: Table[T], owner: str, given: Mapping[str, object], page: Page, find: Find[T]
) -> tuple[tuple[T, ...], bool]:
    """The rows whose columns are as `given` (None: any), and whether more follow in the direction asked.

    1. Neither cursor, or `after`: from there on, up to `before` if that is given too.
    2. `before` alone: those next to it on its other side, in the listing's order.

    Raises `errors.NotFound` for a cursor that `find` does not know, and that was not removed lately.
    """

    def place(id: str) -> tuple[int, int]:
        found = find(id)
        return (found[0].created_unix, found[1]) if found else _departed(connection, f"{table.name} {owner}", id)

    known = {name: value for name, value in given.items() if value is not None}
    conditions = _Conditions(tuple(f"{name} = ?" for name in known), tuple(known.values()))
    rising = page.order is Order.ASC
    if page.after is not None:
        conditions = conditions.beyond(place(page.after), ">" if rising else "<")
    if page.before is not None:
        conditions = conditions.beyond(place(page.before), "<" if rising else ">")
    backwards = page.before is not None and page.after is None
    rows = _rows(connection, table, conditions, rising=rising != backwards, limit=page.limit + 1)
    kept = rows[: page.limit]
    return tuple(reversed(kept) if backwards else kept), len(rows) > page.limit


def _rows(connection: Connection, table: Table[T], conditions: _Conditions, *, rising: bool, limit: int) -> Sequence[T]:
    direction = "ASC" if rising else "DESC"
    rest = f"WHERE {' AND '.join(conditions.texts)} ORDER BY created_unix {direction}, serial {direction} LIMIT ?"
    return table.all(connection, rest, [*conditions.values, limit])


def _departed(connection: Connection, listing: str, id: str) -> tuple[int, int]:
    query = "SELECT created_unix, serial FROM departed WHERE id = ? AND listing = ?"
    row = connection.execute(query, [id, listing]).fetchone()
    if row is None:
        raise NotFound(f"no such item in this listing: {id[:200]}")
    return row[0], row[1]
