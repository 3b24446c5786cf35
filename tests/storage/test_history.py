"""The catalogue keeps what it has acknowledged, and never stands in anybody's way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.model import Phase, StartRecord
from storage import history as module
from storage.catalog import Catalog, CatalogError
from storage.history import DuckHistory

WRITER = """
import asyncio, sys
from pathlib import Path
from tests.storage.test_history import start
from storage.catalog import Catalog
from storage.history import DuckHistory

async def main():
    history = DuckHistory(Catalog(Path(sys.argv[1])))
    for number in range(10_000):
        history.record(start(number))
        await history.starts(limit=1)
        print(number, flush=True)

asyncio.run(main())
"""


def start(number: int, model: str = "acme/echo") -> StartRecord:
    return StartRecord(
        model=model,
        replica=f"echo-a-{number}",
        spec="spec-1",
        engine="vllm",
        started_at_unix=1.7e9 + number,
        seconds={Phase.PULLING: 1.5, Phase.STARTING: 30.25},
        outcome="ready",
        error='it\'s "so"; DROP TABLE starts; --',
        pulled_bytes=2**40,
        weights_bytes=7,
    )


@contextmanager
def catalog(path: Path) -> Iterator[Catalog]:
    made = Catalog(path)
    try:
        yield made
    finally:
        made.close()


def read(made: Catalog, **filters: Any) -> tuple[StartRecord, ...]:
    return asyncio.run(DuckHistory(made).starts(**filters))


def query(made: Catalog, sql: str) -> Future[list[Any]]:
    return made.submit(lambda connection: list(connection.execute(sql).fetchall()))


def test_wakes_are_told_from_cold_starts(tmp_path: Path) -> None:
    with catalog(tmp_path / "catalog.duckdb") as made:
        cold, wake = start(1), replace(start(2), wake=True)
        DuckHistory(made).record(cold)
        DuckHistory(made).record(wake)
        assert read(made) == (wake, cold)
        assert read(made, wake=False, model="acme/echo") == (cold,)
        assert read(made, wake=True) == (wake,)
        assert read(made, wake=True, model="other") == ()


def test_newest_first_whole_and_across_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    with catalog(path) as made:
        for number in range(5):
            DuckHistory(made).record(start(number, model="a" if number % 2 else "b"))
        assert read(made) == tuple(start(n, model="a" if n % 2 else "b") for n in (4, 3, 2, 1, 0))
    with catalog(path) as made:
        assert [s.replica for s in read(made, model="a")] == ["echo-a-3", "echo-a-1"]
        assert read(made, limit=1) == (start(4, model="b"),)
        assert read(made, model="nobody") == ()
        assert made.error == ""


def test_only_so_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STARTS_KEPT_MAX", 10)
    with catalog(tmp_path / "catalog.duckdb") as made:
        for number in range(25):
            DuckHistory(made).record(start(number))
        assert [s.replica for s in read(made)] == [f"echo-a-{n}" for n in range(24, 14, -1)]


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    command = (sys.executable, "-c", WRITER, str(path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as writer:
        assert writer.stdout is not None
        acknowledged = [writer.stdout.readline() for _ in range(20)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += writer.stdout.readlines()
    last = max(int(line) for line in acknowledged if line.endswith(b"\n"))
    with catalog(path) as made:
        kept = {s.replica for s in read(made, limit=10_000)}
        assert {f"echo-a-{n}" for n in range(last + 1)} <= kept
        assert made.error == ""


@pytest.mark.parametrize("damage", [b"not a database" * 1000, b"", "truncated"])
def test_damaged_file_is_set_aside_and_a_new_one_begun(tmp_path: Path, damage: bytes | str) -> None:
    path = tmp_path / "catalog.duckdb"
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        with catalog(path) as made:
            DuckHistory(made).record(start(0))
        os.truncate(path, 5000)
    with catalog(path) as made:
        DuckHistory(made).record(start(1))
        assert read(made) == (start(1),)
        assert made.error == ""
    assert (tmp_path / "catalog.damaged").exists()
    with catalog(path) as made:
        assert read(made) == (start(1),)


def test_file_that_another_program_holds_is_left_alone(tmp_path: Path) -> None:
    """Somebody looks into it with DuckDB's own shell: we go on, and say that nothing is kept."""
    path = tmp_path / "catalog.duckdb"
    with catalog(path) as made:
        DuckHistory(made).record(start(0))
    hold = f"import duckdb, sys; c = duckdb.connect({str(path)!r}); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen((sys.executable, "-c", hold), stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with catalog(path) as made:
            DuckHistory(made).record(start(1))
            assert read(made) == (start(1),)
            assert "nothing is kept" in made.error
        holder.kill()
    assert not (tmp_path / "catalog.damaged").exists()
    with catalog(path) as made:
        assert read(made) == (start(0),)


def test_folder_that_cant_be_written_costs_the_memory_only(tmp_path: Path) -> None:
    with catalog(tmp_path / "missing" / "catalog.duckdb") as made:
        DuckHistory(made).record(start(1))
        assert read(made) == (start(1),)
        assert "nothing is kept" in made.error


def test_bad_job_spoils_no_other(tmp_path: Path) -> None:
    with catalog(tmp_path / "catalog.duckdb") as made:
        gate = threading.Event()
        made.submit(lambda connection: gate.wait(10))
        good, bad, best = (query(made, sql) for sql in ("SELECT 1", "SELECT * FROM nowhere", "SELECT 2"))
        worse = made.submit(lambda connection: 1 / 0)
        gate.set()
        assert (good.result(10), best.result(10)) == ([(1,)], [(2,)])
        assert isinstance(bad.exception(10), CatalogError)
        assert isinstance(worse.exception(10), CatalogError)
        assert read(made) == ()


def test_reader_that_gives_up_does_not_end_the_writer(tmp_path: Path) -> None:
    with catalog(tmp_path / "catalog.duckdb") as made:
        gate = threading.Event()
        made.submit(lambda connection: gate.wait(10))
        assert made.submit(lambda connection: None).cancel()
        gate.set()
        DuckHistory(made).record(start(1))
        assert read(made) == (start(1),)


def test_failing_catalogue_reads_as_empty(tmp_path: Path) -> None:
    with catalog(tmp_path / "catalog.duckdb") as made:
        made.submit(lambda connection: connection.execute("DROP TABLE starts")).result(10)
        DuckHistory(made).record(start(1))
        assert read(made) == ()
        assert "starts" in made.error


def test_user_text_never_reads_python_variables_or_files(tmp_path: Path) -> None:
    secret_table = [{"a": 1}]
    with catalog(tmp_path / "catalog.duckdb") as made:
        for sql in ("SELECT * FROM secret_table", "SELECT * FROM '/etc/passwd'", "INSTALL httpfs"):
            assert isinstance(query(made, sql).exception(10), CatalogError), sql
    assert secret_table
