"""A client that stores, reads and removes documents until the service is gone, and remembers what it was told."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

STEPS_MAX = 40
STOP_S_MAX = 30
LARGE_BYTES = 3 * 2**20
"""Of a file that takes a while to send, and is in no store."""


@dataclass(slots=True)
class Acknowledged:
    """What the service said is done, and what it may have done without saying so."""

    store: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    attached: set[str] = field(default_factory=set)
    attributes: dict[str, int] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    """Files that were deleted."""
    detached: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    """Files in the middle of a change that was not answered."""
    tried: set[bytes] = field(default_factory=set)
    """Every content that was sent."""


class Client:
    """Works in a thread until told to stop, or the service is gone; `steps` counts what is done."""

    def __init__(self, url: str, known: Acknowledged, seed: str) -> None:
        self.known = known
        self.steps = 0
        self.fault = ""
        """What it was told and should not have been."""
        self._url = url
        self._random = random.Random(seed)
        self._told_to_stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def working(self) -> bool:
        """Whether there is more to come."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after this step. Waits for it."""
        self._told_to_stop.set()
        self._thread.join(STOP_S_MAX)

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=20) as http:
            try:
                while self.steps < STEPS_MAX and not self._told_to_stop.is_set():
                    self._step(http)
                    self.steps += 1
            except httpx.TransportError:
                return
            except httpx.HTTPStatusError as error:
                self.fault = f"{error.request.method} {error.request.url.path}: {error.response.text}"

    def _step(self, http: httpx.Client) -> None:
        steady = sorted(self.known.attached - self.known.unsure)
        steps: list[tuple[float, Callable[[], None]]] = [
            (0.4, lambda: self._attach(http, self._upload(http))),
            (0.2, lambda: self._batch(http, [self._in_parts(http), self._upload(http)])),
            (0.1, lambda: self._large(http)),
        ]
        if steady:
            chosen = self._random.choice(steady)
            steps += [
                (0.1, lambda: self._label(http, chosen)),
                (0.1, lambda: self._detach(http, chosen)),
                (0.1, lambda: self._delete(http, chosen)),
            ]
        (step,) = self._random.choices([step for _, step in steps], [weight for weight, _ in steps])
        step()

    def _upload(self, http: httpx.Client) -> str:
        name, content = self._content()
        answer = _ok(http.post("/v1/files", data={"purpose": "assistants"}, files={"file": (name, content)}))
        self.known.files[answer["id"]] = content
        return str(answer["id"])

    def _in_parts(self, http: httpx.Client) -> str:
        name, content = self._content()
        body = {"filename": name, "purpose": "assistants", "bytes": len(content), "mime_type": "text/markdown"}
        upload = _ok(http.post("/v1/uploads", json=body))["id"]
        half = len(content) // 2
        parts = [
            _ok(http.post(f"/v1/uploads/{upload}/parts", files={"data": part}))["id"]
            for part in (content[:half], content[half:])
        ]
        answer = _ok(http.post(f"/v1/uploads/{upload}/complete", json={"part_ids": parts}))
        self.known.files[answer["file"]["id"]] = content
        return str(answer["file"]["id"])

    def _large(self, http: httpx.Client) -> None:
        content = self._random.randbytes(LARGE_BYTES)
        self.known.tried.add(content)
        answer = _ok(http.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("large.bin", content)}))
        self.known.files[answer["id"]] = content

    def _attach(self, http: httpx.Client, id: str) -> None:
        _ok(http.post(f"/v1/vector_stores/{self.known.store}/files", json={"file_id": id}))
        self.known.attached.add(id)

    def _batch(self, http: httpx.Client, ids: list[str]) -> None:
        _ok(http.post(f"/v1/vector_stores/{self.known.store}/file_batches", json={"file_ids": ids}))
        self.known.attached.update(ids)

    def _label(self, http: httpx.Client, id: str) -> None:
        number = self._random.randrange(10**6)
        self.known.attributes.pop(id, None)
        _ok(http.post(f"/v1/vector_stores/{self.known.store}/files/{id}", json={"attributes": {"number": number}}))
        self.known.attributes[id] = number

    def _detach(self, http: httpx.Client, id: str) -> None:
        self.known.unsure.add(id)
        _ok(http.delete(f"/v1/vector_stores/{self.known.store}/files/{id}"))
        self.known.attached.discard(id)
        self.known.detached.add(id)
        self.known.unsure.discard(id)

    def _delete(self, http: httpx.Client, id: str) -> None:
        self.known.unsure.add(id)
        _ok(http.delete(f"/v1/files/{id}"))
        self.known.attached.discard(id)
        self.known.files.pop(id)
        self.known.gone.add(id)
        self.known.unsure.discard(id)

    def _content(self) -> tuple[str, bytes]:
        """A name, and a content in which it is the one word of its kind."""
        word = f"word{self._random.randrange(10**9)}"
        content = f"# {word}\n\n{word} stands here. {'filler ' * self._random.randrange(400)}".encode()
        self.known.tried.add(content)
        return f"{word}.md", content


def _ok(answer: httpx.Response) -> dict[str, Any]:
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found
