"""The files of a lexical index: of what version they are, which of them count, and whether they are as written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from orchestrator.errors import IndexUnavailable
from storage.seals import crc32_of, refused

VERSION = "2"
"""Of the schema, of what is stored, and of how text becomes terms; an index of another is refused."""
META = "meta.json"
KINDS = ("fast", "fieldnorm", "idx", "pos", "store", "term")
"""Files of each of tantivy's segments. None is ever written to again, but removed with its segment."""
FOOTER_MAGIC = 1337
FOOTER_BYTES_MAX = 2**16
TAIL_BYTES = 8
"""What ends each file: the length of its footer, and `FOOTER_MAGIC`, both little endian."""


class LexicalError(IndexUnavailable):
    """The index did not do what it was asked; a change was not made."""


class LexicalDamaged(LexicalError):
    """What the folder holds can't be used: damaged, or of another version. Remove it and build it anew."""


class _Deletes(msgspec.Struct):
    opstamp: int


class _Segment(msgspec.Struct):
    segment_id: str
    max_doc: int
    deletes: _Deletes | None = None


class _Meta(msgspec.Struct):
    segments: list[_Segment]


class _Footer(msgspec.Struct):
    crc: int


@contextlib.contextmanager
def faults(kind: type[LexicalError], message: str) -> Iterator[None]:
    """tantivy's complaints, and its panics, which are no `Exception`, as an error of ours: of `kind`, but a plain
    `LexicalError` where it is the machine that refused."""
    try:
        yield
    except (ValueError, OSError, msgspec.DecodeError) as error:
        raise (LexicalError if refused(error) else kind)(f"{message}: {error}") from error
    except BaseException as error:  # of all that is no Exception, a panic alone is taken
        if type(error).__name__ != "PanicException":
            raise
        raise (LexicalError if refused(error) else kind)(f"{message}: {error}") from None


def damage() -> contextlib.AbstractContextManager[None]:
    """`faults` of what is read."""
    return faults(LexicalDamaged, "the index can't be read")


def claim(folder: Path) -> None:
    """Make sure that `folder` holds an index of this version, or nothing, which then becomes one."""
    mark = folder / "version"
    with faults(LexicalError, "the index can't be made"):
        folder.mkdir(parents=True, exist_ok=True)
    with damage():
        try:
            held = mark.read_text()
        except FileNotFoundError:
            if any(folder.iterdir()):
                raise LexicalDamaged("the index does not say of what version it is") from None
            held = ""
    if not held:
        with faults(LexicalError, "the index can't be made"):
            _write_durably(mark, VERSION)
    elif held != VERSION:
        raise LexicalDamaged(f"the index is of version {held[:20]!r}, not {VERSION}")


def documents(folder: Path) -> int:
    """How many documents the last commit says its segments have, with those that were removed."""
    return sum(segment.max_doc for segment in _meta(folder).segments)


def committed(folder: Path) -> tuple[Path, ...]:
    """The segments' files that the last commit counts. Raises `LexicalDamaged`."""
    names: list[str] = []
    for segment in _meta(folder).segments:
        id = segment.segment_id.replace("-", "")
        names += [f"{id}.{kind}" for kind in KINDS]
        if segment.deletes is not None:
            names.append(f"{id}.{segment.deletes.opstamp}.del")
    return tuple(folder / name for name in names)


def verify(path: Path) -> None:
    """Raise `LexicalDamaged` unless the file is as tantivy wrote it, by the checksum in its footer. Reads all of it.

    tantivy itself does not look at the checksum; a file that was written over makes it find wrong things, or take the
    process down by asking for absurd amounts of memory.
    """
    with damage():
        try:
            whole = _is_whole(path)
        except FileNotFoundError:  # its segment was merged away meanwhile
            return
    if not whole:
        raise LexicalDamaged(f"the index's file {path.name} is not as it was written")


def _meta(folder: Path) -> _Meta:
    with damage():
        try:
            return msgspec.json.decode((folder / META).read_bytes(), type=_Meta)
        except FileNotFoundError:  # a new one
            return _Meta([])


def _is_whole(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read(TAIL_BYTES)
        length, magic = int.from_bytes(tail[:4], "little"), int.from_bytes(tail[4:], "little")
        body = size - TAIL_BYTES - length
        if magic != FOOTER_MAGIC or length > FOOTER_BYTES_MAX or body < 0:
            return False
        file.seek(body)
        footer = msgspec.json.decode(file.read(length), type=_Footer)
    return crc32_of(path, body) == footer.crc


def _write_durably(path: Path, text: str) -> None:
    """All of it, or no file of that name."""
    part = path.with_suffix(".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
