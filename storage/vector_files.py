"""The files of a vector index: columns that only grow, and a small manifest that says how much of them counts.

What lies beyond the manifest's lengths is a change that was cut off; the next one is written over it.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np

from orchestrator.crash import crash_point
from orchestrator.errors import IndexUnavailable
from storage import vector_scan as scan
from storage.seals import Seals, Stamp, crc32_of, refused, stamp_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 2
"""Of the files' form."""
MANIFEST = "manifest"
GONE = -1
RECORD = np.dtype([("entry", "<i8"), ("rows", "<i8")])
"""One change: the next `rows` rows are those of `entry`, whatever it had before; `GONE`: it has none and is not in."""


class VectorsError(IndexUnavailable):
    """The index did not do what it was asked; a change was not made."""


class VectorsDamaged(VectorsError):
    """What the folder holds can't be used: damaged, of another version or dimension. Remove it and build it anew."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What counts. Each change replaces it as a whole."""

    version: int
    dimension: int
    generation: int = 0
    """In the names of the columns' files: a compaction begins new ones."""
    centred: bool = False
    """Whether this generation's codes have a centre; if not, it is 0."""
    rows: int = 0
    records: int = 0
    crc32: dict[str, int] = {}
    """Of each column, so far as it counts."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a change adds to each column."""

    records: NDArray[np.void]
    values: scan.Values
    codes: scan.Codes
    chunks: NDArray[np.int32]


class Columns:
    """The columns of one generation. Holds no file open. One thread at a time may append."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self._folder = folder

    def append(self, batches: Iterable[Batch]) -> None:
        """Add rows and records behind those that count. Durable on return; all or nothing.

        Raises `VectorsError` when the disk refuses, and nothing is changed.
        """
        rows, records, crc32 = self.manifest.rows, self.manifest.records, dict(self.manifest.crc32)
        with _refusals("the vectors were not changed"):
            with _Writers(self._folder, self.manifest.generation) as files:
                for batch in batches:
                    for name, start, column in (
                        ("values", rows, batch.values),
                        ("codes", rows, batch.codes),
                        ("chunks", rows, batch.chunks),
                        ("records", records, batch.records),
                    ):
                        crc32[name] = files.write(name, start, column, crc32.get(name, 0))
                    rows += len(batch.values)
                    records += len(batch.records)
            manifest = msgspec.structs.replace(self.manifest, rows=rows, records=records, crc32=crc32)
            crash_point("index.before_manifest")
            write_manifest(self._folder, manifest)
            crash_point("index.after_manifest")
        self.manifest = manifest

    def values(self) -> scan.Values:
        """Mapped; shape (rows, dimension)."""
        return self._mapped("values", np.int16, self.manifest.rows, self.manifest.dimension)

    def codes(self) -> scan.Codes:
        """Mapped; shape (rows, words)."""
        return self._mapped("codes", np.uint64, self.manifest.rows, scan.words(self.manifest.dimension))

    def chunks(self) -> NDArray[np.int32]:
        """Mapped; each row's chunk."""
        return self._mapped("chunks", np.int32, self.manifest.rows)

    def records(self) -> NDArray[np.void]:
        """Mapped; in order of the changes."""
        return self._mapped("records", RECORD, self.manifest.records)

    def centre(self) -> scan.Floats:
        """That of the codes; shape (dimension,)."""
        dimension = self.manifest.dimension
        return self._mapped("centre", np.float32, dimension) if self.manifest.centred else np.zeros(dimension, "f4")

    def next_generation(self, centre: scan.Floats | None) -> Columns:
        """Empty columns beside these. They count, and these no longer, once something is appended to them.

        Raises `VectorsError` when the disk refuses.
        """
        generation, crc32 = self.manifest.generation + 1, {}
        if centre is not None:
            with _refusals("the vectors were not changed"), _Writers(self._folder, generation) as files:
                crc32["centre"] = files.write("centre", 0, centre, 0)
        manifest = Manifest(
            version=VERSION,
            dimension=self.manifest.dimension,
            generation=generation,
            centred=centre is not None,
            crc32=crc32,
        )
        return Columns(self._folder, manifest)

    def sweep(self) -> None:
        """Remove what other generations left."""
        with _refusals("the vectors' folder can't be tidied"):
            for path in self._folder.iterdir():
                if path.name != MANIFEST and path.suffix != f".{self.manifest.generation}":
                    path.unlink(missing_ok=True)

    def check(self, seals: Seals) -> None:
        """Raise `VectorsDamaged` unless all files are as they were written; reads those that `seals` does not know.
        Not while something is appended."""
        with _reading():
            seals.check(self._folder, self._files(), self._verify)

    def stamps(self) -> tuple[Stamp | None, ...]:
        """Of all files, as they are at this moment."""
        with _reading():
            return tuple(stamp_of(path) for path in self._files())

    def trust(self, seals: Seals) -> None:
        """They were just written."""
        with _reading():
            seals.trust(self._folder, self._files())

    def _files(self) -> list[Path]:
        return [self._folder / f"{name}.{self.manifest.generation}" for name in self._lengths()]

    def _lengths(self) -> dict[str, int]:
        """Of the columns, in bytes, so far as they count."""
        manifest = self.manifest
        return {
            "values": manifest.rows * manifest.dimension * 2,
            "codes": manifest.rows * scan.words(manifest.dimension) * 8,
            "chunks": manifest.rows * 4,
            "records": manifest.records * RECORD.itemsize,
            "centre": manifest.dimension * 4 * manifest.centred,
        }

    def _verify(self, path: Path) -> None:
        with _reading():
            try:
                crc32 = crc32_of(path, self._lengths()[path.stem])
            except FileNotFoundError:  # a compaction put others in its place meanwhile
                return
        if crc32 != self.manifest.crc32.get(path.stem, 0):
            raise VectorsDamaged(f"the vectors' file {path.name} is not as it was written")

    def _mapped(self, name: str, dtype: Any, *shape: int) -> NDArray[Any]:
        if not all(shape):
            return np.empty(shape, dtype)
        with _reading():
            mapped = np.memmap(self._folder / f"{name}.{self.manifest.generation}", dtype, "r", shape=shape)
        return mapped.view(np.ndarray)


