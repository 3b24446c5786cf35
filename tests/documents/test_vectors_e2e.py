"""Vectors in a running service: made by a model of its own, by another server, and by the embedded model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.subjects import free_port
from tests.documents.served import served
from tests.stub import STUB, model_table, posted, until

OWN = '[embeddings]\nmodel = "acme/embedder"\n'
SHIPS = b"# Ships\n\nA ship is a large vessel that carries cargo across the ocean.\n"
CATS = b"# Cats\n\nA cat is a small carnivorous mammal that sleeps for most of the day.\n"


def attached(client: httpx.Client, store: str, name: str, content: bytes) -> str:
    """A new file, put into the store; its id."""
    answer = client.post("/v1/files", data={"purpose": "assistants"}, files={"file": (name, content)})
    id = str(answer.raise_for_status().json()["id"])
    client.post(f"/v1/vector_stores/{store}/files", json={"file_id": id}).raise_for_status()
    return id


def new_store(client: httpx.Client) -> str:
    """Its id."""
    return str(client.post("/v1/vector_stores", json={}).raise_for_status().json()["id"])


def file_of(client: httpx.Client, store: str, id: str) -> dict[str, Any]:
    """The file in the store."""
    found: dict[str, Any] = client.get(f"/v1/vector_stores/{store}/files/{id}").raise_for_status().json()
    return found


def completed(client: httpx.Client, store: str, id: str, timeout_s: float = 30) -> None:
    """Return once it is."""
    file = until(lambda: (found := file_of(client, store, id))["status"] != "in_progress" and found, timeout_s)
    assert file["status"] == "completed", file["last_error"]


def found(client: httpx.Client, store: str, query: str | list[str], **more: Any) -> dict[str, Any]:
    """The answer to a search."""
    asked = {"query": query, "include": ["ranks"], **more}
    answer: dict[str, Any] = client.post(f"/v1/vector_stores/{store}/search", json=asked).raise_for_status().json()
    return answer


def ingest_check(client: httpx.Client) -> Mapping[str, Any]:
    """What ``/health`` says of the reading of documents."""
    checks: Mapping[str, Mapping[str, Any]] = client.get("/health").json()["checks"]
    return checks["ingest"]


@contextlib.contextmanager
def engine(port: int, *options: str) -> Iterator[None]:
    """A stub that nobody manages."""
    argv = [sys.executable, "-S", str(STUB), "--port", str(port), "--model", "text-embedding", *options]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


@pytest.mark.slow
def test_a_model_of_our_own_starts_for_documents_and_is_reaped(tmp_path: Path) -> None:
    """With a key file, too: the service's own requests have a key that nobody sees."""
    record = tmp_path / "record"
    options = ("--model", "acme/embedder", "--start-s", "1", "--record", str(record))
    table = model_table("acme/embedder", *options, idle_timeout_s=1.5)
    keys = {"keys": [{"name": "ada", "sha256": hashlib.sha256(b"ada").hexdigest(), "scopes": ["upload", "realtime"]}]}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    config = '[auth]\nkeys_file = "keys.json"\n' + OWN + table
    with served(tmp_path, config) as service, service.running.client(authorization="Bearer ada") as client:
        assert client.get("/v1/files", headers={"authorization": "Bearer no"}).status_code == 401
        store = new_store(client)
        completed(client, store, attached(client, store, "ships.md", SHIPS))
        until(lambda: not service.running.engines())
        began = time.monotonic()
        cold = found(client, store, "cargo")
        assert time.monotonic() - began < 3
        assert cold["data"][0]["ranks"] == {"text": 1, "embedding": None}
        assert "words alone" in cold["notice"]["message"] and cold["notice"]["retry_after_s"] > 0
        warm = until(lambda: not (answer := found(client, store, "cargo"))["notice"] and answer)
        assert warm["data"][0]["ranks"] == {"text": 1, "embedding": 1}
        sent = {line["headers"].get("authorization", "") for line in posted(record, 2)}
        secrets = {value.removeprefix("Bearer ") for value in sent} - {""}
        assert not any(secret in service.running.log() for secret in secrets)
        assert "orc_" not in service.running.log()


@pytest.mark.slow
def test_a_search_does_not_wait_for_bulk_work(tmp_path: Path) -> None:
    table = model_table("acme/embedder", "--model", "acme/embedder", "--token-delay-s", "0.4", idle_timeout_s=60)
    with served(tmp_path, OWN + "piece_tokens_max = 16\n" + table) as service, service.running.client() as client:
        store = new_store(client)
        completed(client, store, attached(client, store, "ships.md", SHIPS))
        for number in range(2):
            text = "\n\n".join(f"Paragraph {n} of document {number} speaks of {n * 7} things." for n in range(800))
            attached(client, store, f"{number}.md", text.encode())
        until(lambda: "0 documents" not in ingest_check(client)["detail"])
        times: list[float] = []
        while len(times) < 5:
            began = time.monotonic()
            answer = found(client, store, "cargo")
            times.append(time.monotonic() - began)
            assert answer["notice"] is None and answer["data"][0]["ranks"]["embedding"] is not None
        assert "0 documents" not in ingest_check(client)["detail"], "the bulk work was over before the searches"
        assert max(times) < 1.5  # one answer takes 0.4 s


