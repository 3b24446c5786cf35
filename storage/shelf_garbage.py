"""Keys of objects that nothing names any more, until they are cleared away. Jobs of the catalogue: they block.

A document's passages and vectors are shared by all entries of its tenant that name their digest; they become garbage
with the last of those, the vectors of one embedder with the last store that has it, too. Vectors lie apart by embedder,
so a key is noted for every embedder that a store has: there need not be an object of that name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from orchestrator.documents.keys import passages_key, vectors_key
from orchestrator.documents.model import StoreFile

if TYPE_CHECKING:
    from storage.shelf_tables import Connection


def throw(connection: Connection, keys: Sequence[str]) -> None:
    """These are garbage from now on."""
    if keys:
        connection.execute("INSERT INTO garbage SELECT unnest(?), nextval('serials')", [list(keys)])


def oldest(connection: Connection, limit: int, but: str = "") -> tuple[str, ...]:
    """See `ports.Shelf.garbage`."""
    query = "SELECT key FROM garbage WHERE ? = '' OR NOT starts_with(key, ?) GROUP BY key ORDER BY min(serial) LIMIT ?"
    return tuple(key for (key,) in connection.execute(query, [but, but, limit]).fetchall())


def forget(connection: Connection, keys: Sequence[str]) -> None:
    """They are gone, or named again."""
    connection.execute("DELETE FROM garbage WHERE key IN (SELECT unnest(?))", [list(keys)])


def leave(connection: Connection, files: Iterable[StoreFile]) -> None:
    """These entries no longer name their passages: throw away those that no other entry names."""
    by_tenant: dict[str, set[str]] = {}
    for file in files:
        if file.passages:
            by_tenant.setdefault(file.tenant, set()).add(file.passages)
    for tenant, digests in by_tenant.items():
        lonely = digests - named(connection, list(digests), tenant)
        throw(connection, _keys(connection, tenant, sorted(lonely)))


def leave_embedder(connection: Connection, embedder: str) -> None:
    """No store has this embedder any more: throw away its vectors."""
    query = "SELECT DISTINCT tenant, passages FROM store_files WHERE passages <> ''"
    rows = connection.execute(query).fetchall()
    throw(connection, [vectors_key(tenant, digest, embedder) for tenant, digest in rows])
    connection.execute("DELETE FROM embedders WHERE name = ?", [embedder])


def name(connection: Connection, tenant: str, digest: str) -> None:
    """An entry names these passages: they are not garbage, if they were."""
    forget(connection, _keys(connection, tenant, [digest]))


def named(connection: Connection, digests: Sequence[str], tenant: str | None = None) -> frozenset[str]:
    """Which of these an entry names; of this tenant, if one is given."""
    query = (
        "SELECT DISTINCT passages FROM store_files"
        " WHERE passages IN (SELECT unnest(?)) AND tenant = coalesce(?, tenant)"
    )
    return frozenset(digest for (digest,) in connection.execute(query, [list(digests), tenant]).fetchall())


def _keys(connection: Connection, tenant: str, digests: Sequence[str]) -> list[str]:
    if not digests:
        return []
    embedders = [embedder for (embedder,) in connection.execute("SELECT name FROM embedders").fetchall()]
    keys = [passages_key(tenant, digest) for digest in digests]
    return keys + [vectors_key(tenant, digest, embedder) for digest in digests for embedder in embedders]
