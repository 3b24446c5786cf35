"""Where bodies wait on disk until they are whole: bounded in number, in memory, and by the disk's free space."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from orchestrator.errors import ApiError

BUFFER_BYTES = 256 * 2**10
"""Of one body in memory; beyond it they are written, and nothing more is read meanwhile."""
PIECES_MAX = 1024
"""Likewise: one write takes no more (IOV_MAX)."""
BUSY_RETRY_S = 2
FULL_RETRY_S = 30
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = structlog.get_logger()

Piece = bytes | memoryview
T = TypeVar("T")


class Spool:
    """A folder of its own, emptied when this is made: what a dead process left there is half done. Blocks then.

    At most `files_max` files are open at once; `free_bytes_min` of the disk stay free, for the catalogue. It should
    be on the disk of the object store where that is a folder, so that a whole body is moved and not copied.
    """

    def __init__(self, folder: Path, *, files_max: int, free_bytes_min: int) -> None:
        self._folder = folder
        self._files_max = files_max
        self._free_bytes_min = free_bytes_min
        self._open = 0
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()

    @contextlib.asynccontextmanager
    async def file(self, bytes_told: int = 0) -> AsyncIterator[SpoolFile]:
        """A new file, gone at the end unless somebody moved it. Raises `ApiError` 503 when too many are open, or the
        disk has no room for `bytes_told`."""
        if self._open >= self._files_max:
            message = f"{self._files_max} uploads are under way; try again in a moment"
            raise ApiError(503, message, code="too_many_uploads", headers={"retry-after": str(BUSY_RETRY_S)})
        self._open += 1
        file = SpoolFile(self._folder / secrets.token_hex(16), self._check)
        try:
            await file.begin(bytes_told)
            yield file
        finally:
            self._open -= 1
            await asyncio.shield(asyncio.to_thread(file.discard))

    def _check(self, bytes_more: int) -> None:
        """Raises OSError when so many bytes more would take the room that is to stay."""
        if shutil.disk_usage(self._folder).free - bytes_more < self._free_bytes_min:
            raise OSError(errno.ENOSPC, f"less than {self._free_bytes_min} bytes would stay free")


class SpoolFile:
    """One body on its way to the disk. Writes raise `ApiError` 503 when the disk refuses; they do not block."""

    def __init__(self, path: Path, check: Callable[[int], None]) -> None:
        self.path = path
        self.bytes = 0
        """What was given so far."""
        self._check = check
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        """A write may outlive the request that asked for it, so it must not find the descriptor given to another."""
        self._waiting: list[Piece] = []
        self._waiting_bytes = 0
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hex digest of all, once finished."""
        return self._sha256.hexdigest()

    async def begin(self, bytes_told: int) -> None:
        """Make the file."""
        await _in_thread(self._make, bytes_told)

    async def write(self, *pieces: Piece) -> None:
        """Add to it. Waits for the disk when enough has come together."""
        for piece in pieces:
            self._waiting.append(piece)
            self._waiting_bytes += len(piece)
            self.bytes += len(piece)
        if self._waiting_bytes >= BUFFER_BYTES or len(self._waiting) >= PIECES_MAX:
            await self._flush()

    async def finish(self) -> None:
        """Nothing more comes: the file holds all of it."""
        await self._flush()
        await asyncio.to_thread(self._close)

    def discard(self) -> None:
        """Remove it unless it was moved. Blocks."""
        self._close()
        with contextlib.suppress(OSError):  # a disk that fails now is emptied at the next start
            self.path.unlink(missing_ok=True)

    async def _flush(self) -> None:
        pieces, self._waiting, self._waiting_bytes = self._waiting, [], 0
        await _in_thread(self._store, pieces)

    def _make(self, bytes_told: int) -> None:
        self._check(bytes_told)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def _store(self, pieces: Sequence[Piece]) -> None:
        with self._lock:
            if self._descriptor is None:
                return  # given up meanwhile
            self._check(sum(map(len, pieces)))
            for piece in pieces:
                self._sha256.update(piece)
            for start in range(0, len(pieces), PIECES_MAX):
                _write_all(self._descriptor, pieces[start : start + PIECES_MAX])

    def _close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def _write_all(descriptor: int, pieces: Sequence[Piece]) -> None:
    written = os.writev(descriptor, pieces)
    if written == sum(map(len, pieces)):
        return
    rest = memoryview(b"".join(pieces))[written:]
    while rest:
        rest = rest[os.write(descriptor, rest) :]


async def _in_thread(function: Callable[[T], None], argument: T) -> None:
    try:
        await asyncio.to_thread(function, argument)
    except OSError as error:
        log.warning("spool_refused", cause=str(error))
        raise _refusal(error) from None


def _refusal(error: OSError) -> ApiError:
    headers = {"retry-after": str(FULL_RETRY_S)}
    if error.errno in _FULL:
        return ApiError(503, "the disk that takes uploads is full", code="storage_full", headers=headers)
    return ApiError(503, "the disk that takes uploads fails", code="storage_unavailable", headers=headers)