@pytest.mark.slow
def test_another_server_and_its_faults(tmp_path: Path) -> None:
    port, fault, record = free_port(), tmp_path / "fault", tmp_path / "record"
    config = f'[embeddings]\nurl = "http://127.0.0.1:{port}/v1"\nmodel = "text-embedding"\n'
    with served(tmp_path, config, EMBEDDINGS_API_KEY="very-secret") as service, service.running.client() as client:
        store = new_store(client)
        ships = attached(client, store, "ships.md", SHIPS)
        with engine(port, "--fault-file", str(fault), "--record", str(record)):
            completed(client, store, ships)  # it was down at first
            assert found(client, store, "cargo")["data"][0]["ranks"]["embedding"] == 1
            assert posted(record, 1)[0]["headers"]["authorization"] == "Bearer very-secret"
            _refusals(client, store)
            for status in ("500", "garbage"):
                _fault_and_cause(client, store, fault, status)
        assert found(client, store, "cargo")["notice"]["retry_after_s"] > 0
        assert "very-secret" not in service.running.log()


def _refusals(client: httpx.Client, store: str) -> None:
    """One text that the server does not take fails its file, and no other's."""
    bad = attached(client, store, "bad.md", b"this text is unembeddable")
    completed(client, store, attached(client, store, "cats.md", CATS))
    refused = until(lambda: (file := file_of(client, store, bad))["status"] == "failed" and file)
    assert refused["last_error"]["code"] == "server_error"
    assert "too long for the model" in refused["last_error"]["message"]


def _fault_and_cause(client: httpx.Client, store: str, fault: Path, kind: str) -> None:
    fault.write_text(kind)
    id = attached(client, store, "later.md", f"What came while it said {kind}.".encode())
    check = until(lambda: not (check := ingest_check(client))["ok"] and check)
    assert "embeddings server" in check["detail"]
    assert file_of(client, store, id)["status"] == "in_progress"
    assert found(client, store, "cargo")["data"], "words are found all the same"
    fault.unlink()


# --- the embedded model ---

PARAPHRASE = b"# Pets\n\nOur kitten naps in a basket by the window all afternoon long.\n"
OTHERS = (b"The bridge closes to trucks in March.", b"Invoices are due within thirty days of delivery.", SHIPS)
LAG_S_MAX = 0.5


@pytest.mark.slow
def test_the_embedded_model_finds_what_words_do_not(tmp_path: Path) -> None:
    """And the event loop hardly lags while a megabyte of text is read."""
    with served(tmp_path, "") as service, service.running.client() as client:
        store = new_store(client)
        pets = attached(client, store, "pets.md", PARAPHRASE)
        completed(client, store, pets, 120)
        for number, text in enumerate(OTHERS):
            completed(client, store, attached(client, store, f"{number}.md", text))

        def by_vector() -> bool:
            best = found(client, store, "Where does my young cat sleep?")["data"][0]
            return bool(best["file_id"] == pets and best["ranks"] == {"text": None, "embedding": 1})

        until(by_vector, 120)  # where the model had to be fetched, it took over a little later
        words = " ".join(f"word{number % 997} means {number}" for number in range(50_000))
        large = attached(client, store, "large.txt", words.encode()[: 2**20])
        lags = _live_times(client, lambda: file_of(client, store, large)["progress"] > 0.3)
        print(f"/live while 1 MiB is read: p50 {lags[len(lags) // 2] * 1000:.1f} ms, most {lags[-1] * 1000:.1f} ms")
        assert lags[len(lags) * 99 // 100] < LAG_S_MAX


def _live_times(client: httpx.Client, done: Callable[[], bool]) -> list[float]:
    """How long each of many requests took, in order of length."""
    times: list[float] = []
    while not (len(times) % 100 == 0 and done()):
        began = time.perf_counter()
        client.get("/live").raise_for_status()
        times.append(time.perf_counter() - began)
    return sorted(times)


@pytest.mark.slow
def test_without_a_package_index_words_are_found_and_vectors_come_later(tmp_path: Path) -> None:
    """Nothing of the model is there, and no index in reach; then a folder with the model is, after a new start."""
    closed = f"http://127.0.0.1:{free_port()}/simple"
    offline = {"PIP_INDEX_URL": closed, "PIP_RETRIES": "0", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    cache = tmp_path / "cache"
    with served(tmp_path, "", ORCHESTRATOR_CACHE=str(cache), **offline) as service:
        with service.running.client() as client:
            store = new_store(client)
            pets = attached(client, store, "pets.md", PARAPHRASE)
            completed(client, store, pets)
            answer = found(client, store, "kitten")
            assert answer["data"][0]["ranks"] == {"text": 1, "embedding": None}
            assert "embeddings.folder" in answer["notice"]["message"]
            until(lambda: not ingest_check(client)["ok"])
            assert "package index" in ingest_check(client)["detail"]
        service.running.end()
        online = {name: os.environ.get(name, "") for name in offline}  # pip ignores what is empty
        service.running.restart(**online, ORCHESTRATOR_CACHE=os.environ.get("ORCHESTRATOR_CACHE", str(cache)))
        with service.running.client() as client:
            assert found(client, store, "kitten")["data"][0]["file_id"] == pets
            until(lambda: not found(client, store, "kitten")["notice"], 110)
            best = found(client, store, "young cat")["data"][0]
            assert (best["file_id"], best["ranks"]["text"]) == (pets, None)