def read_manifest(folder: Path, dimension: int) -> Manifest:
    """That of `folder`, a new one where it is empty. Raises `VectorsDamaged`."""
    with _refusals("the vectors can't be made"):
        folder.mkdir(parents=True, exist_ok=True)
    with _reading():
        try:
            held = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        except FileNotFoundError:
            held = None
        if held is None and any(path.name != f"{MANIFEST}.part" for path in folder.iterdir()):
            raise VectorsDamaged("the vectors have no manifest")
    if held is None:
        held = Manifest(version=VERSION, dimension=dimension)
        with _refusals("the vectors can't be made"):
            write_manifest(folder, held)
    if (held.version, held.dimension) != (VERSION, dimension):
        raise VectorsDamaged(f"the vectors are of version {held.version} and dimension {held.dimension}")
    return held


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace it at once, durably."""
    part = folder / f"{MANIFEST}.part"
    with part.open("wb") as file:
        file.write(msgspec.json.encode(manifest))
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / MANIFEST)
    sync_folder(folder)


class _Writers:
    """The columns' files, open for a change, and on the disk when it ends well."""

    def __init__(self, folder: Path, generation: int) -> None:
        self._folder = folder
        self._generation = generation
        self._files: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for file in self._files.values() if kind is None else ():
                os.fsync(file)
        finally:
            for file in self._files.values():
                os.close(file)

    def write(self, name: str, start: int, rows: NDArray[Any], crc32: int) -> int:
        """Write `rows` from row `start` on. `crc32` is that of all before them; returns that of all with them."""
        if name not in self._files:
            path = self._folder / f"{name}.{self._generation}"
            self._files[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not rows.size:
            return crc32
        data = np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data
        at = start * (len(data) // len(rows))
        crc32 = zlib.crc32(data, crc32)
        while data:
            count = os.pwrite(self._files[name], data, at)
            data, at = data[count:], at + count
        return crc32


@contextlib.contextmanager
def _refusals(message: str) -> Iterator[None]:
    """What the operating system says of a change, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise VectorsError(f"{message}: {error}") from error


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """What is not as it should, as damage, unless it is the machine that refuses."""
    try:
        yield
    except (OSError, ValueError, msgspec.DecodeError) as error:  # ValueError: a file is shorter
        raise (VectorsError if refused(error) else VectorsDamaged)(f"the vectors can't be read: {error}") from error


def sync_folder(folder: Path) -> None:
    """What was created or renamed in it outlives power loss."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
