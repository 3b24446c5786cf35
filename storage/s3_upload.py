"""One file's way into a bucket: in one request, or in parts that are sent side by side."""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from orchestrator.errors import ObjectsUnavailable
from storage.s3_connection import S3Connection

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 8 * 2**20
"""A file up to this goes in one request. S3 wants parts of at least 5 MiB."""
PARTS_MAX = 10_000
"""S3's own: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html."""
BUFFERS_MAX = 3
"""Parts in memory at a time, of all uploads together."""
MIB = 2**20

_Held = mmap.mmap | io.BytesIO


def part_bytes(size: int) -> int:
    """How long the parts of a file are: `PART_BYTES`, or whole MiB so that there are at most `PARTS_MAX`. Pure."""
    return max(PART_BYTES, math.ceil(size / PARTS_MAX / MIB) * MIB)


class Uploading:
    """What all uploads of a store share."""

    def __init__(self) -> None:
        self.room = threading.BoundedSemaphore(BUFFERS_MAX)
        """For parts in memory."""
        self.ids: set[str] = set()
        """Of the uploads in parts that are under way."""
        self.closing = threading.Event()
        """All of them are to end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Upload:
    """One upload. `run` blocks; `stop` ends it before its next part."""

    connection: S3Connection
    uploading: Uploading
    bucket: str
    key: str
    source: Path
    sha256: str
    content_type: str
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send the file and remove it. Raises `ObjectsUnavailable`; then nothing is visible, and the file is there."""
        try:
            size = self.source.stat().st_size
            with self.source.open("rb") as file:
                if size <= PART_BYTES:
                    self._send_whole(file, size)
                else:
                    self._send_in_parts(file, size)
            self.source.unlink(missing_ok=True)
        except OSError as error:
            raise ObjectsUnavailable(f"a file on its way to the store can't be read: {error.strerror}") from error

    def _send_whole(self, file: BinaryIO, size: int) -> None:
        digest = hashlib.sha256()
        with self.uploading.room, _held(file, size, digest) as data:
            self._verify(digest.hexdigest())
            with self.connection.asking() as s3:
                s3.put_object(Bucket=self.bucket, Key=self.key, Body=_body(data), ContentType=self.content_type)

    def _send_in_parts(self, file: BinaryIO, size: int) -> None:
        with self.connection.asking() as s3:
            made = s3.create_multipart_upload(Bucket=self.bucket, Key=self.key, ContentType=self.content_type)
        upload = made["UploadId"]
        self.uploading.ids.add(upload)
        try:
            parts = self._send_parts(upload, file, size)
            with self.connection.asking(patient=True) as s3:
                s3.complete_multipart_upload(
                    Bucket=self.bucket, Key=self.key, UploadId=upload, MultipartUpload={"Parts": parts}
                )
        except BaseException:
            self._abort(upload)
            raise
        finally:
            self.uploading.ids.discard(upload)

    def _send_parts(self, upload: str, file: BinaryIO, size: int) -> list[CompletedPartTypeDef]:
        """All parts, verified. On return or raise none is on its way any more, so that an abort finds them all."""
        length, digest = part_bytes(size), hashlib.sha256()
        with ThreadPoolExecutor(BUFFERS_MAX, thread_name_prefix="objects-s3-part") as senders:
            sent: list[Future[CompletedPartTypeDef]] = []
            while len(sent) * length < size and not self._stopped():
                left = size - len(sent) * length
                sent.append(self._begin_part(senders, upload, len(sent) + 1, file, min(length, left), digest))
        parts = [each.result() for each in sent]
        if self._stopped():
            raise ObjectsUnavailable("the upload was broken off")
        self._verify(digest.hexdigest())
        return parts

    def _begin_part(
        self, senders: Executor, upload: str, number: int, file: BinaryIO, length: int, digest: hashlib._Hash
    ) -> Future[CompletedPartTypeDef]:
        """Read a part, as soon as there is room for it, and have it sent."""
        with ExitStack() as holding:
            holding.enter_context(self.uploading.room)
            data = _held(file, length, digest)
            holding.callback(data.close)
            return senders.submit(self._send_part, upload, number, data, holding.pop_all())

    def _send_part(self, upload: str, number: int, data: _Held, holding: ExitStack) -> CompletedPartTypeDef:
        try:
            with holding, self.connection.asking() as s3:
                sent = s3.upload_part(
                    Bucket=self.bucket, Key=self.key, UploadId=upload, PartNumber=number, Body=_body(data)
                )
        except BaseException:
            self.stop.set()
            raise
        part: CompletedPartTypeDef = {"PartNumber": number, "ETag": sent["ETag"]}
        if "ChecksumCRC32" in sent:  # a store that keeps them wants them again at the end
            part["ChecksumCRC32"] = sent["ChecksumCRC32"]
        return part

    def _stopped(self) -> bool:
        return self.stop.is_set() or self.uploading.closing.is_set()

    def _verify(self, sent_sha256: str) -> None:
        if sent_sha256 != self.sha256:
            raise ObjectsUnavailable("a file changed on its way to the object store: send it again")

    def _abort(self, upload: str) -> None:
        """Failing that, a sweep finds it."""
        with suppress(ObjectsUnavailable), self.connection.asking() as s3:
            s3.abort_multipart_upload(Bucket=self.bucket, Key=self.key, UploadId=upload)


def _held(file: BinaryIO, length: int, digest: hashlib._Hash) -> _Held:
    """The file's next bytes, which the digest has seen, too.

    In memory that goes back to the system when closed: malloc would keep it, in a heap for each thread.
    """
    if length == 0:
        return io.BytesIO()
    held = mmap.mmap(-1, length)
    file.readinto(held)  # type: ignore[attr-defined]
    digest.update(held)
    return held


def _body(held: _Held) -> IO[bytes]:
    """What boto3 sends block by block, each with its time limit; bytes would have to be gone within one."""
    return cast("IO[bytes]", held)
