"""Weights are read into the page cache ahead of the engine, so that it loads them at the speed of memory.

Plain reads, a few at once, into one small buffer each: measured beside ``POSIX_FADV_WILLNEED``, ``readahead`` and
``sendfile`` they are as fast, they wait for what they asked for (so that a count is true and a cancel is quick), and
they tell of errors. What is resident already is seen with ``mincore``, as vmtouch does, and not read again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

READERS = 4
CHUNK_BYTES = 16 * 2**20
"""What one reader takes at a time: large, so that a disk sees long runs. A multiple of every page size."""
PIECE_BYTES = 2**20
"""One read: small, so that a buffer stays in the CPU's cache and a cancel is seen within it."""
MARGIN_BYTES = 2 * 2**30
"""Of free memory that is left to the engine's own start."""
WINDOW_BYTES = 2**29
"""Of a file that is looked at in one call, some 20 ms when all of it is resident."""
FORMATS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""The first of these that a folder has is what its engine loads."""
CANCELLED = "cancelled"

_NOT_WEIGHTS = re.compile(r"^(training_args|optimizer|scheduler|scaler)\b")
_MISSING = re.compile(rb"[^\x01]+")
_PROT_READ, _MAP_SHARED = 1, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Primed:
    """What came of it."""

    total_bytes: int = 0
    """Of the weights, each blob once."""
    resident_before_bytes: int = 0
    """Of what it came to look at: all, unless it ended early."""
    read_bytes: int = 0
    seconds: float = 0.0
    reason: str = ""
    """Why it ended before all was resident; empty when all is."""


class Blob(NamedTuple):
    """A file of weights, and its size when it was listed."""

    path: Path
    size: int


def prime(
    folder: Path, *, on_bytes: Callable[[int], None], cancelled: Callable[[], bool], free_bytes: int | None = None
) -> Primed:
    """Read what is not resident yet of the weights in `folder`, in the engine's order. Blocks: meant for a thread.

    `on_bytes` hears of every byte read, `cancelled` is asked before every read; both from other threads, one at a
    time. `free_bytes` is how much of the weights memory may hold, measured when it is None: what lies beyond is left
    alone, since reading it would drop the beginning, which the engine wants first. Never raises for what a disk does;
    a disk that does not answer at all holds it up.
    """
    began = time.monotonic()
    try:
        blobs = weight_files(folder)
    except OSError as error:
        return Primed(reason=_sentence(error), seconds=time.monotonic() - began)
    total = sum(blob.size for blob in blobs)
    fits = max(free_memory_bytes() - MARGIN_BYTES if free_bytes is None else free_bytes, 0)
    work = _Work(blobs, fits, on_bytes, cancelled)
    with ThreadPoolExecutor(READERS, "prime") as pool:
        for reader in [pool.submit(work.run) for _ in range(READERS)]:
            reader.result()
    reason = work.reason
    if not reason and work.resident_before_bytes + work.read_bytes < total:
        reason = f"only {fits / 1e9:.1f} of {total / 1e9:.1f} GB fit in free memory"
    return Primed(
        total_bytes=total,
        resident_before_bytes=work.resident_before_bytes,
        read_bytes=work.read_bytes,
        seconds=time.monotonic() - began,
        reason=reason,
    )


def weight_files(folder: Path) -> tuple[Blob, ...]:
    """What the engine will load, in its order: one format, the shards that the index names, each blob once."""
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if path.suffix in FORMATS and not _NOT_WEIGHTS.match(path.name):
            found.setdefault(path.suffix, []).append(path)
    paths = next((found[suffix] for suffix in FORMATS if suffix in found), [])
    if named := _indexed(folder):
        paths = [folder / name for name in named]
    blobs: dict[tuple[int, int], Blob] = {}
    for path in sorted(paths, key=_natural):
        status = path.stat()
        blobs.setdefault((status.st_dev, status.st_ino), Blob(path, status.st_size))
    return tuple(blobs.values())


def _indexed(folder: Path) -> set[str]:
    """The shards that an index names and that exist; other safetensors are a second copy, which is not loaded."""
    try:
        names = set(json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))["weight_map"].values())
        return {name for name in names if ".." not in Path(name).parts and (folder / name).is_file()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _natural(path: Path) -> list[tuple[int, str]]:
    """Engines sort so: shard 2 before shard 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def resident_bytes(path: Path) -> int:
    """How much of a file is in the page cache now; 0 where the kernel does not tell. Reads nothing."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return size - sum(length for _, gaps in _windows(path, file.fileno(), size) for _, length in gaps)


class _Chunk(NamedTuple):
    path: Path
    offset: int
    length: int


class _Work:
    """What the readers share: where to go on, how far it came, and why to end."""

    def __init__(
        self, blobs: tuple[Blob, ...], fits: int, on_bytes: Callable[[int], None], cancelled: Callable[[], bool]
    ) -> None:
        self._chunks = self._look(blobs, fits)
        self._on_bytes = on_bytes
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self.resident_before_bytes = self.read_bytes = 0
        self.reason = ""

    def run(self) -> None:
        """One reader, until nothing is left or one of them says why to end."""
        _yield_to_others()
        chunk = None
        try:
            with mmap.mmap(-1, PIECE_BYTES) as buffer, contextlib.closing(_File()) as file:
                while chunk := self._next():
                    self._read(chunk, file.of(chunk.path), buffer)
        except OSError as error:
            self._end(_sentence(error, chunk.path if chunk else None))
        except BaseException as error:
            self._end(type(error).__name__)
            raise

    def _look(self, blobs: tuple[Blob, ...], fits: int) -> Iterator[_Chunk]:
        """What is missing among the first `fits` bytes. A window is looked at when its turn comes, not before."""
        for blob in blobs:
            with blob.path.open("rb", buffering=0) as file:
                for seen, gaps in _windows(blob.path, file.fileno(), blob.size):
                    self.resident_before_bytes += seen - sum(length for _, length in gaps)
                    for offset, length in gaps:
                        end = min(offset + length, fits)
                        for at in range(offset, end, CHUNK_BYTES):
                            yield _Chunk(blob.path, at, min(CHUNK_BYTES, end - at))
                    if self._cancelled():
                        self.reason = CANCELLED
                        return
            fits -= blob.size

    def _next(self) -> _Chunk | None:
        with self._lock:
            return None if self.reason else next(self._chunks, None)

    def _read(self, chunk: _Chunk, file: int, buffer: mmap.mmap) -> None:
        at, end = chunk.offset, chunk.offset + chunk.length
        while at < end and not self._ended():
            with memoryview(buffer) as view, view[: min(PIECE_BYTES, end - at)] as piece:
                count = os.preadv(file, [piece], at)
            if not count:
                self._end(f"{chunk.path.name} is shorter than it was")
                return
            at += count
            self._add(count)

    def _ended(self) -> bool:
        with self._lock:
            if not self.reason and self._cancelled():
                self.reason = CANCELLED
            return bool(self.reason)

    def _add(self, count: int) -> None:
        with self._lock:
            self.read_bytes += count
            self._on_bytes(count)

    def _end(self, reason: str) -> None:
        with self._lock:
            self.reason = self.reason or reason


class _File:
    """One reader's open file. Its own, since the kernel reads ahead for each opening by itself."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file = -1

    def of(self, path: Path) -> int:
        if path != self._path:
            self.close()
            self._file, self._path = os.open(path, os.O_RDONLY | os.O_CLOEXEC), path
        return self._file

    def close(self) -> None:
        if self._path is not None:
            self._path = None
            os.close(self._file)


