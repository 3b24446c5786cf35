"""Object stores: what the folder and S3 share, and the choice between them by URL.

Every call that blocks runs on threads of the store's own (`Threads`), so that a slow disk or network takes no thread
from anything else. Keys are ours: a key that breaks `checked_key` is a mistake of the caller and raises ValueError.
A name (``a/b``) can't be both an object and the beginning of another's key (``a/b/c``): folders have no such thing.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import quote

from orchestrator.documents.ports import READ_BYTES, ObjectStore
from orchestrator.errors import ConfigError, ObjectsUnavailable

KEY_CHARS_MAX = 512
"""S3 takes 1,024 bytes, with the bucket's prefix; a folder's path at most 4,096."""
SEGMENT_CHARS_MAX = 255
"""Between two slashes: what a Linux file system takes for one name."""
LIST_ROWS = 1000
"""Looked up at once by a listing: S3's page."""
WAITING_MAX = 1000
"""Calls that wait for a thread; more are refused."""
DEFAULT_TYPE = "application/octet-stream"

_PART = rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{SEGMENT_CHARS_MAX - 1}}}"
_KEY = re.compile(rf"(?:{_PART}/)*{_PART}")
_PREFIX = re.compile(rf"(?:{_PART}/)*(?:{_PART})?")
_CONTENT_TYPE = re.compile(r"[\w!#$&^.+-]{1,100}/[\w!#$&^.+-]{1,100}(?: ?; ?[\w-]{1,30}=[\w.+-]{1,60})?", re.ASCII)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

T = TypeVar("T")


def is_key(text: str) -> bool:
    """Whether it could be a key of ours: names of ASCII letters, digits, ``. _ -``, none beginning with a dot."""
    return len(text) <= KEY_CHARS_MAX and _KEY.fullmatch(text) is not None


def checked_key(key: str) -> str:
    """The key itself. Raises ValueError for what is none."""
    if not is_key(key):
        raise ValueError(f"not a key: {key!r}")
    return key


def checked_prefix(prefix: str) -> str:
    """The beginning of keys, perhaps empty, itself. Raises ValueError for what is none."""
    if len(prefix) > KEY_CHARS_MAX or _PREFIX.fullmatch(prefix) is None:
        raise ValueError(f"not the beginning of a key: {prefix!r}")
    return prefix


def safe_type(content_type: str) -> str:
    """The content type where it may stand in a header, else `DEFAULT_TYPE`."""
    return content_type if _CONTENT_TYPE.fullmatch(content_type) else DEFAULT_TYPE


def attachment(filename: str) -> str:
    """A Content-Disposition that names the file, whatever its name holds: RFC 6266, with RFC 5987's ``filename*``.

    ASCII without control characters, so that it can't end the header.
    """
    plain = re.sub(r"[^A-Za-z0-9 ._()-]", "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='', errors='replace')}"


class Stream(Protocol):
    """Bytes that are read by blocking calls. `close` does not block for long and may be called twice."""

    def read(self, bytes_max: int, /) -> bytes:
        """The next bytes; none at the end."""

    def close(self) -> None:
        """Let go of it."""


class Threads:
    """A store's threads: at most so many calls run, at most `WAITING_MAX` wait."""

    def __init__(self, name: str, threads_max: int) -> None:
        self._pool = ThreadPoolExecutor(threads_max, thread_name_prefix=name)
        self._room = threading.BoundedSemaphore(threads_max + WAITING_MAX)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Begin it. Raises `ObjectsUnavailable` when too many wait, or after `aclose`."""
        if not self._room.acquire(blocking=False):
            raise ObjectsUnavailable(f"{WAITING_MAX} calls wait for the object store: try again later")
        try:
            future = self._pool.submit(job)
        except RuntimeError:
            self._room.release()
            raise ObjectsUnavailable("the object store is closed") from None
        future.add_done_callback(lambda _: self._room.release())
        return future

    async def run(self, job: Callable[[], T]) -> T:
        """What the job returns or raises. When cancelled, a job that runs goes on."""
        return await asyncio.wrap_future(self.submit(job))

    async def stream(self, opened: Callable[[], Stream]) -> AsyncGenerator[bytes, None]:
        """What it opens, at most `READ_BYTES` at a time; read only as it is asked for, and closed in every case.

        No call is made on it while another runs: a reader who goes away in the middle of a read closes after it.
        """
        opening = self.submit(opened)
        last: Future[Stream] | Future[bytes] = opening
        try:
            stream = await asyncio.wrap_future(opening)
            last = reading = self.submit(partial(stream.read, READ_BYTES))
            while data := await asyncio.wrap_future(reading):
                yield data
                last = reading = self.submit(partial(stream.read, READ_BYTES))
        finally:
            last.add_done_callback(lambda _: _close(opening))

    async def whole(self, opened: Callable[[], Stream], *, bytes_max: int) -> bytes:
        """All that it opens. Raises `ObjectsUnavailable` when that is more than `bytes_max`."""
        return await self.run(partial(_whole, opened, bytes_max))

    async def batches(self, rows: Iterator[T]) -> AsyncGenerator[T, None]:
        """The rows of an iterator that blocks, `LIST_ROWS` a turn."""
        while batch := await self.run(lambda: list(islice(rows, LIST_ROWS))):
            for row in batch:
                yield row

    async def aclose(self) -> None:
        """Drop what waits, and wait for what runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._pool.shutdown)


def _close(opening: Future[Stream]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _whole(opened: Callable[[], Stream], bytes_max: int) -> bytes:
    stream, parts, left = opened(), [], bytes_max
    try:
        while data := stream.read(min(READ_BYTES, left + 1)):
            if len(data) > left:
                raise ObjectsUnavailable(f"an object is larger than the {bytes_max} bytes that it should have")
            parts.append(data)
            left -= len(data)
    finally:
        stream.close()
    return b"".join(parts)


def open_objects(
    url: str,
    *,
    base: Path,
    endpoint_url: str | None,
    region: str | None,
    environ: Mapping[str, str],
    public_endpoint_url: str | None = None,
) -> ObjectStore:
    """The store that `url` names: ``file://FOLDER`` (relative to `base`) or ``s3://BUCKET[/PREFIX]``. Touches nothing.

    For S3, what is None comes from AWS's own settings: the ``AWS_…`` variables in `environ`, then its files and roles.
    Raises `ConfigError` for any other URL.
    """
    scheme, found, rest = url.partition("://")
    if not found or not rest or scheme not in ("file", "s3"):
        raise ConfigError(f"storage.url {url!r} is neither file://FOLDER nor s3://BUCKET/PREFIX")
    if scheme == "file":
        from storage.objects_folder import FolderObjects

        return FolderObjects(base / rest)
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket) or not (prefix == "" or is_key(prefix)):
        raise ConfigError(f"storage.url {url!r} names no bucket and prefix that S3 could have")
    from storage.objects_s3 import S3Objects
    from storage.s3_connection import S3Place

    place = S3Place.of(
        bucket,
        prefix,
        endpoint_url=endpoint_url,
        public_endpoint_url=public_endpoint_url,
        region=region,
        environ=environ,
    )
    return S3Objects(place)
