"""Objects in a local folder: each key is a file. The embedded default; no server.

What is durable: when `put` returns, the file's content, its name and every folder above it up to the root were synced
to the disk (fsync), so that it outlives power loss as far as the disk keeps its word. It comes into place by one
rename, so that nobody sees a part of it. What `delete` removed stays removed in the same sense.

What is verified: a file that could be moved into place is taken on trust of the caller's digest, which was computed
as it was spooled; only where it had to be copied (another file system) is the copy read against it.

Files are private (0600, folders 0700). Names that begin with a dot are no keys; ``.tmp`` holds copies under way, and
`sweep` removes those that a crash left. Folders that have become empty stay.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from orchestrator.documents.ports import ObjectFacts
from orchestrator.errors import NotFound, ObjectsUnavailable
from storage.objects import DEFAULT_TYPE, Threads, checked_key, checked_prefix, is_key

THREADS_MAX = 8
COPY_BYTES = 2**20
TEMPORARY = ".tmp"
_CAUSES = {
    errno.ENOSPC: "the disk of {root} is full: free some space",
    errno.EDQUOT: "the disk quota of {root} is used up: free some space",
    errno.EROFS: "the disk of {root} is read-only: mount it writable",
    errno.EACCES: "{root} may not be written: give it to the user that runs the service",
    errno.EPERM: "{root} may not be written: give it to the user that runs the service",
    errno.EMFILE: "too many files are open: raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk of {root} has failed: look into the system's log",
}

T = TypeVar("T")


class FolderObjects:
    """`ports.ObjectStore` in the folder `root`, which is made at need."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._threads = Threads("objects-folder", THREADS_MAX)

    async def put(self, key: str, source: Path, *, sha256: str, content_type: str = DEFAULT_TYPE) -> None:
        """See `ports.ObjectStore.put`. On return `source` is gone; after an error it is still there."""
        target = self._root / checked_key(key)
        await self._run(partial(self._put, target, source, sha256))

    async def put_bytes(self, key: str, data: bytes, *, content_type: str = DEFAULT_TYPE) -> None:
        """See `ports.ObjectStore.put_bytes`."""
        target = self._root / checked_key(key)
        await self._run(partial(self._put_bytes, target, data))

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `ports.ObjectStore.read`. What replaces the key meanwhile does not show in it."""
        path = self._root / checked_key(key)
        return self._threads.stream(lambda: _Range(path, start, end, self._asking))

    async def read_bytes(self, key: str, *, bytes_max: int) -> bytes:
        """See `ports.ObjectStore.read_bytes`."""
        path = self._root / checked_key(key)
        return await self._threads.whole(lambda: _Range(path, 0, None, self._asking), bytes_max=bytes_max)

    async def delete(self, key: str) -> None:
        """See `ports.ObjectStore.delete`."""
        path = self._root / checked_key(key)
        await self._run(partial(self._delete, path))

    def list(self, prefix: str) -> AsyncGenerator[ObjectFacts, None]:
        """See `ports.ObjectStore.list`. Holds the names of one folder of each level in memory."""
        return self._threads.batches(self._listed("", checked_prefix(prefix)))

    async def presign(self, key: str, *, seconds: int, filename: str, content_type: str) -> str | None:
        """None: a folder has no URLs."""
        checked_key(key)
        return None

    async def check(self) -> None:
        """See `ports.ObjectStore.check`: writes a small file, reads it and removes it."""
        await self._run(self._check)

    async def sweep(self, *, older_than_s: float) -> int:
        """See `ports.ObjectStore.sweep`: copies that were not finished, by the time of their last change."""
        return await self._run(partial(self._sweep, time.time() - older_than_s))

    async def aclose(self) -> None:
        """See `ports.ObjectStore.aclose`."""
        await self._threads.aclose()

    async def _run(self, job: Callable[[], T]) -> T:
        def asked() -> T:
            with self._asking():
                return job()

        return await self._threads.run(asked)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """What the disk refuses is `ObjectsUnavailable`, with the cause."""
        try:
            yield
        except OSError as error:
            cause = _CAUSES.get(error.errno or 0, "{root} can't be used: " + (error.strerror or type(error).__name__))
            raise ObjectsUnavailable(cause.format(root=self._root)) from error

    def _put(self, target: Path, source: Path, sha256: str) -> None:
        _make_private(source)
        self._make_folder(target.parent)
        try:
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy(target, source, sha256)
            source.unlink()
        self._sync_folders(target.parent)

    def _copy(self, target: Path, source: Path, sha256: str) -> None:
        with self._temporary() as copy, source.open("rb") as reading, copy.open("xb") as writing:
            digest = hashlib.sha256()
            while data := reading.read(COPY_BYTES):
                digest.update(data)
                writing.write(data)
            if digest.hexdigest() != sha256:
                raise ObjectsUnavailable(f"a file changed on its way to {self._root}: send it again")
            _sync(writing)
            copy.replace(target)

    def _put_bytes(self, target: Path, data: bytes) -> None:
        self._make_folder(target.parent)
        with self._temporary() as made, made.open("xb") as writing:
            writing.write(data)
            _sync(writing)
            made.replace(target)
        self._sync_folders(target.parent)

    def _delete(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path.unlink()
            _sync_folder(path.parent)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A name for a new file, which is removed unless it was moved away."""
        self._make_folder(self._root / TEMPORARY)
        path = self._root / TEMPORARY / secrets.token_hex(16)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if folder != self._root:
            self._make_folder(folder.parent)
            folder.mkdir(0o700, exist_ok=True)
        else:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            _sync_folder(folder.parent)

    def _sync_folders(self, folder: Path) -> None:
        """Up to the root, each time: one that another thread has just made may not be on the disk yet."""
        while folder != self._root:
            _sync_folder(folder)
            folder = folder.parent
        _sync_folder(folder)

    def _check(self) -> None:
        data = secrets.token_bytes(16)
        with self._temporary() as probe:
            probe.write_bytes(data)
            if probe.read_bytes() != data:
                raise ObjectsUnavailable(f"the disk of {self._root} does not give back what it was given")

    def _sweep(self, before_unix: float) -> int:
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root / TEMPORARY) as entries:
            return sum(_remove_old(entry, before_unix) for entry in entries)
        return 0

    def _listed(self, folder: str, prefix: str) -> Iterator[ObjectFacts]:
        """The objects below `folder` (a key's beginning, with its slash), in the order of their keys."""
        with self._asking():
            entries = _entries(self._root / folder)
        for name, is_folder in entries:
            key = folder + name
            if is_folder and (key.startswith(prefix) or prefix.startswith(key)):
                yield from self._listed(key, prefix)
            elif not is_folder and key.startswith(prefix) and is_key(key):
                with self._asking():
                    facts = _facts(self._root / key, key)
                if facts is not None:
                    yield facts


