"""``python -m bench.catalog``: single-row writes into the catalogue of documents, beside plain DuckDB in the same run.

Every write is durable when it is answered. The catalogue's come from one or several tasks of one event loop, whose lag
is measured, while a listing is read again and again; plain DuckDB's from as many threads, each with a cursor of its
own and a commit for every row. A process beside that does nothing else tells the lag which the machine causes itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.report import Goal
from orchestrator.documents.ids import new_id
from orchestrator.documents.model import Page, StoredFile
from storage.catalog import Catalog
from storage.shelf import DuckShelf

WRITERS = (1, 8)
LAG_EVERY_S = 0.005
READ_EVERY_S = 0.05
WRITE_GOAL_MS = 100
LAG_GOAL_MS = 50
WIDTH = 180
IDLER = f"""
import asyncio, time

async def main():
    read = asyncio.get_running_loop().run_in_executor(None, input)
    longest_s = 0.0
    while not read.done():
        began_s = time.perf_counter()
        await asyncio.sleep({LAG_EVERY_S})
        longest_s = max(longest_s, time.perf_counter() - began_s - {LAG_EVERY_S})
    print(longest_s * 1000)

asyncio.run(main())
"""


@dataclass(kw_only=True, slots=True)
class Figures:
    """One subject's."""

    name: str
    writes_ms: list[float] = field(default_factory=list)
    reads_ms: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)
    idle_lag_max_ms: float = 0.0
    """That of a process which does nothing, meanwhile."""
    cpu_ms_per_write: float = 0.0
    writes_per_s: float = 0.0

    def summary(self) -> dict[str, float | str | None]:
        """What is told of it."""
        return {
            "name": self.name,
            "writes": len(self.writes_ms),
            "p50_ms": statistics.median(self.writes_ms),
            "p99_ms": p99(self.writes_ms),
            "max_ms": max(self.writes_ms),
            "writes_per_s": self.writes_per_s,
            "cpu_ms_per_write": self.cpu_ms_per_write,
            "read_p99_ms": p99(self.reads_ms) if self.reads_ms else None,
            "lag_p99_ms": p99(self.lags_ms) if self.lags_ms else None,
            "lag_max_ms": max(self.lags_ms) if self.lags_ms else None,
            "idle_lag_max_ms": self.idle_lag_max_ms,
        }


def p99(values: list[float]) -> float:
    """What 99 of 100 do not exceed."""
    return sorted(values)[int(0.99 * (len(values) - 1))]


def file(number: int) -> StoredFile:
    """A row."""
    return StoredFile(
        id=new_id("file"),
        tenant=f"tenant {number % 10}",
        filename=f"report {number}.pdf",
        purpose="assistants",
        bytes=number,
        content_type="application/pdf",
        sha256="0" * 64,
        created_unix=1_700_000_000 + number // 10,
    )


def measured(name: str, work: Callable[[Figures], None], writes: int) -> Figures:
    """The figures of `work`, which notes each write."""
    figures = Figures(name=name)
    with subprocess.Popen((sys.executable, "-c", IDLER), stdin=-1, stdout=-1, text=True) as idler:
        cpu_s, began_s = time.process_time(), time.perf_counter()
        work(figures)
        figures.writes_per_s = writes / (time.perf_counter() - began_s)
        figures.cpu_ms_per_write = (time.process_time() - cpu_s) / writes * 1000
        figures.idle_lag_max_ms = float(idler.communicate("\n")[0])
    return figures


def catalogue(folder: Path, writers: int, writes: int) -> Figures:
    """Ours."""
    made = Catalog(folder / f"ours-{writers}.duckdb")
    shelf = DuckShelf(made)

    async def write(figures: Figures, numbers: Iterator[int]) -> None:
        for number in numbers:
            began_s = time.perf_counter()
            await shelf.add_file(file(number))
            figures.writes_ms.append((time.perf_counter() - began_s) * 1000)

    async def all_writes(figures: Figures) -> None:
        numbers = iter(range(writes))
        beside = [asyncio.create_task(each(figures)) for each in (lag, read)]
        await asyncio.gather(*(write(figures, numbers) for _ in range(writers)))
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)

    async def lag(figures: Figures) -> None:
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(LAG_EVERY_S)
            figures.lags_ms.append((time.perf_counter() - began_s - LAG_EVERY_S) * 1000)

    async def read(figures: Figures) -> None:
        while True:
            began_s = time.perf_counter()
            await shelf.files("tenant 1", Page(limit=100))
            figures.reads_ms.append((time.perf_counter() - began_s) * 1000)
            await asyncio.sleep(READ_EVERY_S)

    asyncio.run(shelf.file("nobody", "nothing"))  # it is open
    try:
        name = f"the catalogue, {writers} at a time"
        return measured(name, lambda figures: asyncio.run(all_writes(figures)), writes)
    finally:
        made.close()


def plain(folder: Path, writers: int, writes: int) -> Figures:
    """The same rows by DuckDB's own connection, as it comes."""
    import duckdb

    connection = duckdb.connect(str(folder / f"plain-{writers}.duckdb"))
    connection.execute(
        "CREATE TABLE files (id VARCHAR PRIMARY KEY, tenant VARCHAR, filename VARCHAR, purpose VARCHAR, bytes BIGINT,"
        " content_type VARCHAR, sha256 VARCHAR, created_unix BIGINT, expires_unix BIGINT)"
    )

    def write(cursor: Any, figures: Figures, numbers: range) -> None:
        for number in numbers:
            row = list(asdict(file(number)).values())
            began_s = time.perf_counter()
            cursor.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            figures.writes_ms.append((time.perf_counter() - began_s) * 1000)

    def all_writes(figures: Figures) -> None:
        shares = [range(number, writes, writers) for number in range(writers)]
        threads = [threading.Thread(target=write, args=(connection.cursor(), figures, share)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    try:
        return measured(f"plain DuckDB, {writers} at a time", all_writes, writes)
    finally:
        connection.close()


def goals(all_figures: list[Figures]) -> list[Goal]:
    """Every goal, met or missed."""
    ours = [figures for figures in all_figures if figures.lags_ms]
    slowest = max(p99(figures.writes_ms) for figures in ours)
    lag = max(max(figures.lags_ms) for figures in ours)
    return [
        Goal(what="a write, 99 of 100", limit=WRITE_GOAL_MS, unit="ms", value=slowest),
        Goal(what="the event loop's lag, the longest", limit=LAG_GOAL_MS, unit="ms", value=lag),
    ]


def table(all_figures: list[Figures]) -> Table:
    """For a terminal."""
    drawn = Table()
    for title in all_figures[0].summary():
        drawn.add_column(title.replace("_", " "), justify="left" if title == "name" else "right")
    for figures in all_figures:
        drawn.add_row(*(_cell(value) for value in figures.summary().values()))
    return drawn


def _cell(value: float | str | None) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0 when every goal is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m bench.catalog", description=__doc__)
    parser.add_argument("--writes", type=int, default=10_000, help="of each subject")
    parser.add_argument("--folder", type=Path, help="where the databases are made for the time; default: as tempfile")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each subject and goal")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = [each(Path(folder), writers, options.writes) for writers in WRITERS for each in (catalogue, plain)]
    verdicts = goals(figures)
    if options.json:
        for each in figures:
            print(json.dumps(each.summary()))
        for goal in verdicts:
            print(json.dumps({**asdict(goal), "verdict": goal.verdict}))
    else:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(table(figures), markup=False)
        print("\n".join(map(str, verdicts)))
    return 0 if all(goal.verdict == "PASS" for goal in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
