"""Spoils each file of an index by itself and looks what comes of it: run as a program, since that may be its end.

Prints a line for each file that made it find wrong things, or nothing at all in an index that can't be mended.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.errors import OrchestratorError
from storage.shelves import DiskIndex, DiskShelves
from tests.storage.index_writer import DIMENSION, document, vector

ENTRIES = 12
Harm = Callable[[Path], object]


def flip(place: Callable[[int], int]) -> Harm:
    """Turn one bit over."""

    def harm(path: Path) -> None:
        data = bytearray(path.read_bytes())
        if data:
            data[place(len(data))] ^= 1
        path.write_bytes(data)

    return harm


HARMS: dict[str, Harm] = {
    "removed": Path.unlink,
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, max(0, path.stat().st_size - 1)),
    "halved": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(random.Random(path.name).randbytes(path.stat().st_size)),
    "first": flip(lambda size: 0),
    "middle": flip(lambda size: size // 2),
    "last": flip(lambda size: size - 1),
}


def build(root: Path) -> None:
    """An index with several segments, and some entries removed."""
    index = opened(root)
    for entry in range(0, ENTRIES, 3):
        index.add([document(each, 1) for each in range(entry, entry + 3)])
    index.remove([4])
    index.close()


def opened(root: Path) -> DiskIndex:
    """The index below `root`, as the service opens it."""
    return DiskShelves(root).open("vs_1", "m", DIMENSION)


def seen(index: DiskIndex) -> list[object]:
    """All that searches find."""
    keys = [(entry, chunk) for entry in range(ENTRIES) for chunk in range(4)]
    words = [index.words(word, allowed=None, limit=99) for word in ("common", "w3x0x1")]
    return [index.entries(), words, index.nearest(vector(3, 0, 1), allowed=None, limit=99), index.chunks(keys)]


def files(root: Path) -> Iterator[Path]:
    """Those of the index, relative to `root`."""
    return (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file())


def spoil_each(folder: Path, harm: Harm) -> Iterator[str]:
    """Whatever is spoiled, the index is as it was, or empty and takes documents."""
    whole, spoiled = folder / "whole", folder / "spoiled"
    build(whole)
    before = seen(opened(whole))
    for path in list(files(whole)):
        shutil.copytree(whole, spoiled)
        harm(spoiled / path)
        try:
            index = opened(spoiled)
            after = seen(index)
            if after != before and after[0]:
                yield f"{path.name}: finds other things"
            index.add([document(1, 2)])
            if 1 not in index.entries():
                yield f"{path.name}: takes no documents"
        except OrchestratorError as error:
            yield f"{path.name}: {error}"
        shutil.rmtree(spoiled)


def cut_in_use(folder: Path, part: str, act: str) -> Iterator[str]:
    """Files are cut while they are mapped. What meets them is told, and the index is begun anew."""
    build(folder)
    shelves = DiskShelves(folder)
    index = shelves.open("vs_1", "m", DIMENSION)
    for path in files(folder):
        if part in path.parts:
            os.truncate(folder / path, 0)
    try:
        if act == "search":
            seen(index)
        else:
            index.add([document(1, 2)])
        yield "nothing was noticed"
    except OrchestratorError:  # that it is told is what is asked
        pass
    anew = shelves.open("vs_1", "m", DIMENSION)
    anew.add([document(2, 1)])
    if anew.entries() != {2}:
        yield "the index was not begun anew"


def without_descriptors(folder: Path) -> Iterator[str]:
    """No file can be opened for a while: nothing is lost by that."""
    build(folder)
    before = opened(folder).entries()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in range(12):
        shelves = DiskShelves(folder)
        resource.setrlimit(resource.RLIMIT_NOFILE, (_next_descriptor() + more, limits[1]))
        try:
            shelves.open("vs_1", "m", DIMENSION).add([document(77, 1)])
        except OrchestratorError:  # it may refuse; what it then holds is what is asked
            pass
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        shelves.close()
        after = opened(folder).entries()
        if after - {77} != before:
            yield f"with {more} descriptors: {after}"


def _next_descriptor() -> int:
    found = os.open("/", os.O_RDONLY)
    os.close(found)
    return found


def main(folder: Path, what: str, *more: str) -> None:
    """Print what went wrong."""
    if what == "cut-in-use":
        found = cut_in_use(folder, *more)
    else:
        found = without_descriptors(folder) if what == "descriptors" else spoil_each(folder, HARMS[what])
    for line in found:
        print(line, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
