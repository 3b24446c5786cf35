"""What documents survive, and inference with them: an object store that is away, damaged indexes and catalogues, a full
and a read-only disk, restarts. R11.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.documents.embedder import CountingEmbedder, counting_embedder
from tests.documents.served import on_s3
from tests.documents.survival import (
    CHAT,
    FILES,
    Documents,
    documents_of,
    inference_goes_on,
    is_ready,
    is_refused,
    words,
)
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.namespaces import run_alone
from tests.s3 import S3Server
from tests.stub import Service, service, until

SLOW = pytest.mark.slow
FULL_DISK = """
set -e
mount -t tmpfs -o size=320m tmpfs "$1"
"$2" -m tests.documents.full_disk "$3"
mount -o remount,ro "$1"
cd "$3"
if "$2" -m orchestrator serve --port 0 2> refusal; then exit 1; fi
grep -q "can't be used: Read-only file system" refusal
"""
IN_FLIGHT_MAX = 16
"""Files whose vectors are being made at one time."""


@pytest.fixture
def embedder() -> Iterator[CountingEmbedder]:
    with counting_embedder() as made:
        yield made


# --- the object store is away ---


@SLOW
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("fault", "outage_s"), [("refuse", 0), ("hang", 60)])
def test_s3_is_away_for_a_while(
    tmp_path: Path, s3_server: S3Server, embedder: CountingEmbedder, fault: str, outage_s: float
) -> None:
    with (
        fault_proxy(s3_server.port) as proxy,
        service(tmp_path, embedder.config, CHAT, **{**on_s3(s3_server), "AWS_ENDPOINT_URL_S3": proxy.url}) as running,
        documents_of(running) as documents,
    ):
        with inference_goes_on(running):
            documents.put(*words(FILES))
            until(documents.completed)
            embedder.hold()
            documents.put(*words(FILES, "late"))
            away(documents, proxy, embedder, fault, outage_s)
            until(lambda: is_ready(documents))
            until(documents.completed, 60)
            until(documents.all_found)
            documents.put("afterwards")
            until(documents.completed)
        documents.state()
        running.end()
        running.restart()
        until(documents.all_found)
        documents.state()


def away(documents: Documents, proxy: FaultProxy, embedder: CountingEmbedder, fault: str, outage_s: float) -> None:
    """An outage, and what is seen of it."""
    getattr(proxy, fault)()
    embedder.go_on()  # vectors come, and can't be kept
    ends_at = time.monotonic() + outage_s
    until(lambda: is_ready(documents, "the bucket"))
    while True:
        assert is_refused(documents.upload(b"not kept"), "storage_unavailable")
        assert len(documents.found("word0001")) == 1
        assert documents.ask("GET", "/v1/files").status_code == 200
        if time.monotonic() >= ends_at:
            break
    assert is_ready(documents, "the bucket")
    proxy.up()


@SLOW
def test_s3_is_away_at_the_start_and_the_catalogue_is_new(
    tmp_path: Path, s3_server: S3Server, embedder: CountingEmbedder
) -> None:
    with (
        fault_proxy(s3_server.port) as proxy,
        service(tmp_path, embedder.config, CHAT, **{**on_s3(s3_server), "AWS_ENDPOINT_URL_S3": proxy.url}) as running,
        documents_of(running) as documents,
    ):
        documents.put(*words(FILES))
        until(documents.completed)
        before, asked = documents.state(), len(embedder.texts)
        running.end()
        lose_catalogue(tmp_path / "data")
        shutil.rmtree(tmp_path / "data" / "indexes")
        proxy.refuse()
        running.restart()
        with inference_goes_on(running):
            assert is_ready(documents, "the bucket")
            assert is_refused(documents.ask("GET", "/v1/files"), "storage_unavailable")
            assert is_refused(documents.upload(b"not kept"), "storage_unavailable")
            proxy.up()
            until(lambda: is_ready(documents))
        until(documents.all_found)
        assert documents.state() == before
        assert len(embedder.texts) == asked


# --- damage ---


def lose_catalogue(data: Path) -> None:
    for path in data.glob("catalog.duckdb*"):
        path.unlink()


def halve_catalogue(data: Path) -> None:
    path = data / "catalog.duckdb"
    os.truncate(path, path.stat().st_size // 2)


def spoil_catalogue(data: Path) -> None:
    path = data / "catalog.duckdb"
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def lose_indexes(data: Path) -> None:
    shutil.rmtree(data / "indexes")


def spoil(data: Path, part: str) -> None:
    """Overwrite the middle of each file of one part of the indexes, where it is."""
    files = [path for path in (data / "indexes").rglob("*") if path.is_file() and part in path.parts]
    assert files
    for path in files:
        size = path.stat().st_size
        with path.open("rb+") as file:
            file.seek(size // 4)
            file.write(random.Random(path.name).randbytes(size // 2))


def spoil_words(data: Path) -> None:
    spoil(data, "words")


def spoil_vectors(data: Path) -> None:
    spoil(data, "vectors")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Documents, CountingEmbedder]]:
    """A service with documents, that each test damages; and mends, or the next would not start well."""
    folder = tmp_path_factory.mktemp("kept")
    with (
        counting_embedder() as made,
        service(folder, made.config, CHAT) as running,
        documents_of(running) as documents,
    ):
        documents.put(*words(FILES))
        until(documents.completed)
        yield running, documents, made


@pytest.mark.parametrize(
    "harm",
    [
        *(halve_catalogue, lose_indexes),
        *(pytest.param(harm, marks=SLOW) for harm in (lose_catalogue, spoil_catalogue, spoil_words, spoil_vectors)),
    ],
)
def test_damage_while_the_service_is_stopped(kept: tuple[Service, Documents, CountingEmbedder], harm: Any) -> None:
    running, documents, embedder = kept
    before, asked = documents.state(), len(embedder.texts)
    running.end()
    harm(running.folder / "data")
    running.restart()
    assert documents.state() == before
    until(documents.all_found)
    assert len(embedder.texts) == asked
    assert documents.found("word0001", vectors=True)


@SLOW
@pytest.mark.parametrize("harm", [lose_indexes, spoil_words, spoil_vectors])
def test_damage_while_the_service_runs(kept: tuple[Service, Documents, CountingEmbedder], harm: Any) -> None:
    """It may go on with what it has in memory until it looks at the disk, as each search and each change does."""
    running, documents, embedder = kept
    asked = len(embedder.texts)
    with inference_goes_on(running):
        harm(running.folder / "data")
        documents.put(f"after{len(documents.contents)}")
        until(documents.completed)
        until(documents.all_found)
    running.end()
    running.restart()
    until(documents.all_found)
    assert len(embedder.texts) == asked + 1
    until(lambda: documents.found("word0001", vectors=True))


@SLOW
def test_a_catalogue_that_is_held_elsewhere_takes_no_documents(
    kept: tuple[Service, Documents, CountingEmbedder],
) -> None:
    """What it would acknowledge would be unknown after the next start."""
    running, documents, _ = kept
    before = documents.state()
    running.end()
    with duckdb.connect(running.folder / "data" / "catalog.duckdb"):
        running.restart()
        with inference_goes_on(running):
            assert is_ready(documents, "nothing is kept")
            assert is_refused(documents.upload(b"not kept"), "storage_unavailable")
    running.end()
    running.restart()
    assert documents.state() == before


# --- a full disk ---


@SLOW
def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    args = (str(tmp_path / "data"), sys.executable, str(tmp_path))
    done = run_alone("mount", FULL_DISK, *args, cwd=Path(__file__).parents[2], timeout_s=110)
    assert done.returncode == 0, done.stderr


# --- restarts ---


@SLOW
def test_a_restart_in_the_middle_of_many_files(tmp_path: Path, embedder: CountingEmbedder) -> None:
    with service(tmp_path, embedder.config) as running, documents_of(running) as documents:
        documents.put(*words(100))
        until(lambda: len(embedder.texts) >= 30)
        running.process.kill()
        running.process.wait()
        running.restart()
        until(documents.completed, 60)
        until(documents.all_found)
        again = sum(Counter(embedder.texts).values()) - len(set(embedder.texts))
        assert len(set(embedder.texts)) == 100 and again <= IN_FLIGHT_MAX
        asked = len(embedder.texts)
        same = next(iter(documents.contents.values()))
        id = documents.upload(same, "the same.md").raise_for_status().json()["id"]
        documents.contents[id] = same
        documents.ask("POST", f"/v1/vector_stores/{documents.store}/files", json={"file_id": id}).raise_for_status()
        until(documents.completed)
        assert len(embedder.texts) == asked
