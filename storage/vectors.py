"""The passages of one vector store by their vectors. A cache, rebuilt when it is not as it should.

Up to `EXACT_ROWS` rows are all compared with the query; of more, their bits choose a shortlist (see `vector_scan`)
among those that the filter allows, so that a filter costs no recall.

Why so, and not a graph or clusters: nothing is trained, so that a row is found as soon as it is appended; a removed row
leaves no hole; every filter works; and numpy is enough. A million rows of 384 dimensions take 8 ms on one core, of
which 5 ms are the bits; integers alone take 60 ms.

Memory: the bits, 48 bytes a row at 384 dimensions, so 50 MB a million rows. The rest, 772 bytes a row, is mapped: the
operating system keeps what searches touch while there is room.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog

from orchestrator.documents.model import Hit
from orchestrator.documents.ports import Indexed
from storage import vector_scan as scan
from storage.seals import Seals, Stamp
from storage.vector_files import GONE, RECORD, Batch, Columns, VectorsError, read_manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS_MAX = 10_000_000
"""Of one index, with those of removed entries that still take room."""
EXACT_ROWS = 2**17
FEW_ROWS = 2**14
"""Of a filter: so many are all compared with the query whatever the index holds."""
SHORTLIST_ROWS = 4000
ROWS_A_HIT = 20
"""The shortlist has at least so many for each hit that is wanted, since a chunk has a row for each of its pieces."""
WASTE_MIN = 2**14
"""Rows and records of the past: fewer are not worth a compaction, nor is less than a quarter of all."""

log = structlog.get_logger()


class Vectors:
    """One index. Blocks. Any number of threads may search, one at a time may change.

    Raises `VectorsError`, `VectorsDamaged` where it can't go on with what is in the folder.
    """

    def __init__(self, folder: Path, dimension: int, seals: Seals | None = None) -> None:
        """Open the index in `folder`, or make an empty one where there is none. Reads all of it, but for what `seals`
        knows to be whole."""
        self._dimension = dimension
        self._seals = seals or Seals()
        self._lock = threading.Lock()
        """Held by a change, and by whoever reads the files through."""
        self._changing = False
        self._seen: _Seen
        self._columns = Columns(folder, read_manifest(folder, dimension))
        self._columns.sweep()
        self._load()

    def entries(self) -> frozenset[int]:
        """What is in it, durably; also those that have no vectors."""
        return self._seen.entries

    def add(self, documents: Sequence[Indexed]) -> None:
        """Put them in, each anew if it was there. Durable and found by searches on return; all or nothing.

        Raises `ValueError` for vectors of another dimension, or that are no numbers.
        """
        batch = self._batch(documents)
        if self._columns.manifest.rows + len(batch.values) > ROWS_MAX:
            raise VectorsError(f"an index holds at most {ROWS_MAX} vectors")
        self._change(batch)

    def remove(self, entries: Collection[int]) -> None:
        """Take them out. Durable on return; all or nothing."""
        gone = self._seen.entries.intersection(entries)
        if gone:
            self._change(self._without_rows([(entry, GONE) for entry in gone]))

    def nearest(self, vector: scan.Floats, *, allowed: Collection[int] | None, limit: int) -> list[Hit]:
        """The chunks with the highest cosine (each by its best row), best first, each once, of the `allowed` entries.

        `vector`: shape (dimension,), of length 1.
        """
        if vector.shape != (self._dimension,):
            raise ValueError(f"a vector of shape {vector.shape} for an index of dimension {self._dimension}")
        seen = self._whole()
        rows = seen.rows_of(allowed)
        among = seen.count if rows is None else len(rows)
        wanted = max(SHORTLIST_ROWS, limit * ROWS_A_HIT)
        while limit > 0 and among:
            hits = seen.nearest(vector.astype(np.float32), rows, wanted, limit)
            if len(hits) == limit or wanted >= among:
                return hits
            wanted *= 4
        return []

    def cosines(self, vector: scan.Floats, keys: Sequence[tuple[int, int]]) -> list[list[float]]:
        """For each (entry, chunk), the cosine of each of its pieces, in order; nothing where it has no vectors."""
        seen = self._whole()
        rows = [seen.rows_of_chunk(*key) for key in keys]
        found = scan.scores(seen.values, np.concatenate([np.empty(0, np.int64), *rows]), vector.astype(np.float32))
        ends = np.cumsum([len(part) for part in rows], dtype=np.int64)
        return [part.tolist() for part in np.split(found, ends)[:-1]] if keys else []

    def close(self) -> None:
        """Let go of files and memory. Nothing may be asked of it after."""
        del self._seen, self._blocks

    def _whole(self) -> _Seen:
        """What is searched now.

        1. Its files are as they were, or we are changing them, which leaves alone what it counts.
        2. We have changed them since it was had: what is searched now is another.
        3. Somebody else touched them: they are read through. Raises `VectorsDamaged`.
        """
        while True:
            seen = self._seen
            if seen.columns.stamps() == seen.stamps or self._changing:
                return seen
            if seen is self._seen:
                with self._lock:
                    self._look_again()

    def _look_again(self) -> None:
        """Read the files through if they are not as they were. Holds the lock."""
        stamps = self._columns.stamps()
        if stamps != self._seen.stamps:
            self._columns.check(self._seals)
            self._seen = replace(self._seen, stamps=stamps)

    def _change(self, batch: Batch) -> None:
        with self._lock:
            self._look_again()
            self._changing = True
            try:
                self._append(batch)
            finally:
                self._changing = False
                self._columns.trust(self._seals)

    def _append(self, batch: Batch) -> None:
        start = self._columns.manifest.rows
        self._columns.append([batch])
        self._replay(batch.records, start)
        self._fill(start, batch.codes)
        self._seen = self._look()
        if self._wasteful() or (self._seen.count > EXACT_ROWS and not self._columns.manifest.centred):
            self._compact()

    def _load(self) -> None:
        self._columns.check(self._seals)
        self._held: dict[int, tuple[int, int]] = {}
        self._blocks: list[scan.Codes] = []
        self._centre = self._columns.centre()
        self._replay(self._columns.records(), 0)
        self._fill(0, self._columns.codes())
        self._seen = self._look()

    def _replay(self, records: NDArray[np.void], start: int) -> None:
        """Bring `_held` up to date: each entry's first row and how many, in order of the rows."""
        for entry, rows in records.tolist():
            self._held.pop(entry, None)
            if rows != GONE:
                self._held[entry] = (start, rows)
                start += rows

    def _fill(self, start: int, codes: scan.Codes) -> None:
        """Put the bits of the rows from `start` on into their blocks. No search that is under way looks there."""
        done = 0
        while done < len(codes):
            block, at = divmod(start + done, scan.BLOCK_ROWS)
            if block == len(self._blocks):
                self._blocks.append(np.empty((codes.shape[1], scan.BLOCK_ROWS), np.uint64))
            part = codes[done : done + scan.BLOCK_ROWS - at]
            self._blocks[block][:, at : at + len(part)] = part.T
            done += len(part)

    def _look(self) -> _Seen:
        spans = [(entry, start, rows) for entry, (start, rows) in self._held.items() if rows]
        names, starts, lengths = np.array(spans, np.int64).reshape(-1, 3).T.copy()
        return _Seen(
            columns=self._columns,
            stamps=self._columns.stamps(),
            entries=frozenset(self._held),
            spans=dict(self._held),
            count=self._columns.manifest.rows,
            names=names,
            starts=starts,
            lengths=lengths,
            values=self._columns.values(),
            chunks=self._columns.chunks(),
            blocks=tuple(self._blocks),
            centre=self._centre,
        )

    def _wasteful(self) -> bool:
        manifest = self._columns.manifest
        total = manifest.rows + manifest.records
        return total - int(self._seen.lengths.sum()) - len(self._held) > max(WASTE_MIN, total // 4)

    def _compact(self) -> None:
        """Write what counts to new files. Searches under way end with the old ones; a refusal leaves those in use."""
        seen = self._seen
        rows = seen.places(np.ones(len(seen.names), np.bool_))
        centre = _centre(seen.values, rows) if len(rows) else None
        try:
            new = self._columns.next_generation(centre)
            new.append(self._live(rows, new.centre()))
            new.trust(self._seals)
        except VectorsError as error:
            log.warning("vectors_not_compacted", error=str(error))
            self._columns.sweep()
            return
        self._columns = new
        self._load()
        new.sweep()

    def _live(self, rows: scan.Places, centre: scan.Floats) -> Iterator[Batch]:
        """What counts: all records, then the rows, some 50 MB at a time."""
        yield self._without_rows([(entry, count) for entry, (_, count) in self._held.items()])
        for part in _parts(rows):
            values = self._seen.values[part]
            codes = scan.codes_of(scan.floats_of(values), centre)
            yield Batch(np.empty(0, RECORD), values, codes, self._seen.chunks[part])

    def _without_rows(self, records: list[tuple[int, int]]) -> Batch:
        return self._coded(records, np.empty((0, self._dimension), np.float32), [])

    def _batch(self, documents: Sequence[Indexed]) -> Batch:
        none = np.empty((0, self._dimension), np.float32)
        parts = [none if document.vectors is None else document.vectors for document in documents]
        records = [(document.entry, len(part)) for document, part in zip(documents, parts, strict=True)]
        owners = [owner for document in documents if document.vectors is not None for owner in document.owners]
        vectors = np.concatenate([none, *parts])
        if len(owners) != len(vectors) or not np.isfinite(vectors).all():
            raise ValueError("vectors that have no owner, or are no numbers")
        return self._coded(records, vectors, owners)

    def _coded(self, records: list[tuple[int, int]], vectors: scan.Floats, owners: Sequence[int]) -> Batch:
        codes = scan.codes_of(vectors, self._centre)
        return Batch(np.array(records, RECORD), scan.values_of(vectors), codes, np.array(owners, np.int32))


def _centre(values: scan.Values, rows: scan.Places) -> scan.Floats:
    """The mean of the rows."""
    total = sum(values[part].sum(axis=0, dtype=np.int64) for part in _parts(rows))
    return np.asarray(total / (len(rows) * scan.VALUE_ONE), np.float32)


def _parts(rows: scan.Places) -> Iterator[scan.Places]:
    for start in range(0, len(rows), scan.BLOCK_ROWS):
        yield rows[start : start + scan.BLOCK_ROWS]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """The index as one search sees it, from beginning to end. Rows that are no entry's are in no span."""

    columns: Columns
    stamps: tuple[Stamp | None, ...]
    """Of its files, when it was had."""
    entries: frozenset[int]
    spans: Mapping[int, tuple[int, int]]
    """Each entry's first row and how many."""
    count: int
    names: NDArray[np.int64]
    """The entries that have rows, in order of the rows; of each, where they begin and how many they are."""
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    values: scan.Values
    chunks: NDArray[np.int32]
    blocks: tuple[scan.Codes, ...]
    centre: scan.Floats

    def rows_of(self, allowed: Collection[int] | None) -> scan.Places | None:
        """The rows of the `allowed` entries, in order; None for all that there are."""
        chosen = np.ones(len(self.names), np.bool_)
        if allowed is not None:
            chosen = np.isin(self.names, np.fromiter(allowed, np.int64, len(allowed)))
        if int(self.lengths[chosen].sum()) == self.count:
            return None
        return self.places(chosen)

    def places(self, chosen: NDArray[np.bool_]) -> scan.Places:
        """The rows of the `chosen` spans, in order."""
        lengths = self.lengths[chosen]
        shifts = self.starts[chosen] - np.cumsum(lengths) + lengths
        return np.arange(int(lengths.sum())) + np.repeat(shifts, lengths)

    def rows_of_chunk(self, entry: int, chunk: int) -> scan.Places:
        """Those of one chunk, in order."""
        start, rows = self.spans.get(entry, (0, 0))
        return start + np.flatnonzero(self.chunks[start : start + rows] == chunk)

    def nearest(self, vector: scan.Floats, rows: scan.Places | None, wanted: int, limit: int) -> list[Hit]:
        """The best chunks among the `wanted` best of `rows` (None: all), at most `limit`."""
        if self.count > EXACT_ROWS and (rows is None or len(rows) > FEW_ROWS):
            rows = self._shortlist(vector, rows, wanted)
        cosines = scan.scores(self.values, rows, vector)
        best = scan.largest(cosines, wanted)
        places = best if rows is None else rows[best]
        entries = self.names[np.searchsorted(self.starts, places, "right") - 1]
        hits: dict[tuple[int, int], float] = {}
        for entry, chunk, score in zip(
            entries.tolist(), self.chunks[places].tolist(), cosines[best].tolist(), strict=True
        ):
            hits.setdefault((entry, chunk), score)
            if len(hits) == limit:
                break
        return [Hit(entry=entry, chunk=chunk, score=score) for (entry, chunk), score in hits.items()]

    def _shortlist(self, vector: scan.Floats, rows: scan.Places | None, wanted: int) -> scan.Places:
        """The rows whose bits differ least from the vector's."""
        (code,) = scan.codes_of(vector[None], self.centre)
        different = scan.differences(self.blocks, self.count, code)
        if rows is None:
            return scan.smallest(different, wanted)
        return rows[scan.smallest(different[rows], wanted)]
