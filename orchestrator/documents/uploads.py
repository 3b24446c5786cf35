"""Uploads: files that come in parts. Each part is an object until the upload ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from orchestrator.crash import crash_point
from orchestrator.documents.checks import bad, unknown
from orchestrator.documents.fields import Completion, NewFile, NewUpload
from orchestrator.documents.files import Files
from orchestrator.documents.ids import derived_id, is_id, new_id
from orchestrator.documents.keys import part_key
from orchestrator.documents.model import Part, StoredFile, Upload, UploadStatus
from orchestrator.documents.ports import ObjectStore, Shelf
from orchestrator.documents.spool import Spool, SpoolFile
from orchestrator.errors import ApiError, NotFound, ObjectsUnavailable

LIFE_S = 3600
"""As OpenAI's."""
PARTS_MAX = 10_000
EXPIRED_MAX = 100
"""Uploads ended in one pass."""


class Uploads:
    """The tenants' uploads. Each method that names one raises `ApiError` 404 when the tenant has no such, and 400 when
    its state does not allow it; `Files` says what else they raise."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        objects: ObjectStore,
        spool: Spool,
        files: Files,
        unix: Callable[[], float],
        bytes_max: int,
    ) -> None:
        self._shelf = shelf
        self._objects = objects
        self._spool = spool
        self._files = files
        self._unix = unix
        self._bytes_max = bytes_max

    async def create(self, tenant: str, new: NewUpload) -> Upload:
        """Begin one."""
        now = int(self._unix())
        upload = Upload(
            id=new_id("upload"),
            tenant=tenant,
            filename=new.file.filename,
            purpose=new.file.purpose,
            bytes=new.bytes,
            content_type=new.file.content_type,
            status=UploadStatus.PENDING,
            created_unix=now,
            expires_unix=now + LIFE_S,
            file_expires_after_s=new.file.expires_after_s,
        )
        await self._shelf.put_upload(upload)
        return upload

    async def pending(self, tenant: str, id: str) -> Upload:
        """The upload, if it takes parts now."""
        return self._checked(await self._get(tenant, id))

    async def add_part(self, upload: Upload, content: SpoolFile) -> Part:
        """Keep a part whose content is whole in the spool. Durable on return."""
        parts = await self._shelf.parts(upload.id)
        if len(parts) >= PARTS_MAX or sum(part.bytes for part in parts) + content.bytes > self._bytes_max:
            message = f"an upload has at most {PARTS_MAX} parts, and {self._bytes_max} bytes in all of them"
            raise ApiError(400, message, code="upload_too_large", param="data")
        part = Part(id=new_id("part"), upload=upload.id, bytes=content.bytes, created_unix=int(self._unix()))
        key = part_key(upload.tenant, upload.id, part.id)
        await self._objects.put(key, content.path, sha256=content.sha256)
        with _ended_meanwhile(upload):
            await self._shelf.add_part(part)
        return part

    async def complete(self, tenant: str, id: str, wanted: Completion) -> tuple[Upload, StoredFile | None]:
        """Make the file of these parts, in this order; durable on return.

        Again with the same parts, at once or later or after a crash, it gives the same file (None when that was
        deleted): the file's id follows from them.
        """
        upload = await self._get(tenant, id)
        file_id = derived_id("file", id, *wanted.part_ids)
        if upload.file_id != file_id:
            try:
                return await self._make(upload, wanted, file_id)
            except (ApiError, ObjectsUnavailable):
                upload = await self._get(tenant, id)
                if upload.file_id != file_id:  # else another call made the same file, and cleared the parts away
                    raise
        return upload, await self._shelf.file(tenant, file_id)

    async def _make(self, upload: Upload, wanted: Completion, file_id: str) -> tuple[Upload, StoredFile]:
        parts = _chosen(self._checked(upload), await self._shelf.parts(upload.id), wanted)
        async with self._spool.file(upload.bytes) as content:
            await self._join(upload, parts, content, wanted.md5)
            file = self._files.made(upload.tenant, file_id, _new_file(upload), content)
            await self._files.store(file, content)
        done = replace(upload, status=UploadStatus.COMPLETED, file_id=file_id)
        with _ended_meanwhile(upload):
            await self._shelf.complete_upload(done, file)
        crash_point("upload.after_record")
        return done, file

    async def cancel(self, tenant: str, id: str) -> Upload:
        """Give it up; its parts are cleared away later."""
        upload = await self.pending(tenant, id)
        await self._shelf.end_upload(replace(upload, status=UploadStatus.CANCELLED))
        ended = await self._get(tenant, id)
        if ended.status is not UploadStatus.CANCELLED:
            raise _not_pending(ended, ended.status)
        return ended

    async def expire(self, now_unix: int) -> int:
        """End uploads whose time is over, at most `EXPIRED_MAX`; how many."""
        expired = await self._shelf.expired_uploads(now_unix, EXPIRED_MAX)
        for upload in expired:
            await self._shelf.end_upload(replace(upload, status=UploadStatus.EXPIRED))
        return len(expired)

    async def _join(self, upload: Upload, parts: Sequence[Part], content: SpoolFile, md5: str | None) -> None:
        """The parts, one behind the other, into the spool."""
        digest = hashlib.md5(usedforsecurity=False)
        for part in parts:
            try:
                async for piece in self._objects.read(part_key(upload.tenant, upload.id, part.id)):
                    await content.write(piece)
                    if md5 is not None:
                        await asyncio.to_thread(digest.update, piece)
            except NotFound:
                raise ObjectsUnavailable(f"{part.id} of {upload.id} is missing in the object store") from None
        await content.finish()
        if content.bytes != upload.bytes:
            raise ObjectsUnavailable(f"the parts of {upload.id} in the object store are {content.bytes} bytes long")
        if md5 is not None and md5 != digest.hexdigest():
            raise ApiError(400, "the parts do not have this md5", code="checksum_mismatch", param="md5")

    async def _get(self, tenant: str, id: str) -> Upload:
        upload = await self._shelf.upload(tenant, id) if is_id("upload", id) else None
        if upload is None:
            raise unknown("Upload object", id, "upload_id", code="upload_not_found")
        return upload

    def _checked(self, upload: Upload) -> Upload:
        """The upload itself. Raises `ApiError` 400 unless it is pending and in time."""
        overdue = upload.status is UploadStatus.PENDING and upload.expires_unix <= self._unix()
        status = UploadStatus.EXPIRED if overdue else upload.status
        if status is not UploadStatus.PENDING:
            raise _not_pending(upload, status)
        return upload


@contextlib.contextmanager
def _ended_meanwhile(upload: Upload) -> Iterator[None]:
    """The catalogue knows best: another call may have ended the upload while this one worked."""
    try:
        yield
    except NotFound:
        message = f"upload {upload.id} ended meanwhile"
        raise ApiError(400, message, code="upload_not_pending", param="upload_id") from None


def _chosen(upload: Upload, parts: Sequence[Part], wanted: Completion) -> list[Part]:
    known = {part.id: part for part in parts}
    unknown = next((id for id in wanted.part_ids if id not in known), None)
    if unknown is not None:
        raise bad("part_ids", f"{unknown[:100]} is no part of this upload")
    chosen = [known[id] for id in wanted.part_ids]
    size = sum(part.bytes for part in chosen)
    if size != upload.bytes:
        raise bad("part_ids", f"these parts have {size} bytes, the upload was to have {upload.bytes}")
    return chosen


def _new_file(upload: Upload) -> NewFile:
    return NewFile(
        filename=upload.filename,
        purpose=upload.purpose,
        content_type=upload.content_type,
        expires_after_s=upload.file_expires_after_s,
    )


def _not_pending(upload: Upload, status: UploadStatus) -> ApiError:
    return ApiError(400, f"upload {upload.id} is {status}", code="upload_not_pending", param="upload_id")
