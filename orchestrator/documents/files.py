"""Files: content in the object store, facts in the catalogue. A file is known once both have it, never before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection

from orchestrator.crash import crash_point
from orchestrator.documents.checks import unknown
from orchestrator.documents.fields import NewFile
from orchestrator.documents.ids import is_id, new_id
from orchestrator.documents.keys import file_key
from orchestrator.documents.model import Page, StoredFile, StoreFile
from orchestrator.documents.ports import ObjectStore, Shelf
from orchestrator.documents.spool import SpoolFile
from orchestrator.errors import ApiError, NotFound, ObjectsUnavailable

EXPIRED_MAX = 100
"""Files forgotten in one pass."""
PRESIGNED_S = 300


class Files:
    """The tenants' files.

    Each method that names a file raises `ApiError` 404 when the tenant has no such; each may raise
    `errors.ObjectsUnavailable`, or the catalogue's own error, and has then changed nothing that anybody sees.
    """

    def __init__(
        self,
        *,
        shelf: Shelf,
        objects: ObjectStore,
        unix: Callable[[], float],
        left: Callable[[Collection[StoreFile]], None],
    ) -> None:
        """`left` is told which members vector stores have lost with a file."""
        self._shelf = shelf
        self._objects = objects
        self._unix = unix
        self._left = left

    async def create(self, tenant: str, new: NewFile, content: SpoolFile) -> StoredFile:
        """Keep a file whose content is whole in the spool. Durable on return."""
        file = self.made(tenant, new_id("file"), new, content)
        await self.store(file, content)
        await self._shelf.add_file(file)
        crash_point("upload.after_record")
        return file

    def made(self, tenant: str, id: str, new: NewFile, content: SpoolFile) -> StoredFile:
        """The facts of a file that comes to be now."""
        now = int(self._unix())
        return StoredFile(
            id=id,
            tenant=tenant,
            filename=new.filename,
            purpose=new.purpose,
            bytes=content.bytes,
            content_type=new.content_type,
            sha256=content.sha256,
            created_unix=now,
            expires_unix=None if new.expires_after_s is None else now + new.expires_after_s,
        )

    async def store(self, file: StoredFile, content: SpoolFile) -> None:
        """Put its content where the file will find it; nobody sees it before the catalogue knows the file."""
        crash_point("upload.after_spool")
        key = file_key(file.tenant, file.id)
        await self._objects.put(key, content.path, sha256=file.sha256, content_type=file.content_type)
        crash_point("upload.after_put")

    async def get(self, tenant: str, id: str) -> StoredFile:
        """The file. One whose time is over is gone, cleared away or not."""
        file = await self._shelf.file(tenant, id) if is_id("file", id) else None
        if file is None or (file.expires_unix is not None and file.expires_unix <= self._unix()):
            raise _unknown(id)
        return file

    async def list(self, tenant: str, page: Page, *, purpose: str | None) -> tuple[tuple[StoredFile, ...], bool]:
        """A listing, and whether more follow. Raises `ApiError` 400 for a cursor that is not in it."""
        try:
            return await self._shelf.files(tenant, page, purpose=purpose)
        except NotFound:
            raise ApiError(400, "after is no file of this listing", code="invalid_value", param="after") from None

    async def remove(self, tenant: str, id: str) -> None:
        """Forget a file, wherever it is referred to. Its content is cleared away later."""
        await self.get(tenant, id)
        if not await self._forget(tenant, id):
            raise _unknown(id)

    async def read(self, file: StoredFile, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`; the first of them are there on return."""
        stream = self._objects.read(file_key(file.tenant, file.id), start, end)
        try:
            first = await anext(stream, b"")
        except NotFound:
            await self.get(file.tenant, file.id)  # deleted meanwhile
            raise ObjectsUnavailable(
                f"the content of {file.id} is missing: `orchestrator doctor` looks for it"
            ) from None
        return _joined(first, stream)

    async def presign(self, file: StoredFile) -> tuple[str, int]:
        """A URL of its content, and when it ends (seconds since 1970). Raises `ApiError` 400 where there is none."""
        expires_unix = int(self._unix()) + PRESIGNED_S
        url = await self._objects.presign(
            file_key(file.tenant, file.id),
            seconds=PRESIGNED_S,
            filename=file.filename,
            content_type=file.content_type,
        )
        if url is None:
            message = "this server keeps files in a folder, which has no presigned URLs; get the content itself"
            raise ApiError(400, message, code="presigned_unavailable", param="presigned")
        return url, expires_unix

    async def expire(self, now_unix: int) -> int:
        """Forget files whose time is over, at most `EXPIRED_MAX`; how many."""
        expired = await self._shelf.expired_files(now_unix, EXPIRED_MAX)
        for file in expired:
            await self._forget(file.tenant, file.id)
        return len(expired)

    async def _forget(self, tenant: str, id: str) -> bool:
        """Remove it and its membership of stores at once, and tell; whether it was there."""
        members = await self._shelf.memberships(tenant, id)
        if await self._shelf.remove_file(tenant, id) is None:
            return False
        self._left(members)
        return True


def _unknown(id: str) -> ApiError:
    return unknown("File object", id, "file_id", code="file_not_found")


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for piece in rest:
        yield piece
