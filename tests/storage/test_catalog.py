"""The catalogue's writer and its readers beside it, damage, and a full disk."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from orchestrator.errors import NotFound
from storage.catalog import MEMORY, READERS, Catalog, CatalogError
from tests.storage.test_history import catalog

FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from storage.catalog import Catalog, CatalogError

def put(made, number):
    return made.submit(lambda c: c.execute("INSERT INTO numbers VALUES (?, repeat('x', 5000))", [number])).exception(10)

def numbers(made):
    return asyncio.run(made.read(lambda c: [n for (n,) in c.execute("SELECT n FROM numbers ORDER BY n").fetchall()]))

made = Catalog(Path(sys.argv[1]))
made.submit(lambda c: c.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, pad VARCHAR)")).result(10)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
kept = [n for n in range(100) if put(made, n) is None]
assert 0 < len(kept) < 100 and made.error, (kept, made.error)
assert numbers(made) == kept
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert put(made, 1000) is None and not made.error, made.error
made.close()
made = Catalog(Path(sys.argv[1]))
assert numbers(made) == [*kept, 1000]
made.close()
"""


def rows(connection: Any) -> list[int]:
    return [number for (number,) in connection.execute("SELECT n FROM numbers ORDER BY n").fetchall()]


def put(connection: Any, number: int) -> None:
    connection.execute("INSERT INTO numbers VALUES (?)", [number])


@contextmanager
def numbers(path: Path, count: int = 0) -> Iterator[Catalog]:
    """A catalogue with a table of so many numbers."""
    with catalog(path) as made:
        made.submit(lambda c: c.execute("CREATE TABLE numbers AS SELECT n FROM range(?) AS r(n)", [count])).result(10)
        yield made


def test_a_read_sees_every_write_that_was_acknowledged(tmp_path: Path) -> None:
    async def check(made: Catalog) -> None:
        async def writer(first: int) -> None:
            for number in range(first, first + 20):
                await made.run(partial(put, number=number))
                assert number in await made.read(rows)

        await asyncio.gather(*(writer(first) for first in (0, 100, 200, 300)))

    with numbers(tmp_path / "catalog.duckdb") as made:
        asyncio.run(check(made))


@pytest.mark.parametrize("path", ["catalog.duckdb", "missing/catalog.duckdb"])
def test_reads_and_writes_do_not_wait_for_each_other(tmp_path: Path, path: str) -> None:
    async def check(made: Catalog) -> None:
        reading, writing = threading.Event(), threading.Event()
        readers = [asyncio.ensure_future(made.read(lambda c: reading.wait(10))) for _ in range(READERS - 1)]
        await made.run(partial(put, number=1))
        writer = asyncio.ensure_future(made.run(lambda c: writing.wait(10)))
        assert await made.read(rows) == [1]
        writing.set()
        reading.set()
        assert await asyncio.gather(writer, *readers) == [True] * READERS

    with numbers(tmp_path / path) as made:
        asyncio.run(check(made))


def test_a_read_is_of_one_moment(tmp_path: Path) -> None:
    async def check(made: Catalog) -> None:
        first, again = threading.Event(), threading.Event()

        def twice(cursor: Any) -> tuple[list[int], list[int]]:
            before = rows(cursor)
            first.set()
            assert again.wait(10)
            return before, rows(cursor)

        read = asyncio.ensure_future(made.read(twice))
        assert await asyncio.to_thread(first.wait, 10)
        await made.run(partial(put, number=1))
        again.set()
        assert await read == ([], [])

    with numbers(tmp_path / "catalog.duckdb") as made:
        asyncio.run(check(made))


def test_a_read_cant_write_and_spoils_no_other(tmp_path: Path) -> None:
    async def check(made: Catalog) -> None:
        for _ in range(2 * READERS):
            with pytest.raises(CatalogError, match="read-only"):
                await made.read(lambda cursor: cursor.execute("INSERT INTO numbers VALUES (1)"))
            with pytest.raises(CatalogError, match="nowhere"):
                await made.read(lambda cursor: cursor.execute("SELECT * FROM nowhere"))
        assert await made.read(rows) == []
        assert made.error == ""

    with numbers(tmp_path / "catalog.duckdb") as made:
        asyncio.run(check(made))


