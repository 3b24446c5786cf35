"""Vector stores and their files in the catalogue. Jobs: they block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.documents.model import FileBatch, FileCounts, IngestStatus, Page, StoreFile, VectorStore
from storage.shelf_garbage import leave, leave_embedder, name
from storage.shelf_listing import depart, listing
from storage.shelf_tables import BATCHES, FILES, STORE_FILES, STORES, next_serials

if TYPE_CHECKING:
    from storage.shelf_tables import Connection

FOUND = ("status", "last_error", "usage_bytes", "chunks", "passages")
"""What the job of a file finds."""


def add_store(connection: Connection, store: VectorStore) -> None:
    """See `ports.Shelf.add_store`."""
    if STORES.find(connection, store.id) is None:
        STORES.insert(connection, [store])
        _embedder_changed(connection, "", store.embedder)


def _embedder_changed(connection: Connection, left: str, taken: str) -> None:
    """Vectors of an embedder that no store has any more are garbage."""
    if taken:
        query = "INSERT INTO embedders SELECT $1 WHERE NOT EXISTS (SELECT 1 FROM embedders WHERE name = $1)"
        connection.execute(query, [taken])
    if left not in ("", taken) and not STORES.all(connection, "WHERE embedder = ?", [left]):
        leave_embedder(connection, left)


def change_store(
    connection: Connection, tenant: str, id: str, change: Callable[[VectorStore], VectorStore]
) -> VectorStore | None:
    """See `ports.Shelf.change_store`."""
    store = find_store(connection, tenant, id)
    if store is None:
        return None
    changed = change(store)
    STORES.update(connection, changed)
    _embedder_changed(connection, store.embedder, changed.embedder)
    return changed


def find_store(connection: Connection, tenant: str, id: str) -> VectorStore | None:
    """The tenant's store."""
    found = STORES.find(connection, id)
    return found[0] if found and found[0].tenant == tenant else None


def list_stores(connection: Connection, tenant: str, page: Page) -> tuple[tuple[VectorStore, ...], bool]:
    """See `ports.Shelf.stores`."""

    def find(id: str) -> tuple[VectorStore, int] | None:
        found = STORES.find(connection, id)
        return found if found and found[0].tenant == tenant else None

    return listing(connection, STORES, tenant, {"tenant": tenant}, page, find)


def all_stores(connection: Connection) -> tuple[VectorStore, ...]:
    """Of every tenant."""
    return tuple(STORES.all(connection, "ORDER BY created_unix, serial"))


def remove_store(connection: Connection, tenant: str, id: str) -> VectorStore | None:
    """See `ports.Shelf.remove_store`."""
    found = STORES.find(connection, id)
    if found is None or found[0].tenant != tenant:
        return None
    depart(connection, STORES, tenant, id, found)
    members = all_store_files(connection, id)
    connection.execute("DELETE FROM store_files WHERE store = ?", [id])
    connection.execute("DELETE FROM batches WHERE store = ?", [id])
    connection.execute("DELETE FROM stores WHERE id = ?", [id])
    leave(connection, members)
    return found[0]


def batches(connection: Connection, store: str) -> tuple[FileBatch, ...]:
    """The store's."""
    return tuple(BATCHES.all(connection, "WHERE store = ?", [store]))


def counts(connection: Connection, stores: Collection[str]) -> Mapping[str, tuple[FileCounts, int]]:
    """See `ports.Shelf.counts`."""
    query = (
        "SELECT store, status, count(*), sum(usage_bytes) FROM store_files"
        " WHERE store IN (SELECT unnest(?)) GROUP BY store, status"
    )
    states: dict[str, dict[str, int]] = {store: {} for store in stores}
    used = dict.fromkeys(stores, 0)
    for store, status, files, bytes_ in connection.execute(query, [list(stores)]).fetchall():
        states[store][status] = files
        used[store] += int(bytes_)
    return {store: (FileCounts(**states[store]), used[store]) for store in states}


def once_each(files: Sequence[StoreFile]) -> tuple[StoreFile, ...]:
    """Of the same file in the same store, the last."""
    return tuple({(file.store, file.file): file for file in files}.values())


def add_store_files(
    connection: Connection, files: Sequence[StoreFile], batch: FileBatch | None, entries: Sequence[int] | None
) -> tuple[StoreFile, ...] | None:
    """See `ports.Shelf.add_store_files`; None, and nothing is kept, when a store or file of them is not there.

    `entries` were had from `next_serials`; None: fresh ones.
    """
    files = once_each(files)
    if not _all_there(connection, files):
        return None
    entries = entries or next_serials(connection, len(files))
    added = [replace(file, entry=entry) for file, entry in zip(files, entries, strict=True)]
    replaced = _same(connection, files)
    connection.execute("DELETE FROM store_files WHERE entry IN (SELECT unnest(?))", [[old.entry for old in replaced]])
    STORE_FILES.insert(connection, added, entries)
    if batch is not None:
        BATCHES.insert(connection, [batch])
    leave(connection, replaced)
    return tuple(added)


