"""Which files are as they were written: each is read through once, and again only when somebody touched it."""

from __future__ import annotations

import errno
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

READ_BYTES = 2**20
REFUSALS = frozenset(
    (
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN, errno.EINTR),
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOLCK, errno.ETIMEDOUT, errno.ESTALE),
    )
)
"""What the operating system says when it can't serve now, or may not: no fault of what is stored."""

_CODE = re.compile(r"\bOs \{ code: (\d+)|\(os error (\d+)\)")
"""How Rust prints an error of the operating system."""

Stamp = tuple[int, int, int]
Verify = Callable[[Path], None]


def refused(error: BaseException) -> bool:
    """Whether the machine refused, so that it may go better later; else what is stored is at fault."""
    if isinstance(error, OSError):
        return error.errno in REFUSALS
    return any(int(one or other) in REFUSALS for one, other in _CODE.findall(str(error)))


def crc32_of(path: Path, length: int) -> int | None:
    """The CRC-32 of the first `length` bytes; None when there are fewer. Blocks; raises `OSError`."""
    found, buffer = 0, memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while length > 0:
            count = file.readinto(buffer[: min(length, READ_BYTES)])
            if not count:
                return None
            found = zlib.crc32(buffer[:count], found)
            length -= count
    return found


class Seals:
    """Stamps of files that were found whole, by folder. Any number of threads.

    A stamp is the file's inode, size and time of change: looking at it takes 2 µs, and is what keeps a search from a
    mapped file that was cut, which would kill the process.
    """

    def __init__(self) -> None:
        self._known: dict[Path, dict[Path, Stamp]] = {}

    def check(self, folder: Path, files: Iterable[Path], verify: Verify) -> None:
        """Have those of `files`, all that count in `folder`, verified that were not, or that were touched since.

        `verify` raises for damage. One that is gone is passed over: whoever has it mapped still does. Blocks; raises
        `OSError` when it can't look.
        """
        known = self._known.get(folder, {})
        found: dict[Path, Stamp] = {}
        for path in files:
            stamp = stamp_of(path)
            if stamp is None:
                continue
            if known.get(path) != stamp:
                verify(path)
            found[path] = stamp
        if found != known:
            self._known[folder] = found

    def trust(self, folder: Path, files: Iterable[Path]) -> None:
        """They were just written."""
        self.check(folder, files, lambda path: None)

    def forget(self, folder: Path) -> None:
        """What was below it is no more."""
        for known in list(self._known):
            if known.is_relative_to(folder):
                self._known.pop(known, None)


def stamp_of(path: Path) -> Stamp | None:
    """What changes when the file is written to; None: it is gone. Raises `OSError` when it can't look."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
