"""``python -m bench.ingest``: how much of the embedder's own speed is left when documents go the whole way.

Files in the object store are read in their subprocesses, cut, embedded, kept, put into both indexes and marked in the
catalogue, all by the service's own parts; then the embedder alone is given the same texts. In turns, on one machine;
shares are medians. The texts are Python's own help topics, or the files of a folder.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench.lag import Lag
from orchestrator.config import cache_dir
from orchestrator.documents.embedders import Embedders
from orchestrator.documents.gates import Gates
from orchestrator.documents.ids import new_id
from orchestrator.documents.ingest import Ingest
from orchestrator.documents.keys import file_key
from orchestrator.documents.model import Chunking, IngestStatus, StoredFile, StoreFile, VectorStore
from orchestrator.documents.pieces import pieces
from orchestrator.documents.reading import Reading
from orchestrator.documents.roster import Roster
from orchestrator.errors import OrchestratorError
from orchestrator.library import JOBS_PER_READER
from orchestrator.settings import IngestSettings
from storage.catalog import Catalog
from storage.embed.minilm import EmbeddedMiniLm
from storage.extract.reader import LimitedReader
from storage.objects_folder import FolderObjects
from storage.records import RecordedShelf
from storage.shelves import DiskShelves

TENANT = "bench"
SMALL_FILES, SMALL_CHARS = 120, 3_000
LARGE_FILES, LARGE_CHARS = 3, 120_000
LOOK_S = 0.01
WIDTH = 140


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """One round of one kind of files."""

    files: int
    pieces: int
    files_per_s: float
    pieces_per_s: float
    embedder_pieces_per_s: float
    """Alone, with the same texts."""
    cpu_s: float
    """Of the whole, readers included; what a machine that others use, too, changes less."""
    embedder_cpu_s: float
    lag_max_ms: float
    """Of the event loop during the whole, see `Lag`."""

    @property
    def share(self) -> float:
        """Of the embedder's own speed."""
        return self.pieces_per_s / self.embedder_pieces_per_s


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0, or 1 when something can't be had."""
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__)
    parser.add_argument("--texts", type=Path, help="a folder with text files; default: Python's help topics")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each kind of files")
    options = parser.parse_args(argv)
    try:
        found = uvloop.run(_measure(_text(options.texts), options.rounds))
    except OrchestratorError as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        for kind, rounds in found.items():
            print(json.dumps({"kind": kind, "share": _median_share(rounds), "rounds": [asdict(one) for one in rounds]}))
    else:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(_table(found))
    return 0


