"""A store's embedder changes while it is searched, filled and killed: nothing that was found is ever not found."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.documents.served import WORDS_ONLY, served
from tests.documents.test_vectors_e2e import attached, completed, found, new_store
from tests.stub import WAIT_S, Service, model_table, until

FILES = 12
PIECE = "piece_tokens_max = 64\n"


def _config(embedder: str) -> str:
    """Two models of different dimensions, of which one is the embedder."""
    tables = [
        model_table(f"acme/{name}", "--model", f"acme/{name}", "--dimension", dimension, "--token-delay-s", "0.05")
        for name, dimension in (("old", "8"), ("new", "24"))
    ]
    head = f'[embeddings]\nmodel = "acme/{embedder}"\n{PIECE}' if embedder else WORDS_ONLY
    return head + "".join(tables)


class Watch(threading.Thread):
    """Searches all the while; what it found less than should be found is a fault. A service that is gone is none."""

    def __init__(self, running: Service, store: str) -> None:
        super().__init__()
        self._running = running
        self._store = store
        self._over = threading.Event()
        self.expected = FILES
        self.faults: list[str] = []
        self.searches = 0

    def run(self) -> None:
        """Until `end`."""
        while not self._over.is_set():
            expected = self.expected
            try:
                with self._running.client() as client:
                    path, asked = f"/v1/vector_stores/{self._store}/search", {"query": "common", "max_num_results": 50}
                    answer = client.post(path, json=asked)
            except httpx.TransportError:
                continue
            self.searches += 1
            if answer.status_code != 200:
                self.faults.append(f"{answer.status_code}: {answer.text[:200]}")
            elif (files := len({hit["file_id"] for hit in answer.json()["data"]})) < expected:
                self.faults.append(f"{files} of {expected} files were found")

    def end(self) -> None:
        """And look at it."""
        until(lambda: self.searches > 5)
        self._over.set()
        self.join(WAIT_S)
        assert not self.faults, self.faults[:5]


def _fill(client: httpx.Client) -> str:
    store = new_store(client)
    ids = [attached(client, store, f"{number}.md", _text(number)) for number in range(FILES)]
    for id in ids:
        completed(client, store, id)
    return store


def _text(number: int) -> bytes:
    return f"# File {number}\n\nA common word, and one of its own: word{number}. {'More. ' * 300}".encode()


def _embedding(client: httpx.Client, store: str) -> Any:
    return client.get(f"/v1/vector_stores/{store}").json()["embedding"]


def _restart(running: Service, config: str, **environ: str) -> None:
    running.process.kill()
    running.process.wait(WAIT_S)
    (running.folder / "orchestrator.toml").write_text(config)
    running.restart(**environ)


def _indexes(running: Service, store: str) -> int:
    return len(list((running.folder / "data" / "indexes" / "v1" / store).iterdir()))


def _vectors(running: Service) -> set[str]:
    """The embedders, by their digests, of which vectors are stored."""
    return {path.name.rpartition("-")[2] for path in (running.folder / "data" / "objects").rglob("vectors/*-*")}


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "old"])
def test_a_new_embedder_takes_over_without_a_gap(tmp_path: Path, first: str) -> None:
    with served(tmp_path, _config(first)) as service:
        running = service.running
        with running.client() as client:
            store = _fill(client)
            assert _embedding(client, store) == ({"model": "acme/old", "dimension": 8} if first else None)
        before = _vectors(running)
        _restart(running, _config("new"))
        watch = Watch(running, store)
        watch.start()
        with running.client() as client:
            while _embedding(client, store) in (None, {"model": "acme/old", "dimension": 8}):
                number = watch.expected
                completed(client, store, attached(client, store, f"{number}.md", _text(number)))
                names = [hit["filename"] for hit in found(client, store, f"word{number}")["data"]]
                assert f"{number}.md" in names
                watch.expected = number + 1
            assert _embedding(client, store) == {"model": "acme/new", "dimension": 24}
            until(lambda: _ranked(client, store))
            until(lambda: not before & _vectors(running))
            watch.end()
        _restart(running, _config("new"))
        until(lambda: _indexes(running, store) == 1)
        with running.client() as client:
            assert _ranked(client, store)


def _ranked(client: httpx.Client, store: str) -> bool:
    answer = found(client, store, "common", max_num_results=50)
    return answer["notice"] is None and all(hit["ranks"]["embedding"] for hit in answer["data"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["index.before_manifest", "index.after_lexical", "ingest.after_vectors", "record.before_put"]
)
def test_killed_on_the_move(tmp_path: Path, point: str) -> None:
    with served(tmp_path, _config("old")) as service:
        running = service.running
        with running.client() as client:
            store = _fill(client)
        watch = Watch(running, store)
        watch.start()
        _restart(running, _config("new"), CRASH_AT=point)
        running.process.wait(WAIT_S)
        running.restart()
        with running.client() as client:
            until(lambda: _embedding(client, store) == {"model": "acme/new", "dimension": 24})
            until(lambda: _ranked(client, store))
        watch.end()