def _all_there(connection: Connection, files: Sequence[StoreFile]) -> bool:
    stores = {store: find_store(connection, tenant, store) for store, tenant in {(f.store, f.tenant) for f in files}}
    wanted = {(file.file, file.tenant) for file in files}
    known = FILES.all(connection, "WHERE id IN (SELECT unnest(?))", [[file for file, _ in wanted]])
    return all(stores.values()) and wanted <= {(file.id, file.tenant) for file in known}


def _same(connection: Connection, files: Sequence[StoreFile]) -> list[StoreFile]:
    """The entries that have these files in these stores now."""
    places = {(file.store, file.file) for file in files}
    rows = STORE_FILES.all(connection, "WHERE file IN (SELECT unnest(?))", [[file for _, file in places]])
    return [row for row in rows if (row.store, row.file) in places]


def find_store_file(connection: Connection, tenant: str, store: str, file: str) -> StoreFile | None:
    """One membership."""
    found = _numbered(connection, store, file)
    return found[0] if found and found[0].tenant == tenant else None


def find_members(connection: Connection, tenant: str, store: str, files: Collection[str]) -> Mapping[str, StoreFile]:
    """See `ports.Shelf.members`."""
    rows = STORE_FILES.all(connection, "WHERE file IN (SELECT unnest(?))", [list(files)])
    return {row.file: row for row in rows if (row.tenant, row.store) == (tenant, store)}


def _numbered(connection: Connection, store: str, file: str) -> tuple[StoreFile, int] | None:
    rows = STORE_FILES.numbered(connection, "WHERE file = ?", [file])
    return next((row for row in rows if row[0].store == store), None)


def list_store_files(
    connection: Connection, tenant: str, store: str, page: Page, status: IngestStatus | None, batch: str | None
) -> tuple[tuple[StoreFile, ...], bool]:
    """See `ports.Shelf.store_files`. A cursor whose file has another status by now is still in the listing."""

    def find(file: str) -> tuple[StoreFile, int] | None:
        found = _numbered(connection, store, file)
        return found if found and found[0].tenant == tenant and batch in (None, found[0].batch) else None

    given = {"store": store, "tenant": tenant, "status": status and status.value, "batch": batch}
    return listing(connection, STORE_FILES, store, given, page, find)


def all_store_files(connection: Connection, store: str) -> tuple[StoreFile, ...]:
    """Every file of a store, by entry."""
    return tuple(STORE_FILES.all(connection, "WHERE store = ? ORDER BY entry", [store]))


def put_store_file(connection: Connection, file: StoreFile) -> bool:
    """See `ports.Shelf.put_store_file`. What it has read is garbage where the entry is gone and no other names it."""
    found = STORE_FILES.find(connection, file.entry)
    if found is None or found[0].status is IngestStatus.CANCELLED:
        leave(connection, [file])
        return False
    STORE_FILES.update(connection, file, FOUND)
    if file.passages:
        name(connection, file.tenant, file.passages)
    if found[0].passages != file.passages:
        leave(connection, [found[0]])
    return True


def set_attributes(connection: Connection, file: StoreFile) -> bool:
    """See `ports.Shelf.set_attributes`."""
    return STORE_FILES.update(connection, file, ["attributes"])


def remove_store_file(connection: Connection, tenant: str, store: str, file: str) -> StoreFile | None:
    """See `ports.Shelf.remove_store_file`."""
    found = _numbered(connection, store, file)
    if found is None or found[0].tenant != tenant:
        return None
    depart(connection, STORE_FILES, store, file, found)
    connection.execute("DELETE FROM store_files WHERE entry = ?", [found[0].entry])
    leave(connection, [found[0]])
    return found[0]


def unfinished(connection: Connection, limit: int) -> tuple[StoreFile, ...]:
    """See `ports.Shelf.unfinished`."""
    rest = "WHERE status = ? ORDER BY created_unix, serial LIMIT ?"
    return tuple(STORE_FILES.all(connection, rest, [IngestStatus.IN_PROGRESS.value, limit]))


def find_batch(connection: Connection, tenant: str, store: str, id: str) -> FileBatch | None:
    """The store's batch."""
    found = BATCHES.find(connection, id)
    return found[0] if found and (found[0].tenant, found[0].store) == (tenant, store) else None


def unfinished_of(connection: Connection, batch: str) -> list[tuple[StoreFile, int]]:
    """A batch's files in progress, with their serials."""
    rest = "WHERE batch = ? AND status = ?"
    return STORE_FILES.numbered(connection, rest, [batch, IngestStatus.IN_PROGRESS.value])


def batch_counts(connection: Connection, batch: str) -> FileCounts:
    """See `ports.Shelf.batch_counts`."""
    query = "SELECT status, count(*) FROM store_files WHERE batch = ? GROUP BY status"
    return FileCounts(**dict(connection.execute(query, [batch]).fetchall()))


def cancel_batch(connection: Connection, batch: FileBatch) -> None:
    """See `ports.Shelf.cancel_batch`."""
    connection.execute("UPDATE batches SET cancelled = true WHERE id = ?", [batch.id])
    cancelled, running = IngestStatus.CANCELLED.value, IngestStatus.IN_PROGRESS.value
    query = "UPDATE store_files SET status = ? WHERE batch = ? AND status = ?"
    connection.execute(query, [cancelled, batch.id, running])
