"""One subject of the scale benchmark, in a process of its own, so that its memory is its own.

``python bench/scale_subject.py NAME INPUT WORK`` reads rows and queries from the folder INPUT, builds in WORK, and
prints one line of JSON. It stands alone, since a peer's environment has nothing of this project.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

BEST = 10
BATCH_ROWS = 20_000
PHASE_S = 30.0
"""How long a phase goes on at most, once it has `QUERIES_MIN`."""
QUERIES_MIN = 10
WARM_QUERIES = 5
FUSED = 50
"""Of each leg, where the fusion is ours."""


class Subject(Protocol):
    """What is measured. Found rows are numbers of rows of the input."""

    note: str
    searches_words: bool

    def build(self, rows: Iterator[tuple[int, list[str], NDArray[np.float32]]]) -> None:
        """Take all rows, batch by batch with the first one's number, durably, and be ready to search."""

    def vectors(self, vector: NDArray[np.float32], share: int) -> list[int]:
        """The nearest, among the entries whose share is below `share`."""

    def hybrid(self, text: str, vector: NDArray[np.float32]) -> list[int]:
        """The best by words and vectors, with their texts fetched."""


class Input:
    """The rows and queries that every subject gets."""

    def __init__(self, folder: Path) -> None:
        self._rows = folder / "rows.npy"
        self.shares = np.load(folder / "shares.npy")
        self.queries = np.load(folder / "queries.npy")
        self.texts = (folder / "queries.txt").read_text("utf-8").split("\n")
        self.rows_an_entry = int((folder / "rows_an_entry").read_text())
        self.dimension = self.queries.shape[1]
        self._lines = folder / "rows.txt"

    def batches(self) -> Iterator[tuple[int, list[str], NDArray[np.float32]]]:
        """The rows, some at a time."""
        rows = np.load(self._rows, mmap_mode="r")
        with self._lines.open(encoding="utf-8") as lines:
            for start in range(0, len(rows), BATCH_ROWS):
                part = np.array(rows[start : start + BATCH_ROWS])
                yield start, [next(lines).rstrip("\n") for _ in part], part

    def share_of(self, start: int, count: int) -> NDArray[np.int64]:
        """Of each of the rows from `start` on, the share of its entry."""
        return np.asarray(self.shares[np.arange(start, start + count) // self.rows_an_entry])


class Ours:
    """The index of this project, as the service opens it."""

    searches_words = True

    def __init__(self, given: Input, work: Path) -> None:
        from storage.shelves import DiskShelves

        self.note = ""
        self._given = given
        self._index = DiskShelves(work).open("vs_scale", "bench", given.dimension)
        self._allowed = {
            share: frozenset(np.flatnonzero(given.shares < share).tolist()) if share < 1000 else None
            for share in (1000, 100, 10)
        }

    def build(self, rows: Iterator[tuple[int, list[str], NDArray[np.float32]]]) -> None:
        from orchestrator.documents.model import Chunk
        from orchestrator.documents.ports import Indexed

        step = self._given.rows_an_entry
        for start, texts, vectors in rows:
            self._index.add(
                [
                    Indexed(
                        entry=(start + at) // step,
                        title="",
                        chunks=[Chunk(text=text) for text in texts[at : at + step]],
                        owners=range(len(texts[at : at + step])),
                        vectors=vectors[at : at + step],
                    )
                    for at in range(0, len(texts), step)
                ]
            )

    def vectors(self, vector: NDArray[np.float32], share: int) -> list[int]:
        hits = self._index.nearest(vector, allowed=self._allowed[share], limit=BEST)
        return [hit.entry * self._given.rows_an_entry + hit.chunk for hit in hits]

    def hybrid(self, text: str, vector: NDArray[np.float32]) -> list[int]:
        from orchestrator.documents.fusion import fuse

        words = self._index.words(text, allowed=None, limit=FUSED)
        best = fuse(words, self._index.nearest(vector, allowed=None, limit=FUSED))[:BEST]
        self._index.chunks([(each.entry, each.chunk) for each in best])
        return [each.entry * self._given.rows_an_entry + each.chunk for each in best]


def arrow(given: Input, start: int, texts: list[str], vectors: NDArray[np.float32]) -> Any:
    """A batch as an Arrow table."""
    pa = importlib.import_module("pyarrow")

    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    count = len(texts)
    ids = np.arange(start, start + count)
    return pa.table({"id": ids, "share": given.share_of(start, count), "text": texts, "vector": flat})


class LanceDb:
    """LanceDB with its own indexes for vectors and words, as its documentation makes them."""

    searches_words = True

    def __init__(self, given: Input, work: Path) -> None:
        lancedb = importlib.import_module("lancedb")

        self.note = f"LanceDB {lancedb.__version__}, IVF_PQ with its defaults, refine_factor 10"
        self._given = given
        self._database = lancedb.connect(work)
        self._table: Any = None

    def build(self, rows: Iterator[tuple[int, list[str], NDArray[np.float32]]]) -> None:
        for start, texts, vectors in rows:
            batch = arrow(self._given, start, texts, vectors)
            if self._table is None:
                self._table = self._database.create_table("rows", batch)
            else:
                self._table.add(batch)
        self._table.create_index(metric="cosine", vector_column_name="vector")
        self._table.create_fts_index("text")

    def vectors(self, vector: NDArray[np.float32], share: int) -> list[int]:
        search = self._table.search(vector).distance_type("cosine").refine_factor(10)
        if share < 1000:
            search = search.where(f"share < {share}", prefilter=True)
        return list(search.limit(BEST).select(["id", "_distance"]).to_arrow()["id"].to_pylist())

    def hybrid(self, text: str, vector: NDArray[np.float32]) -> list[int]:
        search = self._table.search(query_type="hybrid", vector_column_name="vector", fts_columns="text")
        found = search.vector(vector).text(text).distance_type("cosine").refine_factor(10).limit(BEST).to_arrow()
        return list(found["id"].to_pylist())


class DuckDb:
    """DuckDB alone: a table, and a cosine for each row."""

    searches_words = False

    def __init__(self, given: Input, work: Path) -> None:
        import duckdb

        self.note = f"DuckDB {duckdb.__version__}, array_cosine_similarity over a table"
        self._given = given
        self._connection: Any = duckdb.connect(str(work / "rows.duckdb"))
        self._kind = f"FLOAT[{given.dimension}]"

    def build(self, rows: Iterator[tuple[int, list[str], NDArray[np.float32]]]) -> None:
        self._connection.execute(f"CREATE TABLE rows (id BIGINT, share BIGINT, text VARCHAR, vector {self._kind})")
        for start, texts, vectors in rows:
            self._connection.register("batch", arrow(self._given, start, texts, vectors))
            self._connection.execute("INSERT INTO rows SELECT id, share, text, vector FROM batch")
            self._connection.unregister("batch")
        self._connection.execute("CHECKPOINT")

    def vectors(self, vector: NDArray[np.float32], share: int) -> list[int]:
        found = self._connection.execute(
            "SELECT id FROM rows WHERE share < ?"
            f" ORDER BY array_cosine_similarity(vector, ?::{self._kind}) DESC LIMIT ?",
            [share, vector.tolist(), BEST],
        )
        return [id for (id,) in found.fetchall()]

    def hybrid(self, text: str, vector: NDArray[np.float32]) -> list[int]:
        raise NotImplementedError("its full-text extension is not in the package")


SUBJECTS: dict[str, type[Ours] | type[LanceDb] | type[DuckDb]] = {"ours": Ours, "lancedb": LanceDb, "duckdb": DuckDb}


def timed(search: Callable[[int], list[int]], queries: int) -> dict[str, Any]:
    """Milliseconds of each query one after another, and what it found."""
    for query in range(min(WARM_QUERIES, queries)):
        search(query)
    ms: list[float] = []
    found: list[list[int]] = []
    ends = time.monotonic() + PHASE_S
    while len(ms) < queries and (len(ms) < QUERIES_MIN or time.monotonic() < ends):
        began = time.perf_counter()
        found.append(search(len(ms)))
        ms.append((time.perf_counter() - began) * 1000)
    return {"ms": ms, "found": found}


def memory_bytes() -> tuple[int, int]:
    """What this process holds: of its own, and of mapped files, which the system takes back when it needs room."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))
    return own, mapped


def main(name: str, given: Input, work: Path) -> dict[str, Any]:
    """Build, search in every way, and tell."""
    began = time.monotonic()
    subject: Subject = SUBJECTS[name](given, work)
    subject.build(given.batches())
    build_s = time.monotonic() - began
    count = len(given.queries)
    phases = {
        str(share): timed(lambda at, share=share: subject.vectors(given.queries[at], share), count)  # type: ignore[misc]
        for share in (1000, 100, 10)
    }
    if subject.searches_words:
        phases["hybrid"] = timed(lambda at: subject.hybrid(given.texts[at], given.queries[at]), count)
    own, mapped = memory_bytes()
    disk = sum(path.stat().st_blocks * 512 for path in work.rglob("*") if path.is_file())
    return {
        "subject": name,
        "note": subject.note,
        "build_s": build_s,
        "disk_bytes": disk,
        "own_bytes": own,
        "mapped_bytes": mapped,
        "phases": phases,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Input(Path(sys.argv[2])), Path(sys.argv[3]))))
