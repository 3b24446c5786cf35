"""Kills the service with -9 while files are stored and read, starts it anew, and looks: R1 for documents.

``python -m tests.documents.crash --kind upload --seeds 20`` prints a JSON line; exit code 1 when anything that was
acknowledged is not there, or anything half-done is seen.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from orchestrator.cli.finding import Finding, Level
from orchestrator.cli.storage_checks import check_documents
from orchestrator.settings import ServerSettings, Settings
from tests.documents.served import WORDS_ONLY, with_embedder
from tests.documents.workload import Acknowledged, Client
from tests.stub import WAIT_S, Service, service, until

POINTS: Mapping[str, Sequence[str]] = {
    "upload": ("upload.after_spool", "upload.after_put", "upload.after_record"),
    "ingest": (
        *("ingest.before_passages", "ingest.after_passages", "ingest.before_vectors", "ingest.after_vectors"),
        "ingest.before_completed",
    ),
    "index": ("index.before_lexical", "index.after_lexical", "index.before_manifest", "index.after_manifest"),
    "catalogue": ("record.before_put", "record.after_put", "record.before_delete", "record.after_delete"),
}
"""Every second seed dies at one of these, in turn; the others at a moment of their own."""
WITH_VECTORS = ("ingest", "index")
"""Kinds whose stores have vectors, too."""
STEPS_BEFORE = 5
"""What is there before anything dies."""
MOMENT_S_MAX = 0.3
PARALLEL = 2
"""Seeds at a time, each with a service of its own, which waits for disks and engines half of its time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A stopped service's folder, and what it has acknowledged so far."""

    folder: Path
    config: str
    known: Acknowledged


def template(kind: str, folder: Path) -> Template:
    """Made by a service that did some work and ended in good order."""
    config = with_embedder() if kind in WITH_VECTORS else WORDS_ONLY
    known = Acknowledged()
    with service(folder, config) as running:
        with running.client() as http:
            known.store = http.post("/v1/vector_stores", json={"name": "kept"}).json()["id"]
            client = Client(running.url, known, f"before {kind}")
            client.start()
            until(lambda: client.steps >= STEPS_BEFORE or not client.working)
            client.stop()
            assert not client.fault, client.fault
            until(lambda: _settled(http, known.store) is not None)
        running.end()
    return Template(folder=folder, config=config, known=known)


