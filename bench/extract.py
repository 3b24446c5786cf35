"""``python -m bench.extract [FILE …]``: how long documents take to be read and cut, each in a limited process.

Beside the files that are named, a short and a long text are read. The event loop's lag is measured meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.lag import Lag
from orchestrator.documents.model import Chunking
from orchestrator.documents.ports import Source
from storage.extract.reader import LimitedReader

SEED = 7
PARALLEL = 2
PIECE_TOKENS_MAX = 254
MEMORY_BYTES_MAX = 2**30
TIME_MAX_S = 600.0
TEXT_BYTES_MAX = 256 * 2**20
WORDS = 5_000
LINE_WORDS = 12
PARAGRAPH_LINES = 8
MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Of one document."""

    name: str
    bytes: int
    chunks: int
    pieces: int
    distinct_pieces: int
    ms: float
    """Median, one at a time."""
    per_s: float
    """`PARALLEL` at a time."""
    lag_ms: float
    """The event loop's worst, see `Lag`."""


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.extract", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--times", type=int, default=10, help="how often each is read (default: 10)")
    parser.add_argument("--long-mib", type=int, default=8, help="the size of the long text (default: 8 MiB)")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json to count with; else tokens are estimated")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(_measured(options, Path(folder)))
    if options.json:
        print(json.dumps([asdict(row) for row in figures]))
    else:
        _print(figures)


async def _measured(options: argparse.Namespace, folder: Path) -> list[Figures]:
    reader = LimitedReader(
        memory_bytes_max=MEMORY_BYTES_MAX,
        time_max_s=TIME_MAX_S,
        text_bytes_max=TEXT_BYTES_MAX,
        parallel_max=PARALLEL,
        tokenizer=options.tokenizer,
    )
    (folder / "short.txt").write_text("A short note.\n\nOf two paragraphs.\n")
    (folder / "long.txt").write_bytes(_long_text(options.long_mib * MIB))
    found = [await _one(reader, folder / "short.txt", options.times)]
    for path in options.files:
        found.append(await _one(reader, path, options.times))
    found.append(await _one(reader, folder / "long.txt", 1))
    reader.close()
    return found


async def _one(reader: LimitedReader, path: Path, times: int) -> Figures:
    source = Source(path=path, filename=path.name, content_type="")
    size = await asyncio.to_thread(lambda: path.stat().st_size)
    lag = Lag()
    took: list[float] = []
    async with lag.measured():
        for _ in range(times):
            began = time.perf_counter()
            passages = await reader.read(source, Chunking(), piece_tokens_max=PIECE_TOKENS_MAX)
            took.append(time.perf_counter() - began)
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(times * PARALLEL):
                tasks.create_task(reader.read(source, Chunking(), piece_tokens_max=PIECE_TOKENS_MAX))
        together_s = time.perf_counter() - began
    pieces = [chunk.text[piece.start : piece.end] for chunk in passages.chunks for piece in chunk.parts]
    return Figures(
        name=path.name,
        bytes=size,
        chunks=len(passages.chunks),
        pieces=len(pieces),
        distinct_pieces=len(set(pieces)),
        ms=1000 * statistics.median(took),
        per_s=times * PARALLEL / together_s,
        lag_ms=1000 * lag.worst_s,
    )


def _long_text(size: int) -> bytes:
    """Paragraphs of made-up words, as often as words are."""
    noise = random.Random(SEED)
    words = ["".join(noise.choices("etaoinshrdlu", k=noise.randint(2, 9))) for _ in range(WORDS)]
    weights = [1 / rank for rank in range(1, WORDS + 1)]
    lines: list[str] = []
    total = 0
    while total < size:
        end = "." if len(lines) % PARAGRAPH_LINES else ".\n"
        lines.append(" ".join(noise.choices(words, weights, k=LINE_WORDS)) + end)
        total += len(lines[-1]) + 1
    return "\n".join(lines).encode()


def _print(figures: Sequence[Figures]) -> None:
    table = Table(
        "document", "KiB", "chunks", "pieces", "distinct", "ms", f"per s, {PARALLEL} at once", "worst lag, ms"
    )
    for row in figures:
        counts = (f"{row.bytes / 1024:.0f}", str(row.chunks), str(row.pieces), str(row.distinct_pieces))
        table.add_row(row.name, *counts, f"{row.ms:.0f}", f"{row.per_s:.1f}", f"{row.lag_ms:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