class _Range:
    """A file from `start` up to `end`, as a `Stream`."""

    def __init__(
        self, path: Path, start: int, end: int | None, asking: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self._asking = asking
        with asking():
            try:
                self._file = path.open("rb", buffering=0)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NotFound("no such object") from None
            self._file.seek(start)
        self._left = None if end is None else max(end - start, 0)

    def read(self, bytes_max: int, /) -> bytes:
        with self._asking():
            data = self._file.read(bytes_max if self._left is None else min(bytes_max, self._left))
        if self._left is not None:
            self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """A folder's entries that could be of keys, a folder's with a slash: so they sort as their keys do."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((f"{name}/" if is_folder else name, is_folder) for name, is_folder in found)


def _facts(path: Path, key: str) -> ObjectFacts | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return ObjectFacts(key=key, bytes=status.st_size, modified_unix=status.st_mtime)


def _remove_old(entry: os.DirEntry[str], before_unix: float) -> bool:
    with contextlib.suppress(FileNotFoundError):
        if entry.stat().st_mtime <= before_unix:
            Path(entry.path).unlink()
            return True
    return False


def _make_private(path: Path) -> None:
    """Only the owner reads it, and its content is on the disk."""
    with path.open("rb") as file:
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())


def _sync(file: io.BufferedWriter) -> None:
    os.fchmod(file.fileno(), 0o600)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
