"""The rows of the scale benchmark: vectors of real passages, more of them by mixing, and what is truly nearest.

A million passages take the embedder a day on a small machine. So some tens of thousands are embedded once and kept; the
rest are mixes of two real neighbours with a little noise: as dense as text is, and denser, which is harder.
"""

from __future__ import annotations

import asyncio
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.scale_text import passages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Rows = NDArray[np.int64]

QUERIES = 300
"""Real passages that are in no index."""
ROWS_AN_ENTRY = 20
BEST = 10
SHARES = (1000, 100, 10)
"""How many entries of a thousand a search is allowed: filters of 100, 10 and 1 %."""
NEIGHBOURS = 8
NOISE = 0.01
"""Standard deviation of what is added to each component: the mix keeps a cosine of 0.98 with itself at 384."""
BLOCK_ROWS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Passages:
    """Texts and their vectors, row by row."""

    texts: list[str]
    vectors: Floats


def default_folders() -> tuple[Path, ...]:
    """Where prose lies on any machine."""
    found = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/share/doc", "/usr/share/man")
    return tuple(path for path in map(Path, found) if path.is_dir())


def real(cache: Path, folders: Sequence[Path], count: int) -> Passages:
    """`count` real passages: those kept in `cache`, or else found in `folders`, embedded and kept."""
    import numpy as np

    texts, vectors = cache / "passages.txt", cache / "passages.npy"
    if not vectors.exists():
        found = passages(folders, count)
        cache.mkdir(parents=True, exist_ok=True)
        texts.write_text("\n".join(found), "utf-8")
        np.save(vectors, asyncio.run(_embedded(cache, found)))
    kept: Floats = np.load(vectors)
    return Passages(texts=texts.read_text("utf-8").split("\n")[: min(count, len(kept))], vectors=kept[:count])


async def _embedded(cache: Path, texts: Sequence[str]) -> Floats:
    from storage.embed.minilm import EmbeddedMiniLm

    embedder = EmbeddedMiniLm(cache)
    try:
        return await embedder.embed(texts, wait=True)
    finally:
        await embedder.aclose()


def split(found: Passages) -> tuple[Passages, Passages]:
    """The queries, and the others."""
    queries = Passages(texts=found.texts[:QUERIES], vectors=found.vectors[:QUERIES])
    return queries, Passages(texts=found.texts[QUERIES:], vectors=found.vectors[QUERIES:])


def extended(base: Passages, rows: int) -> Passages:
    """As many rows as asked for: the real ones first, as far as they go, then mixes."""
    import numpy as np

    if rows <= len(base.vectors):
        return Passages(texts=base.texts[:rows], vectors=base.vectors[:rows])
    chance = np.random.default_rng(0)
    near = _neighbours(base.vectors)
    vectors = np.empty((rows, base.vectors.shape[1]), np.float32)
    vectors[: len(base.vectors)] = base.vectors
    texts = list(base.texts)
    for start in range(len(base.vectors), rows, BLOCK_ROWS):
        count = min(BLOCK_ROWS, rows - start)
        first = chance.integers(0, len(near), count)
        second = near[first, chance.integers(0, NEIGHBOURS, count)]
        share = chance.uniform(0.2, 0.8, (count, 1)).astype(np.float32)
        mixed = share * base.vectors[first] + (1 - share) * base.vectors[second]
        mixed += NOISE * chance.standard_normal(mixed.shape, np.float32)
        vectors[start : start + count] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
        texts += [_halves(base.texts[a], base.texts[b]) for a, b in zip(first, second, strict=True)]
    return Passages(texts=texts, vectors=vectors)


def _halves(first: str, second: str) -> str:
    mine, other = first.split(), second.split()
    return " ".join(mine[: len(mine) // 2] + other[len(other) // 2 :])


def _neighbours(vectors: Floats) -> Rows:
    """Of each row, the `NEIGHBOURS` nearest others."""
    import numpy as np

    found = np.empty((len(vectors), NEIGHBOURS), np.int64)
    for start in range(0, len(vectors), 1000):
        cosines = vectors[start : start + 1000] @ vectors.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = -2
        found[start : start + 1000] = np.argpartition(cosines, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
    return found


def shares(rows: int) -> Rows:
    """A number below 1,000 for each entry, by which filters choose."""
    import numpy as np

    return np.random.default_rng(1).integers(0, 1000, -(-rows // ROWS_AN_ENTRY))


def nearest(vectors: Floats, queries: Floats, share: int) -> Rows:
    """Of each query, the `BEST` rows that are truly nearest by float32, among the entries that `share` allows."""
    import numpy as np

    rows = np.flatnonzero(np.repeat(shares(len(vectors)), ROWS_AN_ENTRY)[: len(vectors)] < share)
    best = np.empty((len(queries), 0), np.int64)
    cosines = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        part = rows[start : start + BLOCK_ROWS]
        cosines = np.hstack([cosines, queries @ vectors[part].T])
        best = np.hstack([best, np.broadcast_to(part, (len(queries), len(part)))])
        keep = np.argsort(-cosines, axis=1)[:, :BEST]
        cosines, best = np.take_along_axis(cosines, keep, 1), np.take_along_axis(best, keep, 1)
    return best
