"""What documents survive, and inference with them: an object store that is away, damaged indexes and catalogues, a full
and a read-only disk, restarts. R11.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.documents.embedder import CountingEmbedder, counting_embedder
from tests.documents.served import on_s3
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.s3 import S3Server
from tests.stub import Service, ask, model_table, service, until

SLOW = pytest.mark.slow
CHAT = model_table("acme/echo")
FILES = 6
ANSWER_S_MAX = 25
"""Within this every answer is there, whatever the object store does; it is given 15."""
IN_FLIGHT_MAX = 16
"""Files whose vectors are being made at one time."""


@pytest.fixture
def embedder() -> Iterator[CountingEmbedder]:
    with counting_embedder() as made:
        yield made


@contextlib.contextmanager
def inference_goes_on(running: Service) -> Iterator[None]:
    """A client that asks a model all the while, and is always answered."""
    faults: list[str] = []
    told, asked = threading.Event(), threading.Event()

    def work() -> None:
        with running.client() as client:
            while not told.is_set() and not faults:
                try:
                    client.post("/v1/chat/completions", json=ask("acme/echo")).raise_for_status()
                except httpx.HTTPError as error:
                    faults.append(repr(error))
                asked.set()
                told.wait(0.05)

    with running.client() as client:
        until(lambda: client.post("/v1/chat/completions", json=ask("acme/echo")).status_code == 200)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
        asked.wait(ANSWER_S_MAX)
    finally:
        told.set()
        thread.join(ANSWER_S_MAX)
    assert asked.is_set() and faults == []


class Documents:
    """A client that stores files, and can tell whether all is as it was."""

    def __init__(self, running: Service) -> None:
        self._running = running
        self._http = httpx.Client(timeout=2 * ANSWER_S_MAX)
        self.contents: dict[str, bytes] = {}
        self.store = str(self._asked("POST", "/v1/vector_stores", json={"name": "kept"})["id"])

    def close(self) -> None:
        """Let go of connections."""
        self._http.close()

    def upload(self, content: bytes, name: str = "file.md") -> httpx.Response:
        """Whatever comes of it."""
        return self.ask("POST", "/v1/files", data={"purpose": "assistants"}, files={"file": (name, content)})

    def put(self, *words: str) -> None:
        """Store a file for each word, and put it into the store under the word's length."""
        for word in words:
            content = f"# {word}\n\n{word} stands here.".encode()
            id = self.upload(content).raise_for_status().json()["id"]
            self.contents[id] = content
            body = {"file_id": id, "attributes": {"word": word}}
            self._asked("POST", f"/v1/vector_stores/{self.store}/files", json=body)

    def completed(self) -> bool:
        """Whether all files of the store are."""
        counts = self._asked("GET", f"/v1/vector_stores/{self.store}")["file_counts"]
        return bool(counts["completed"] == counts["total"] == len(self.contents))

    def found(self, word: str, *, vectors: bool = False) -> list[str]:
        """The files that hold the word."""
        weights = {"hybrid_search": {"embedding_weight": int(vectors), "text_weight": 1}}
        body = {"query": word, "ranking_options": weights, "include": ["ranks"]}
        answer = self.ask("POST", f"/v1/vector_stores/{self.store}/search", json=body)
        hits = answer.json()["data"] if answer.status_code == 200 else []
        return [hit["file_id"] for hit in hits if hit["ranks"]["text"] and (hit["ranks"]["embedding"] or not vectors)]

    def all_found(self) -> bool:
        """Whether searches find every file by its word."""
        members = self.members().values()
        return all(self.found(member["attributes"]["word"]) == [member["id"]] for member in members)

    def members(self) -> dict[str, Any]:
        """The store's files."""
        data = self._asked("GET", f"/v1/vector_stores/{self.store}/files?limit=100")["data"]
        return {file["id"]: file for file in data}

    def state(self) -> Any:
        """All that a client can see."""
        files = self._asked("GET", "/v1/files")["data"]
        store = {**self._asked("GET", f"/v1/vector_stores/{self.store}"), "last_active_at": None, "expires_at": None}
        contents = {file["id"]: self.ask("GET", f"/v1/files/{file['id']}/content").content for file in files}
        assert contents == self.contents
        return files, store, self.members()

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """The answer, which comes in time."""
        began = time.monotonic()
        answer = self._http.request(method, f"{self._running.url}{path}", **more)
        assert time.monotonic() - began < ANSWER_S_MAX, (method, path)
        return answer

    def _asked(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(method, path, **more).raise_for_status().json()
        return found


@contextlib.contextmanager
def documents_of(running: Service) -> Iterator[Documents]:
    """A new store's."""
    made = Documents(running)
    try:
        yield made
    finally:
        made.close()


def words(count: int, prefix: str = "word") -> list[str]:
    return [f"{prefix}{number:04d}" for number in range(count)]


def is_refused(answer: httpx.Response, code: str) -> bool:
    """As a client can understand: come back later."""
    told = answer.status_code == 503 and answer.json()["error"]["code"] == code
    return told and int(answer.headers["retry-after"]) > 0


def is_ready(documents: Documents, cause: str = "") -> bool:
    """Whether ``/ready`` says so, or names the cause; inference is ready all the while."""
    assert documents.ask("GET", "/ready?for=inference").status_code == 200
    answer = documents.ask("GET", "/ready")
    if cause:
        return answer.status_code == 503 and cause in answer.json()["problems"].get("documents", "")
    return answer.status_code == 200


# --- the object store is away ---


@SLOW
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("fault", "outage_s"), [("refuse", 0), ("refuse", 60), ("hang", 60)])
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
    """It may go on with what it has in memory until it looks at the disk, which a change does; and vectors that were
    written over while they are in use are seen at the next start."""
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