def test_what_a_job_raises_of_ours_is_an_answer_and_no_fault(tmp_path: Path) -> None:
    def refuse(connection: Any) -> None:
        connection.execute("SELECT 1")
        raise NotFound("no such number")

    async def check(made: Catalog) -> None:
        for asked in (made.read(refuse), made.run(refuse)):
            with pytest.raises(NotFound, match="no such number"):
                await asked
        assert made.error == ""

    with numbers(tmp_path / "catalog.duckdb") as made:
        asyncio.run(check(made))


def test_a_refused_job_leaves_nothing_behind(tmp_path: Path) -> None:
    def refuse(connection: Any) -> None:
        connection.execute("INSERT INTO numbers VALUES (1)")
        raise NotFound("no")

    with numbers(tmp_path / "catalog.duckdb") as made:
        gate = threading.Event()
        made.submit(lambda c: gate.wait(10))
        refused = made.submit(refuse)
        kept = made.submit(partial(put, number=2))
        gate.set()
        assert isinstance(refused.exception(10), NotFound)
        assert kept.result(10) is None
        assert asyncio.run(made.read(rows)) == [2]


def test_a_closed_catalogue_has_finished_its_reads(tmp_path: Path) -> None:
    async def check(made: Catalog) -> None:
        reads = [asyncio.ensure_future(made.read(rows)) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.to_thread(made.close)
        assert await asyncio.gather(*reads) == [[]] * 20
        for late in (made.read(rows), made.run(rows)):
            with pytest.raises(CatalogError, match="closed"):
                await late

    with numbers(tmp_path / "catalog.duckdb") as made:
        asyncio.run(check(made))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_a_file_that_lost_its_end_is_set_aside(tmp_path: Path, share: float) -> None:
    """DuckDB opens it, and would fail at the first read of what is missing."""
    path = tmp_path / "catalog.duckdb"
    with numbers(path, 1_000_000):
        pass
    with path.open("rb+") as file:
        file.truncate(int(path.stat().st_size * share) - 1)
    with catalog(path) as made:
        with pytest.raises(CatalogError, match="numbers"):
            asyncio.run(made.read(rows))
        assert (tmp_path / "catalog.damaged").exists()
        assert made.error == ""


def test_a_file_that_shrank_is_whole(tmp_path: Path) -> None:
    """DuckDB cuts free blocks off its file's end, and goes on counting them."""
    path = tmp_path / "catalog.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE numbers (n INTEGER)")
        for number in range(4):
            put(connection, number)
            connection.execute("CHECKPOINT")
    with duckdb.connect(path, read_only=True) as connection:
        found = connection.execute("SELECT total_blocks * block_size FROM pragma_database_size()").fetchone()
    assert found is not None and path.stat().st_size < found[0]
    with catalog(path) as made:
        assert asyncio.run(made.read(rows)) == [0, 1, 2, 3]
    assert not (tmp_path / "catalog.damaged").exists()


def test_a_file_with_other_bytes_in_a_block_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    with numbers(path, 1_000_000):
        pass
    size = path.stat().st_size
    with path.open("rb+") as file:
        file.seek(size // 3)
        file.write(b"\xff" * (size // 3))
    with catalog(path) as made, pytest.raises(CatalogError, match="numbers"):
        asyncio.run(made.read(rows))
    assert (tmp_path / "catalog.damaged").exists()


def test_a_full_disk_costs_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    command = (sys.executable, "-c", FULL_DISK, str(tmp_path / "catalog.duckdb"))
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=60)


def test_in_memory_too(tmp_path: Path) -> None:
    with numbers(Path(MEMORY), 3) as made:
        assert asyncio.run(made.read(rows)) == [0, 1, 2]