def _yield_to_others() -> None:
    """The calling thread's reads come after everybody else's, where the disk's scheduler knows priorities."""
    with contextlib.suppress(psutil.Error, OSError, AttributeError):
        psutil.Process(threading.get_native_id()).ionice(psutil.IOPRIO_CLASS_BE, 7)


def _windows(path: Path, file: int, size: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The length of each window of a file, and the runs in it that are not resident: offset, length."""
    tells = _may_tell(path)
    for offset in range(0, size, WINDOW_BYTES):
        length = min(WINDOW_BYTES, size - offset)
        yield (
            length,
            [(offset + at, run) for at, run in _missing(file, offset, length)] if tells else [(offset, length)],
        )


def _may_tell(path: Path) -> bool:
    """Since Linux 5.2 mincore says "resident" of every page to whoever neither owns the file nor may write to it."""
    return os.access(path, os.W_OK) or path.stat().st_uid == os.geteuid()


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def _missing(file: int, offset: int, length: int) -> list[tuple[int, int]]:
    """The runs of a range that are not resident, as offset from its start and length. The pages are never touched."""
    address = _libc.mmap(None, length, _PROT_READ, _MAP_SHARED, file, offset)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        if _libc.mincore(address, length, pages):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        _libc.munmap(address, length)
    runs = ((run.start() * mmap.PAGESIZE, run.end() * mmap.PAGESIZE) for run in _MISSING.finditer(pages.raw))
    return [(start, min(end, length) - start) for start, end in runs]


def free_memory_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """What can be had without swapping: of the machine (MemAvailable), or of our control group where that is less.

    Cached files count as free in both, as they give way; those of the weights themselves, too.
    """
    rooms = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                rooms += _rooms(groups, path, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                rooms += _rooms(groups / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return max(min(rooms), 0)


def _rooms(root: Path, path: str, limit: str, usage: str) -> Iterator[int]:
    """The room in a group and in each one above it. Inside a container only the root may be there, and is ours."""
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            most = int((folder / limit).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = sum(int(stat.get(f"total_{kind}", stat.get(kind, 0))) for kind in ("active_file", "inactive_file"))
            yield most - int((folder / usage).read_text()) + cached
        if folder == root:
            return


def _sentence(error: OSError, path: Path | None = None) -> str:
    return f"{error.filename or path or 'the page cache'}: {error.strerror or error}"
