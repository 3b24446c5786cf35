"""Random changes of one index, told line by line: run as a program it is there to be killed.

What a seed's steps do is the same in every process, so that whoever killed the program knows what it was at.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.crash import CRASH_AT
from orchestrator.documents.model import Chunk
from orchestrator.documents.ports import Indexed
from storage import vectors
from storage.shelves import DiskIndex, DiskShelves
from storage.vector_scan import Floats

DIMENSION = 16
CHUNKS_MAX = 4


@dataclass(frozen=True, slots=True)
class Step:
    """One change: entries with the version of their document, or the entries to remove."""

    add: dict[int, int]
    remove: frozenset[int] = frozenset()

    @property
    def touched(self) -> frozenset[int]:
        """The entries that it changes."""
        return self.remove | self.add.keys()

    def after(self, state: Mapping[int, int]) -> dict[int, int]:
        """What `state`, each entry's version, becomes by it."""
        return {entry: version for entry, version in state.items() if entry not in self.remove} | self.add


def steps(seed: int) -> Iterator[Step]:
    """Without end."""
    chance = random.Random(seed)
    state: dict[int, int] = {}
    for version in itertools.count(1):
        if state and chance.random() < 0.4:
            step = Step({}, frozenset(chance.sample(sorted(state), chance.randint(1, min(len(state), 8)))))
        else:
            step = Step(dict.fromkeys(chance.sample(range(30), chance.randint(1, 6)), version))
        state = step.after(state)
        yield step


def word(entry: int, chunk: int, version: int) -> str:
    """What only this chunk says."""
    return f"w{entry}x{chunk}x{version}"


def vector(entry: int, chunk: int, version: int) -> Floats:
    """What is near to only this chunk."""
    drawn = np.random.default_rng([entry, chunk, version]).standard_normal(DIMENSION).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn), np.float32)


def chunks(entry: int, version: int) -> range:
    """The chunks of a document; some have none."""
    return range((entry + version) % (CHUNKS_MAX + 1))


def document(entry: int, version: int) -> Indexed:
    """Each chunk has two rows: its vector, and the opposite."""
    own = chunks(entry, version)
    rows = [sign * vector(entry, chunk, version) for chunk in own for sign in (1, -1)]
    return Indexed(
        entry=entry,
        title="",
        chunks=[Chunk(text=f"common {word(entry, chunk, version)}") for chunk in own],
        owners=[chunk for chunk in own for _ in range(2)],
        vectors=np.array(rows, np.float32) if rows else None,
    )


def opened(folder: Path) -> DiskIndex:
    """The index that is changed."""
    return DiskShelves(folder).open("vs_1", "an embedder", DIMENSION)


def main(folder: Path, seed: int, point: str = "") -> None:
    """Make changes until killed, each followed by a line; after `quiet_steps`, die at the crash point."""
    vectors.WASTE_MIN = 20
    index = opened(folder)
    for number, step in enumerate(steps(seed), 1):
        index.add([document(entry, version) for entry, version in step.add.items()])
        index.remove(step.remove)
        print(number, flush=True)
        if number == quiet_steps(seed):
            os.environ[CRASH_AT] = point


def quiet_steps(seed: int) -> int:
    """How many changes to wait for before the end."""
    return random.Random(seed).randrange(1, 12)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
