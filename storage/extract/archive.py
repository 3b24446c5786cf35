"""ZIP archives and the XML in them, with bounds on what they unpack to. No document type definitions, no trees."""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import unquote
from xml.parsers import expat

from orchestrator.errors import Unreadable

ENTRIES_MAX = 20_000
UNPACKED_BYTES_MAX = 1024 * 2**20
"""Of all entries together."""
RATIO_FREE_BYTES = 64 * 2**20
RATIO_MAX = 200
"""Text and sheets shrink to a tenth or less, seldom to a fiftieth; a bomb to a thousandth. For what unpacks to more
than `RATIO_FREE_BYTES`."""
STEP_BYTES = 64 * 2**10
SMALL_BYTES_MAX = 64 * 2**20
"""Of an entry that is read whole."""

Event = tuple[Literal["start", "end", "text"], str, Mapping[str, str]]
"""What happened, the element's name without its namespace (of text: the text), and its attributes."""


class Archive:
    """An archive that is not a bomb by what it says of itself; and no entry gives more than it says."""

    def __init__(self, path: Path) -> None:
        """Raises `Unreadable`."""
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise Unreadable(f"has a broken archive: {error}") from error
        entries = self._zip.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        packed = sum(entry.compress_size for entry in entries) or 1
        if len(entries) > ENTRIES_MAX or unpacked > UNPACKED_BYTES_MAX:
            raise Unreadable(f"unpacks to too much: {len(entries)} entries, {unpacked} bytes")
        if unpacked > RATIO_FREE_BYTES and unpacked > RATIO_MAX * packed:
            raise Unreadable(f"unpacks to {unpacked // packed} times its size, as bombs do")
        if any(entry.flag_bits & 1 for entry in entries):
            raise Unreadable("is encrypted")
        self.names = frozenset(entry.filename for entry in entries)

    def read(self, name: str) -> bytes:
        """A small entry whole. Raises `Unreadable`."""
        parts: list[bytes] = []
        total = 0
        for part in self._steps(name):
            total += len(part)
            if total > SMALL_BYTES_MAX:
                raise Unreadable(f"holds a part of more than {SMALL_BYTES_MAX // 2**20} MiB: {name}")
            parts.append(part)
        return b"".join(parts)

    def events(self, name: str) -> Iterator[Event]:
        """The XML of an entry, as it comes. Raises `Unreadable`, also for any document type definition."""
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        held: list[Event] = []
        parser.StartElementHandler = lambda tag, attrs: held.append(("start", _local(tag), _attributes(attrs)))
        parser.EndElementHandler = lambda tag: held.append(("end", _local(tag), {}))
        parser.CharacterDataHandler = lambda data: held.append(("text", data, {}))
        parser.StartDoctypeDeclHandler = _refuse
        try:
            for part in self._steps(name):
                parser.Parse(part, False)
                yield from held
                held.clear()
            parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise Unreadable(f"holds improper XML in {name}: {error}") from error
        yield from held

    def relations(self, name: str) -> dict[str, tuple[str, str]]:
        """What an entry points to: the last word of the relation's type and the entry's name, by id."""
        folder, base = posixpath.split(name)
        rels = posixpath.join(folder, "_rels", f"{base}.rels")
        if rels not in self.names:
            return {}
        found: dict[str, tuple[str, str]] = {}
        for what, tag, attributes in self.events(rels):
            if what == "start" and tag == "Relationship" and attributes.get("TargetMode") != "External":
                kind = attributes.get("Type", "").rpartition("/")[2]
                found[attributes.get("Id", "")] = (kind, inside(folder, attributes.get("Target", "")))
        return found

    def _steps(self, name: str) -> Iterator[bytes]:
        try:
            with self._zip.open(name) as file:
                while part := file.read(STEP_BYTES):
                    yield part
        except KeyError:
            raise Unreadable(f"lacks {name}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise Unreadable(f"has a broken part, {name}: {error}") from error


def inside(folder: str, target: str) -> str:
    """The entry that a reference in `folder` means; one that leads out of the archive means none."""
    target = unquote(target.partition("#")[0])
    return posixpath.normpath(target.lstrip("/") if target.startswith("/") else posixpath.join(folder, target))


def _local(tag: str) -> str:
    return tag.rpartition(" ")[2]


def _attributes(attributes: dict[str, str]) -> dict[str, str]:
    """By local name; those that relate entries to each other as ``r:name``, since some elements have both."""
    if not attributes:
        return attributes
    found: dict[str, str] = {}
    for name, value in attributes.items():
        space, _, local = name.rpartition(" ")
        found[f"r:{local}" if space.endswith("/relationships") else local] = value
    return found


def _refuse(*_: object) -> None:
    raise Unreadable("holds a document type definition, which no such file needs")