def broken(kind: str, seed: int, origin: Template, folder: Path) -> list[str]:
    """What was wrong after one kill; empty when nothing."""
    chance = random.Random(f"{kind} {seed}")
    point = POINTS[kind][seed // 2 % len(POINTS[kind])] if seed % 2 else ""
    shutil.copytree(origin.folder / "data", folder / "data")
    known = copy.deepcopy(origin.known)
    with service(folder, origin.config, **({"CRASH_AT": point} if point else {})) as running:
        client = Client(running.url, known, f"{kind} {seed}")
        _kill_while_busy(running, client, chance, by_point=bool(point))
        running.restart()
        with running.client() as http:
            found = [client.fault] if client.fault else []
            found += [*_files(http, known), *_members(http, known, vectors=kind in WITH_VECTORS)]
            _go_on(http, known.store)
        code, log = running.end(), running.log()
        found += [f"it ended with {code}"] if code else []
        found += [f"its log has {word}" for word in ("Traceback", "_bug", "nanobind", "index_damaged") if word in log]
    found += [f"{path.name} is left in the spool" for path in (folder / "data" / "spool").iterdir()]
    return found + [f"doctor: {one.what} {one.ids}" for one in doctor(folder / "data") if one.level is not Level.OK]


def doctor(data: Path) -> list[Finding]:
    """What it finds about the documents of a stopped service on a folder."""
    return list(check_documents(Settings(server=ServerSettings(data_dir=data)), repair=False, quiet=True))


def _kill_while_busy(running: Service, client: Client, chance: random.Random, *, by_point: bool) -> None:
    steps = chance.randrange(8)
    client.start()
    if by_point:
        until(lambda: running.process.poll() is not None or not client.working, 2 * WAIT_S)
    else:
        until(lambda: client.steps >= steps or not client.working)
        threading.Event().wait(chance.random() * MOMENT_S_MAX)  # the moment is the seed's
    running.process.kill()
    running.process.wait(WAIT_S)
    client.stop()


def _go_on(http: httpx.Client, store: str) -> None:
    """One file more. Once that is read, every index was compared with the catalogue, which comes first."""
    file = {"file": ("later.md", b"# Later\n\nlater")}
    answer = http.post("/v1/files", data={"purpose": "assistants"}, files=file)
    body = {"file_id": answer.raise_for_status().json()["id"]}
    http.post(f"/v1/vector_stores/{store}/files", json=body).raise_for_status()
    until(lambda: _settled(http, store) is not None)


def _files(http: httpx.Client, known: Acknowledged) -> Iterator[str]:
    listed = {file["id"]: file for file in http.get("/v1/files?limit=10000").json()["data"]}
    for id in known.files.keys() - listed.keys() - known.unsure:
        yield f"{id} was acknowledged and is gone"
    for id in listed.keys() & known.gone:
        yield f"{id} was deleted and is back"
    for id in listed:
        content = http.get(f"/v1/files/{id}/content")
        allowed = {known.files[id]} if id in known.files else known.tried
        if content.status_code != 200 or content.content not in allowed:
            yield f"{id} is listed and can't be read whole: {content.status_code}"


def _members(http: httpx.Client, known: Acknowledged, *, vectors: bool) -> Iterator[str]:
    until(lambda: _settled(http, known.store) is not None)
    members = _settled(http, known.store) or {}
    for id in known.attached - known.unsure - members.keys():
        yield f"{id} was put into the store and is not in it"
    for id in members.keys() & (known.detached | known.gone):
        yield f"{id} was taken out of the store and is back"
    for id, member in members.items():
        if member["status"] != "completed":
            yield f"{id} ended as {member['status']}: {member['last_error']}"
        if id in known.attributes and member["attributes"] != {"number": known.attributes[id]}:
            yield f"the attributes of {id} are {member['attributes']}"
    for id in {*members, *known.detached}:
        if name := http.get(f"/v1/files/{id}").json().get("filename"):
            yield from _search(http, known.store, id, name, found=id in members, vectors=vectors)


def _search(http: httpx.Client, store: str, id: str, name: str, *, found: bool, vectors: bool) -> Iterator[str]:
    asked = {"query": name.removesuffix(".md"), "include": ["ranks"]}

    def hits() -> list[dict[str, Any]]:
        answer = http.post(f"/v1/vector_stores/{store}/search", json=asked)
        data: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
        return data

    if not found:
        if any(hit["file_id"] == id for hit in hits()):
            yield f"{id} was taken out and is found"
        return
    if vectors:  # the embedder may have to start first
        until(lambda: all(hit["ranks"]["embedding"] for hit in hits()[:1]))
    if [hit["file_id"] for hit in hits()[:1]] != [id]:
        yield f"{id} is in the store and not found"


def _settled(http: httpx.Client, store: str) -> dict[str, dict[str, Any]] | None:
    """The store's files, once none is in progress."""
    data = http.get(f"/v1/vector_stores/{store}/files", params={"limit": 100}).json()["data"]
    return None if any(file["status"] == "in_progress" for file in data) else {file["id"]: file for file in data}


def faults(kind: str, seeds: Sequence[int], folder: Path) -> dict[int, list[str]]:
    """What was wrong, by seed. `folder` must exist; it is empty of seeds' folders after."""
    origin = template(kind, _made(folder / "template"))

    def run(seed: int) -> tuple[int, list[str]]:
        place = _made(folder / f"seed{seed}")
        wrong = broken(kind, seed, origin, place)
        shutil.rmtree(place)
        return seed, wrong

    with ThreadPoolExecutor(PARALLEL) as seeds_at_once:
        return {seed: wrong for seed, wrong in seeds_at_once.map(run, seeds) if wrong}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """All seeds of one kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=sorted(POINTS), default="upload")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = faults(options.kind, range(options.seeds), Path(folder))
    print(json.dumps({"kind": options.kind, "seeds": options.seeds, "broken": found}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