async def _measure(text: str, rounds: int) -> dict[str, list[Figures]]:
    embedder = EmbeddedMiniLm(cache_dir(os.environ))
    await embedder.prepare()
    await embedder.embed(["warm up"], wait=True)
    kinds = {"small": _cut(text, SMALL_FILES, SMALL_CHARS), "large": _cut(text, LARGE_FILES, LARGE_CHARS)}
    found: dict[str, list[Figures]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        for kind, texts in kinds.items():
            print(f"round {number + 1} of {rounds}: {kind} files", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
                found[kind].append(await _round(Path(folder), embedder, texts))
    await embedder.aclose()
    return found


async def _round(folder: Path, embedder: EmbeddedMiniLm, texts: Sequence[str]) -> Figures:
    objects = FolderObjects(folder / "objects")
    catalog = Catalog(folder / "catalog.duckdb")
    shelf = RecordedShelf(catalog, objects)
    await shelf.fresh()
    shelves, roster = DiskShelves(folder / "indexes"), Roster(shelf)
    (folder / "reading").mkdir()
    settings = IngestSettings()
    readers: list[LimitedReader] = []

    def make_reader(tokenizer: Path | None) -> LimitedReader:
        readers.append(
            LimitedReader(
                memory_bytes_max=settings.memory_bytes_max,
                time_max_s=settings.time_max_s,
                text_bytes_max=settings.text_bytes_max,
                parallel_max=settings.parallel_max,
                tokenizer=tokenizer,
            )
        )
        return readers[-1]

    reading = Reading(
        shelf=shelf,
        objects=objects,
        embedders=Embedders(embedder),
        make_extractor=make_reader,
        folder=folder / "reading",
    )
    ingest = Ingest(
        shelf=shelf,
        shelves=shelves,
        roster=roster,
        reading=reading,
        gates=Gates(),
        monotonic=time.monotonic,
        jobs_max=settings.parallel_max * JOBS_PER_READER,
    )
    store = VectorStore(id=new_id("vector_store"), tenant=TENANT, name="", created_unix=0, last_active_unix=0)
    await shelf.add_store(store)
    members = await shelf.add_store_files([await _stored(shelf, objects, store, text) for text in texts])
    lag = Lag()
    began, cpu_began = time.perf_counter(), _cpu_s()
    async with lag.measured():
        await _run(ingest)
    whole_s = time.perf_counter() - began
    for reader in readers:
        reader.close()  # its processor time counts from now on
    cpu_s = _cpu_s() - cpu_began
    done = await shelf.all_store_files(store.id)
    if any(file.status is not IngestStatus.COMPLETED for file in done) or len(done) != len(members):
        raise OrchestratorError(f"not all files were read: {ingest.progress.cause}")
    embedded = [text for file in done for text in pieces(await reading.content(file)).texts]
    began, cpu_began = time.perf_counter(), _cpu_s()
    await embedder.embed(embedded, wait=True)
    alone_s, alone_cpu_s = time.perf_counter() - began, _cpu_s() - cpu_began
    shelves.close()
    await objects.aclose()
    await asyncio.to_thread(catalog.close)
    return Figures(
        files=len(texts),
        pieces=len(embedded),
        files_per_s=len(texts) / whole_s,
        pieces_per_s=len(embedded) / whole_s,
        embedder_pieces_per_s=len(embedded) / alone_s,
        cpu_s=cpu_s,
        embedder_cpu_s=alone_cpu_s,
        lag_max_ms=lag.worst_s * 1000,
    )


async def _run(ingest: Ingest) -> None:
    """As the service does, until nothing is left."""
    running = asyncio.create_task(ingest.run())
    begun = False
    while not begun or ingest.progress.running or ingest.progress.waiting:
        begun = begun or ingest.progress.running > 0
        await asyncio.sleep(LOOK_S)
    running.cancel()
    await asyncio.wait([running])


async def _stored(shelf: RecordedShelf, objects: FolderObjects, store: VectorStore, text: str) -> StoreFile:
    id, data = new_id("file"), text.encode()
    await objects.put_bytes(file_key(TENANT, id), data)
    file = StoredFile(
        id=id,
        tenant=TENANT,
        filename="topic.txt",
        purpose="assistants",
        bytes=len(data),
        content_type="text/plain",
        sha256=hashlib.sha256(data).hexdigest(),
        created_unix=0,
    )
    await shelf.add_file(file)
    return StoreFile(
        store=store.id,
        file=id,
        tenant=TENANT,
        filename=file.filename,
        entry=0,
        status=IngestStatus.IN_PROGRESS,
        created_unix=0,
        chunking=Chunking(),
    )


def _cpu_s() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def _text(folder: Path | None) -> str:
    if folder is not None:
        return "\n\n".join(path.read_text("utf-8", "replace") for path in sorted(folder.rglob("*")) if path.is_file())
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _cut(text: str, files: int, chars: int) -> list[str]:
    """Different texts of that length, from all over `text`."""
    step = max((len(text) - chars) // files, 1)
    return [text[begin : begin + chars] for begin in range(0, files * step, step)]


def _median_share(rounds: Sequence[Figures]) -> float:
    return statistics.median(one.share for one in rounds)


def _table(found: dict[str, list[Figures]]) -> Table:
    table = Table("", "files/s", "pieces/s", "embedder alone", "share", "of the CPU", "loop lag, most")
    for kind, rounds in found.items():
        one = rounds[0]
        table.add_row(
            f"{one.files} {kind} files, {one.pieces} pieces",
            f"{statistics.median(each.files_per_s for each in rounds):.1f}",
            f"{statistics.median(each.pieces_per_s for each in rounds):.1f}",
            f"{statistics.median(each.embedder_pieces_per_s for each in rounds):.1f}",
            f"{_median_share(rounds):.0%}",
            f"{statistics.median(each.embedder_cpu_s / each.cpu_s for each in rounds):.0%}",
            f"{max(each.lag_max_ms for each in rounds):.0f} ms",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
