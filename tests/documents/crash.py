"""Kills the service with -9 while files are stored and read, starts it anew, and looks: R1 for documents.

``python -m tests.documents.crash --kind upload --seeds 20`` prints a JSON line; exit code 1 when anything that was
acknowledged is not there, or anything half-done is seen.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.documents.served import WORDS_ONLY
from tests.stub import WAIT_S, Service, service, until

POINTS: Mapping[str, Sequence[str]] = {
    "upload": ("upload.after_spool", "upload.after_put", "upload.after_record"),
    "ingest": ("ingest.before_passages", "ingest.after_passages", "ingest.before_completed"),
    "index": ("index.before_lexical", "index.after_lexical", "index.before_manifest", "index.after_manifest"),
    "catalogue": ("record.before_put", "record.after_put", "record.before_delete", "record.after_delete"),
}
"""Where a seed may die at once; else it dies after so many acknowledged steps."""
FILES_MAX = 12


@dataclass(slots=True)
class Acknowledged:
    """What the service said is done."""

    files: dict[str, bytes] = field(default_factory=dict)
    attached: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    tried: set[bytes] = field(default_factory=set)


class Client(threading.Thread):
    """Stores files, puts them into a store and removes some, until the service is gone."""

    def __init__(self, url: str, store: str, seed: int, stop_after: int, killed: threading.Event) -> None:
        super().__init__()
        self._http = httpx.Client(base_url=url, timeout=20)
        self._store = store
        self._random = random.Random(seed)
        self._stop_after = stop_after
        self._killed = killed
        self.known = Acknowledged()

    def run(self) -> None:
        """Ends when told so, or when the service is."""
        try:
            for number in range(FILES_MAX):
                self._step(number)
                if number + 1 >= self._stop_after:
                    break
        except httpx.TransportError:
            pass
        self._killed.set()

    def _step(self, number: int) -> None:
        word = f"word{self._random.randrange(10**9)}"
        content = f"# File {number}\n\n{word} stands in this one. {'filler ' * self._random.randrange(400)}".encode()
        self.known.tried.add(content)
        file = {"file": (f"{word}.md", content)}
        answer = self._http.post("/v1/files", data={"purpose": "assistants"}, files=file)
        answer.raise_for_status()
        id = answer.json()["id"]
        self.known.files[id] = content
        self._http.post(f"/v1/vector_stores/{self._store}/files", json={"file_id": id}).raise_for_status()
        self.known.attached.add(id)
        if number and self._random.random() < 0.2:
            gone = self._random.choice(sorted(self.known.files))
            self.known.removed.add(gone)
            self._http.delete(f"/v1/files/{gone}").raise_for_status()
            self.known.files.pop(gone)
            self.known.attached.discard(gone)
            self.known.removed.discard(gone)


def broken(kind: str, seed: int, folder: Path) -> list[str]:
    """What was wrong after one kill; empty when nothing."""
    chance = random.Random(f"{kind} {seed}")
    point = chance.choice(POINTS[kind]) if seed % 2 else ""
    environ = {"CRASH_AT": point} if point else {}
    with service(folder, WORDS_ONLY) as running:
        with running.client() as client:
            store = client.post("/v1/vector_stores", json={"name": "kept"}).json()["id"]
        running.process.terminate()
        running.process.wait(WAIT_S)
        running.restart(**environ)
        killed = threading.Event()
        known = _killed_while_busy(running, store, seed, chance, killed, by_point=bool(point))
        running.restart()
        return _looked_at(running, store, known)


def _killed_while_busy(
    running: Service, store: str, seed: int, chance: random.Random, killed: threading.Event, *, by_point: bool
) -> Acknowledged:
    steps = FILES_MAX if by_point else chance.randrange(1, FILES_MAX)
    client = Client(running.url, store, seed, steps, killed)
    client.start()
    until(lambda: killed.is_set() or running.process.poll() is not None)  # done with its steps, or dead at its point
    if not by_point:
        threading.Event().wait(chance.random() * 0.3)  # the moment is the seed's
    running.process.kill()
    running.process.wait(WAIT_S)
    client.join(WAIT_S)
    return client.known


def _looked_at(running: Service, store: str, known: Acknowledged) -> list[str]:
    found: list[str] = []
    with running.client() as client:
        listed = {file["id"]: file for file in client.get("/v1/files?limit=10000").json()["data"]}
        for id in known.files.keys() - listed.keys() - known.removed:
            found.append(f"{id} was acknowledged and is gone")
        for id in listed:
            content = client.get(f"/v1/files/{id}/content")
            if content.status_code != 200 or content.content not in known.tried:
                found.append(f"{id} is listed and can't be read whole: {content.status_code}")
        files = f"/v1/vector_stores/{store}/files"
        until(lambda: _settled(client, files) is not None)
        settled = _settled(client, files) or {}
        found += [f"{id} ended as {status}" for id, status in settled.items() if status != "completed"]
        for id in known.attached - known.removed - settled.keys():
            found.append(f"{id} was put into the store and is not in it")
        for id in settled:
            word = listed[id]["filename"].removesuffix(".md")
            hits = client.post(f"/v1/vector_stores/{store}/search", json={"query": word}).json()["data"]
            if [hit["file_id"] for hit in hits[:1]] != [id]:
                found.append(f"{id} is read and not found")
    left = list((running.folder / "data" / "spool").iterdir())
    return found + [f"{path.name} is left in the spool" for path in left]


def _settled(client: httpx.Client, files: str) -> dict[str, str] | None:
    """The store's files by their states, once none is in progress."""
    data = client.get(files, params={"limit": 100}).json()["data"]
    states = {file["id"]: file["status"] for file in data}
    return None if "in_progress" in states.values() else states


def main(argv: Sequence[str] | None = None) -> int:
    """All seeds of one kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=sorted(POINTS), default="upload")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args(argv)
    faults: dict[int, list[str]] = {}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            if found := broken(options.kind, seed, Path(folder)):
                faults[seed] = found
    print(json.dumps({"kind": options.kind, "seeds": options.seeds, "broken": faults}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
