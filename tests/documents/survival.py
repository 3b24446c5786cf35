"""What tests of bad times hold on to: a client that knows its documents, and one that asks a model all the while."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx

from tests.stub import Service, ask, model_table, until

CHAT = model_table("acme/echo")
FILES = 6
ANSWER_S_MAX = 25
"""Within this every answer is there, whatever the object store does; it is given 15."""


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
        until(lambda: self.ask("GET", "/ready").status_code == 200)  # a new catalogue asks the bucket first
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
