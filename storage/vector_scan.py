"""The arithmetic of the vector index: what is stored of a vector, and how rows are compared. Pure numpy, no I/O.

A row is kept twice: as 16-bit integers, which give its cosine to within 1e-4, and as a bit for each component, on which
side of the rows' centre it lies: 48 bytes at 384 dimensions. The bits choose the few thousand rows that the integers
then rank. Without the centre, bits say little of vectors that all point the same way, as some models' do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Values = NDArray[np.int16]
Codes = NDArray[np.uint64]
Places = NDArray[np.int64]

VALUE_ONE = 32767
"""How 1.0 is stored."""
BLOCK_ROWS = 2**16
"""Of bits that are kept together, word by word, so that each word's comparison runs over a column."""
SCAN_ROWS = 2**15
"""Compared at once: the temporaries stay in the CPU's cache."""
SCORE_ROWS = 2048
"""Scored at once: 3 MB as floats at 384 dimensions."""


def words(dimension: int) -> int:
    """64-bit words of a row's bits."""
    return -(-dimension // 64)


def values_of(vectors: Floats) -> Values:
    """Shape kept. Components beyond -1 and 1 are cut off."""
    return np.rint(np.clip(vectors, -1.0, 1.0) * VALUE_ONE).astype(np.int16)


def floats_of(values: Values) -> Floats:
    """What `values_of` was given, but for rounding."""
    return np.divide(values, VALUE_ONE, dtype=np.float32)


def codes_of(vectors: Floats, centre: Floats) -> Codes:
    """Shape (rows, words): a bit is set where the component is above that of the centre; the spare ones are 0."""
    rows, dimension = vectors.shape
    bits = np.zeros((rows, words(dimension) * 64), np.bool_)
    bits[:, :dimension] = vectors > centre
    return np.packbits(bits, axis=1).view(np.uint64)


def scores(values: Values, rows: Places | None, vector: Floats) -> Floats:
    """The cosine of each of `rows` (None: all, in order) with `vector`, both of length 1."""
    count = len(values) if rows is None else len(rows)
    found = np.empty(count, np.float32)
    floats = np.empty((min(SCORE_ROWS, count), len(vector)), np.float32)
    scaled = vector / np.float32(VALUE_ONE)
    for start, end in _steps(count, SCORE_ROWS):
        part = floats[: end - start]
        np.copyto(part, values[start:end] if rows is None else values[rows[start:end]])
        np.vecdot(part, scaled, out=found[start:end])  # np.dot would wake threads, and wait for them on a busy machine
    return np.clip(found, -1.0, 1.0, out=found)


def differences(blocks: Sequence[Codes], count: int, code: Codes) -> NDArray[np.uint16]:
    """How many bits of each of the first `count` rows differ from those of `code`.

    `blocks` have the shape (words, `BLOCK_ROWS`).
    """
    found = np.zeros(count, np.uint16)
    for at, block in enumerate(blocks):
        part = found[at * BLOCK_ROWS : (at + 1) * BLOCK_ROWS]
        for start, end in _steps(len(part), SCAN_ROWS):
            for column, word in zip(block, code, strict=True):
                part[start:end] += np.bitwise_count(column[start:end] ^ word)
    return found


def smallest(numbers: NDArray[np.uint16], count: int) -> Places:
    """The places of the `count` smallest, in order of place, and of all that equal the last of them."""
    if count >= len(numbers):
        return np.arange(len(numbers))
    return np.flatnonzero(numbers <= np.partition(numbers, count - 1)[count - 1])


def largest(numbers: Floats, count: int) -> Places:
    """The places of the `count` largest, largest first; among equals, the first."""
    if count < len(numbers):
        last = np.partition(numbers, len(numbers) - count)[len(numbers) - count]
        chosen = np.flatnonzero(numbers >= last)
    else:
        chosen = np.arange(len(numbers))
    return chosen[np.argsort(-numbers[chosen], kind="stable")][:count]


def _steps(count: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, step):
        yield start, min(start + step, count)
