"""Files and uploads in the catalogue. Jobs: they block."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from orchestrator.documents.keys import file_key, part_key
from orchestrator.documents.model import Page, Part, StoredFile, StoreFile, Upload, UploadStatus
from storage.shelf_garbage import leave, throw
from storage.shelf_listing import depart, listing
from storage.shelf_tables import FILES, PARTS, STORE_FILES, UPLOADS

if TYPE_CHECKING:
    from storage.shelf_tables import Connection


def add_file(connection: Connection, file: StoredFile) -> None:
    """Keep it, unless it is there."""
    if not FILES.has(connection, file.id):
        FILES.insert(connection, [file])


def find_file(connection: Connection, tenant: str, id: str) -> StoredFile | None:
    """The tenant's file."""
    found = FILES.find(connection, id)
    return found[0] if found and found[0].tenant == tenant else None


def find_files(connection: Connection, tenant: str, ids: Collection[str]) -> Mapping[str, StoredFile]:
    """See `ports.Shelf.files_of`."""
    rows = FILES.all(connection, "WHERE id IN (SELECT unnest(?))", [list(ids)])
    return {row.id: row for row in rows if row.tenant == tenant}


def list_files(
    connection: Connection, tenant: str, page: Page, purpose: str | None
) -> tuple[tuple[StoredFile, ...], bool]:
    """See `ports.Shelf.files`."""

    def find(id: str) -> tuple[StoredFile, int] | None:
        found = FILES.find(connection, id)
        return found if found and found[0].tenant == tenant else None

    return listing(connection, FILES, tenant, {"tenant": tenant, "purpose": purpose}, page, find)


def remove_file(connection: Connection, tenant: str, id: str) -> StoredFile | None:
    """See `ports.Shelf.remove_file`."""
    found = FILES.find(connection, id)
    if found is None or found[0].tenant != tenant:
        return None
    depart(connection, FILES, tenant, id, found)
    members = STORE_FILES.numbered(connection, "WHERE file = ?", [id])
    for member in members:
        depart(connection, STORE_FILES, member[0].store, id, member)
    connection.execute("DELETE FROM store_files WHERE file = ?", [id])
    connection.execute("DELETE FROM files WHERE id = ?", [id])
    throw(connection, [file_key(tenant, id)])
    leave(connection, [member for member, _ in members])
    return found[0]


def memberships(connection: Connection, tenant: str, file: str) -> tuple[StoreFile, ...]:
    """The stores' files that are this file."""
    return tuple(member for member in STORE_FILES.all(connection, "WHERE file = ?", [file]) if member.tenant == tenant)


def expired_files(connection: Connection, now_unix: int, limit: int) -> tuple[StoredFile, ...]:
    """See `ports.Shelf.expired_files`. The longest over first."""
    rest = "WHERE expires_unix <= ? ORDER BY expires_unix LIMIT ?"
    return tuple(FILES.all(connection, rest, [now_unix, limit]))


def used_bytes(connection: Connection, tenant: str) -> int:
    """The sum of the tenant's files."""
    row = connection.execute("SELECT sum(bytes) FROM files WHERE tenant = ?", [tenant]).fetchone()
    return int(row[0] or 0) if row else 0


def put_upload(connection: Connection, upload: Upload) -> None:
    """Keep it, or its new state."""
    if not UPLOADS.update(connection, upload):
        UPLOADS.insert(connection, [upload])


def find_upload(connection: Connection, tenant: str, id: str) -> Upload | None:
    """The tenant's upload."""
    found = UPLOADS.find(connection, id)
    return found[0] if found and found[0].tenant == tenant else None


def tenant_of(connection: Connection, upload: str) -> str:
    """Whose upload it is; empty: nobody's."""
    found = UPLOADS.find(connection, upload)
    return found[0].tenant if found else ""


def add_part(connection: Connection, part: Part) -> bool:
    """Keep it if its upload is pending; else its content is garbage. Whether it was kept."""
    found = UPLOADS.find(connection, part.upload)
    if found is None:
        return False
    if found[0].status is not UploadStatus.PENDING:
        throw(connection, [part_key(found[0].tenant, part.upload, part.id)])
        return False
    if not PARTS.has(connection, part.id):
        PARTS.insert(connection, [part])
    return True


def parts(connection: Connection, upload: str) -> tuple[Part, ...]:
    """In order of creation."""
    return tuple(PARTS.all(connection, "WHERE upload = ? ORDER BY created_unix, serial", [upload]))


def complete_upload(connection: Connection, upload: Upload, file: StoredFile) -> bool:
    """See `ports.Shelf.complete_upload`. False, and the content is garbage, when it has ended otherwise meanwhile."""
    current = find_upload(connection, upload.tenant, upload.id)
    if current is not None and current.file_id == file.id:
        return True
    if current is None or current.status is not UploadStatus.PENDING:
        throw(connection, [file_key(file.tenant, file.id)])
        return False
    add_file(connection, file)
    end_upload(connection, upload)
    return True


def end_upload(connection: Connection, upload: Upload) -> None:
    """See `ports.Shelf.end_upload`. Nothing, if it has ended before."""
    current = find_upload(connection, upload.tenant, upload.id)
    if current is None or current.status is not UploadStatus.PENDING:
        return
    UPLOADS.update(connection, upload)
    throw(connection, [part_key(upload.tenant, upload.id, part.id) for part in parts(connection, upload.id)])
    connection.execute("DELETE FROM parts WHERE upload = ?", [upload.id])


def expired_uploads(connection: Connection, now_unix: int, limit: int) -> tuple[Upload, ...]:
    """See `ports.Shelf.expired_uploads`. The longest over first."""
    rest = "WHERE status = ? AND expires_unix <= ? ORDER BY expires_unix LIMIT ?"
    return tuple(UPLOADS.all(connection, rest, [UploadStatus.PENDING.value, now_unix, limit]))
