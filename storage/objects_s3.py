"""Objects in a bucket of anything that speaks S3: AWS, MinIO, Garage, Ceph, SeaweedFS. Through boto3, on threads.

What is durable is the server's promise: `put` returns when it has acknowledged the whole object. Until the last step
of an upload in parts nothing is visible; an upload that fails is aborted, and `sweep` aborts those that a crash left.

What is verified: each request carries boto3's CRC32 of what it sends, which the server checks; the file's SHA-256 is
computed from the very bytes that are sent, and a file that is not what the caller says is never completed.

Memory: at most `s3_upload.BUFFERS_MAX` parts, of all uploads together; downloads hold `ports.READ_BYTES` each.

While the store is down: see the limits in `s3_connection`.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from orchestrator.documents.ports import ObjectFacts
from orchestrator.errors import NotFound, ObjectsUnavailable
from storage.objects import DEFAULT_TYPE, Stream, Threads, attachment, checked_key, checked_prefix, is_key, safe_type
from storage.s3_connection import S3Connection, S3Place, error_code
from storage.s3_upload import S3Upload, Uploading

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import BucketLocationConstraintType
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef

CALLS_MAX = 16
"""At a time, uploads apart."""
PUTS_MAX = 8
PRESIGN_S_MAX = 300
PROBE = ".orchestrator-check"
"""What `check` writes; no key, so no listing shows it."""

T = TypeVar("T")


class S3Objects:
    """`ports.ObjectStore` in a bucket. Making one touches nothing; boto3 is imported by the first call, on a thread."""

    def __init__(self, place: S3Place) -> None:
        self._place = place
        self._connection = S3Connection(place)
        self._calls = Threads("objects-s3", CALLS_MAX)
        self._puts = Threads("objects-s3-put", PUTS_MAX)
        self._uploading = Uploading()
        self._checking = threading.Lock()

    async def put(self, key: str, source: Path, *, sha256: str, content_type: str = DEFAULT_TYPE) -> None:
        """See `ports.ObjectStore.put`. On return `source` is gone; after an error it is still there.

        When cancelled, the upload ends at its next part, and is aborted.
        """
        upload = S3Upload(
            connection=self._connection,
            uploading=self._uploading,
            bucket=self._place.bucket,
            key=self._full(key),
            source=source,
            sha256=sha256,
            content_type=safe_type(content_type),
        )
        try:
            await self._puts.run(upload.run)
        finally:
            upload.stop.set()

    async def put_bytes(self, key: str, data: bytes, *, content_type: str = DEFAULT_TYPE) -> None:
        """See `ports.ObjectStore.put_bytes`."""
        full, content_type = self._full(key), safe_type(content_type)
        body = io.BytesIO(data)  # sent block by block, each with its time limit; bytes would have to go within one
        await self._ask(
            lambda s3: s3.put_object(Bucket=self._place.bucket, Key=full, Body=body, ContentType=content_type)
        )

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `ports.ObjectStore.read`."""
        return self._calls.stream(partial(self._open, self._full(key), start, end))

    async def read_bytes(self, key: str, *, bytes_max: int) -> bytes:
        """See `ports.ObjectStore.read_bytes`."""
        return await self._calls.whole(partial(self._open, self._full(key), 0, None), bytes_max=bytes_max)

    async def delete(self, key: str) -> None:
        """See `ports.ObjectStore.delete`."""
        full = self._full(key)
        await self._ask(lambda s3: s3.delete_object(Bucket=self._place.bucket, Key=full))

    def list(self, prefix: str) -> AsyncGenerator[ObjectFacts, None]:
        """See `ports.ObjectStore.list`. What others put there under names that are no keys is left out.

        The order is the server's: by key with AWS; SeaweedFS goes folder by folder, ``a/b`` before ``a-b``.
        """
        return self._calls.batches(self._listed(self._place.prefix + checked_prefix(prefix)))

    async def presign(self, key: str, *, seconds: int, filename: str, content_type: str) -> str | None:
        """See `ports.ObjectStore.presign`: for at most `PRESIGN_S_MAX`. The answer is saved under `filename`."""
        wanted = {
            "Bucket": self._place.bucket,
            "Key": self._full(key),
            "ResponseContentDisposition": attachment(filename),
            "ResponseContentType": safe_type(content_type),
        }
        lasts_s = min(seconds, PRESIGN_S_MAX)

        def sign() -> str:
            with self._connection.signing() as s3:
                return s3.generate_presigned_url("get_object", Params=wanted, ExpiresIn=lasts_s)

        return await self._calls.run(sign)

    async def check(self) -> None:
        """See `ports.ObjectStore.check`: writes a small object, reads it and removes it; makes a missing bucket."""
        await self._ask(self._check)

    async def sweep(self, *, older_than_s: float) -> int:
        """See `ports.ObjectStore.sweep`: uploads in parts under our prefix, by the server's time of their beginning.

        Those that are under way here are left alone, however old.
        """
        return await self._ask(partial(self._sweep, before_unix=time.time() - older_than_s))

    async def aclose(self) -> None:
        """See `ports.ObjectStore.aclose`. An upload that is under way ends at its next part."""
        self._uploading.closing.set()
        await self._puts.aclose()
        await self._calls.aclose()
        self._connection.close()

    def _full(self, key: str) -> str:
        return self._place.prefix + checked_key(key)

    async def _ask(self, job: Callable[[S3Client], T]) -> T:
        def asked() -> T:
            with self._connection.asking() as s3:
                return job(s3)

        return await self._calls.run(asked)

    def _open(self, key: str, start: int, end: int | None) -> Stream:
        """What there is of the range, which is nothing beyond the object's end."""
        empty = end is not None and end <= start  # S3 has no such range, but has to be asked whether there is the key
        wanted: GetObjectRequestTypeDef = {"Bucket": self._place.bucket, "Key": key}
        if start or end is not None:  # a whole object comes with its checksum, a range does not
            wanted["Range"] = f"bytes={start}-{start if empty else '' if end is None else end - 1}"
        with self._connection.asking() as s3:
            try:
                found = s3.get_object(**wanted)
            except s3.exceptions.NoSuchKey:
                raise NotFound("no such object") from None
            except s3.exceptions.ClientError as error:
                if error_code(error) != "InvalidRange":
                    raise
                return io.BytesIO()
        body = _Body(self._connection, found["Body"])
        if empty:
            body.close()
            return io.BytesIO()
        return body

    def _listed(self, prefix: str) -> Iterator[ObjectFacts]:
        with self._connection.asking() as s3:
            pages = iter(s3.get_paginator("list_objects_v2").paginate(Bucket=self._place.bucket, Prefix=prefix))
        while page := self._next(pages):
            for each in page.get("Contents", ()):
                key = each["Key"].removeprefix(self._place.prefix)
                if is_key(key):
                    yield ObjectFacts(key=key, bytes=each["Size"], modified_unix=each["LastModified"].timestamp())

    def _next(self, pages: Iterator[T]) -> T | None:
        with self._connection.asking():
            return next(pages, None)

    def _check(self, s3: S3Client) -> None:
        bucket, key = self._place.bucket, self._place.prefix + PROBE
        with self._checking:
            try:
                s3.put_object(Bucket=bucket, Key=key, Body=b"probe")
            except s3.exceptions.NoSuchBucket:
                self._make_bucket(s3)
                s3.put_object(Bucket=bucket, Key=key, Body=b"probe")
            if s3.get_object(Bucket=bucket, Key=key)["Body"].read() != b"probe":
                raise ObjectsUnavailable(f"{self._place.told} does not give back what it was given")
            s3.delete_object(Bucket=bucket, Key=key)

    def _make_bucket(self, s3: S3Client) -> None:
        region = s3.meta.region_name
        try:
            if self._place.endpoint_url is None and region != "us-east-1":  # AWS wants every other region told
                constraint = cast("BucketLocationConstraintType", region)
                s3.create_bucket(
                    Bucket=self._place.bucket, CreateBucketConfiguration={"LocationConstraint": constraint}
                )
            else:
                s3.create_bucket(Bucket=self._place.bucket)
        except s3.exceptions.ClientError as error:
            cause = f"does not exist and can't be made ({error_code(error)}): create it, or correct storage.url"
            raise ObjectsUnavailable(f"{self._place.told} {cause}") from None

    def _sweep(self, s3: S3Client, *, before_unix: float) -> int:
        bucket, aborted = self._place.bucket, 0
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=self._place.prefix)
        for each in [upload for page in pages for upload in page.get("Uploads", ())]:
            if each["UploadId"] in self._uploading.ids or each["Initiated"].timestamp() > before_unix:
                continue
            try:
                s3.abort_multipart_upload(Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"])
            except s3.exceptions.NoSuchUpload:
                continue
            aborted += 1
        return aborted


class _Body:
    """An answer's body, as a `Stream`. Each read takes from the connection what it is asked for, no more."""

    def __init__(self, connection: S3Connection, body: StreamingBody) -> None:
        self._connection = connection
        self._body = body

    def read(self, bytes_max: int, /) -> bytes:
        with self._connection.explaining():
            return self._body.read(bytes_max)

    def close(self) -> None:
        self._body.close()
