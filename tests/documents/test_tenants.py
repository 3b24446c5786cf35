"""S1 and S2, generated from the route table: nobody reaches another tenant's documents, or beyond a key's scopes.

A new route needs a row in `BODIES`, or this fails.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.access.auth import KeyRing
from orchestrator.access.key_file import new_key
from orchestrator.config import load
from orchestrator.documents.endpoints import Endpoint
from orchestrator.documents.ids import new_id
from orchestrator.library import Library
from orchestrator.model import Scope
from storage.catalog import Catalog
from tests.documents.served import WORDS_ONLY
from tests.stub import Service, service, until

FORM = {"files": {"file": ("a.txt", b"text")}, "data": {"purpose": "assistants"}}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/files"): FORM,
    ("GET", "/v1/files"): {},
    ("GET", "/v1/files/{file}"): {},
    ("DELETE", "/v1/files/{file}"): {},
    ("GET", "/v1/files/{file}/content"): {},
    ("POST", "/v1/uploads"): {
        "json": {"filename": "a.txt", "purpose": "assistants", "bytes": 4, "mime_type": "text/plain"}
    },
    ("POST", "/v1/uploads/{upload}/parts"): {"files": {"data": b"text"}},
    ("POST", "/v1/uploads/{upload}/complete"): {"json": {"part_ids": ["{part}"]}},
    ("POST", "/v1/uploads/{upload}/cancel"): {},
    ("POST", "/v1/vector_stores"): {"json": {"file_ids": ["{file}"]}},
    ("GET", "/v1/vector_stores"): {},
    ("GET", "/v1/vector_stores/{store}"): {},
    ("POST", "/v1/vector_stores/{store}"): {"json": {"name": "mine"}},
    ("DELETE", "/v1/vector_stores/{store}"): {},
    ("POST", "/v1/vector_stores/{store}/search"): {"json": {"query": "text"}},
    ("POST", "/v1/vector_stores/{store}/files"): {"json": {"file_id": "{file}"}},
    ("GET", "/v1/vector_stores/{store}/files"): {},
    ("GET", "/v1/vector_stores/{store}/files/{file}"): {},
    ("POST", "/v1/vector_stores/{store}/files/{file}"): {"json": {"attributes": {"a": 1}}},
    ("DELETE", "/v1/vector_stores/{store}/files/{file}"): {},
    ("GET", "/v1/vector_stores/{store}/files/{file}/content"): {},
    ("POST", "/v1/vector_stores/{store}/file_batches"): {"json": {"file_ids": ["{file}"]}},
    ("GET", "/v1/vector_stores/{store}/file_batches/{batch}"): {},
    ("POST", "/v1/vector_stores/{store}/file_batches/{batch}/cancel"): {},
    ("GET", "/v1/vector_stores/{store}/file_batches/{batch}/files"): {},
}
"""A request that is right but for its ids, for each route."""
KINDS = {
    "file": "file",
    "upload": "upload",
    "part": "part",
    "store": "vector_store",
    "batch": "vector_store_file_batch",
}


@dataclass(frozen=True, slots=True)
class Tenant:
    """A key, and one thing of each kind that it made."""

    client: httpx.Client
    ids: dict[str, str]


@dataclass(frozen=True, slots=True)
class Two:
    """A service with two tenants, and keys of each scope alone."""

    running: Service
    ada: Tenant
    bob: Tenant
    scoped: dict[Scope, httpx.Client]


def table(folder: Path) -> list[Endpoint]:
    """The service's routes for documents."""
    catalog = Catalog(folder / "catalog.duckdb")
    try:
        settings = load(None, flags={"embeddings": {"model": ""}})
        keys = KeyRing(folder / "none")
        library = Library(settings=settings, data=folder, instance="i", catalog=catalog, keys=keys, clock=Clock())
        return library.endpoints()
    finally:
        catalog.close()


class Clock:
    """Time does not matter here."""

    def monotonic(self) -> float:
        return 0.0

    def unix(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[Endpoint]:
    return table(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("tenants")
    keys = folder / "auth.keys.json"

    def secret(name: str, scope: Scope) -> str:
        return new_key(keys, name, [scope], models=[], expires=None)

    secrets = {name: secret(name, Scope.UPLOAD) for name in ("ada", "bob")}
    scoped = {scope: secret(f"only {scope}", scope) for scope in Scope}
    with service(folder, WORDS_ONLY) as running, contextlib.ExitStack() as clients:

        def client(key: str) -> httpx.Client:
            return clients.enter_context(running.client(authorization=f"Bearer {key}"))

        tenants = {name: client(key) for name, key in secrets.items()}
        yield Two(
            running,
            Tenant(tenants["ada"], things(tenants["ada"])),
            Tenant(tenants["bob"], things(tenants["bob"])),
            {scope: client(key) for scope, key in scoped.items()},
        )


def things(client: httpx.Client) -> dict[str, str]:
    """One of each kind."""

    def made(path: str, **body: Any) -> str:
        answer = client.post(path, **body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    ids = {"file": made("/v1/files", **FORM), "store": made("/v1/vector_stores", json={})}
    files = f"/v1/vector_stores/{ids['store']}/files"
    ids["batch"] = made(f"/v1/vector_stores/{ids['store']}/file_batches", json={"file_ids": [ids["file"]]})
    until(lambda: client.get(f"{files}/{ids['file']}").json()["status"] == "completed")
    ids["upload"] = made("/v1/uploads", **BODIES[("POST", "/v1/uploads")])
    ids["part"] = made(f"/v1/uploads/{ids['upload']}/parts", files={"data": b"text"})
    return ids


def filled(given: Any, ids: dict[str, str]) -> Any:
    """The same with its ``{kind}`` filled in."""
    if isinstance(given, str):
        return re.sub(r"\{(\w+)\}", lambda found: ids[found[1]], given)
    if isinstance(given, dict):
        return {key: filled(value, ids) for key, value in given.items()}
    return [filled(value, ids) for value in given] if isinstance(given, list) else given


def kinds(method: str, path: str) -> list[str]:
    """Which ids the request has."""
    return re.findall(r"\{(\w+)\}", path + str(BODIES[method, path].get("json", "")))


def test_each_route_has_its_row(routes: list[Endpoint]) -> None:
    assert {(one.method, one.path) for one in routes} == set(BODIES)


def test_anothers_id_is_an_unknown_one(two: Two, routes: list[Endpoint]) -> None:
    """Byte for byte but for the id itself, for each place that an id has in each route."""
    checked = 0
    for one in routes:
        for kind in kinds(one.method, one.path):
            answers = []
            for id in (two.ada.ids[kind], new_id(KINDS[kind])):  # type: ignore[arg-type]
                ids = {**two.bob.ids, kind: id}
                body = filled(BODIES[one.method, one.path], ids)
                answer = two.bob.client.request(one.method, filled(one.path, ids), **body)
                answers.append((answer.status_code, answer.text.replace(id, "ID"), answer.headers["content-type"]))
                assert answer.status_code in (400, 404), (one.method, one.path, kind, answer.text)
                assert answer.status_code == 404 or kind == "part", (one.method, one.path, kind, answer.text)
            assert answers[0] == answers[1], (one.method, one.path, kind)
            checked += 1
    assert checked >= len(BODIES)


def test_listings_show_ones_own_only(two: Two) -> None:
    for path, kind in (("/v1/files", "file"), ("/v1/vector_stores", "store")):
        listed = {item["id"] for item in two.bob.client.get(path).json()["data"]}
        assert two.bob.ids[kind] in listed
        assert two.ada.ids[kind] not in listed
        cursor = two.bob.client.get(path, params={"after": two.ada.ids[kind]})
        unknown = two.bob.client.get(path, params={"after": new_id(KINDS[kind])})  # type: ignore[arg-type]
        assert (cursor.status_code, cursor.text) == (unknown.status_code, unknown.text)
        assert cursor.status_code == 400


def test_a_key_does_what_its_scopes_say(two: Two, routes: list[Endpoint]) -> None:
    """401 without a key, 403 without the scope, and neither with it."""
    with two.running.client() as nobody:
        for one in routes:
            ids = {kind: new_id(KINDS[kind]) for kind in KINDS}  # type: ignore[arg-type]
            path, body = filled(one.path, ids), filled(BODIES[one.method, one.path], ids)
            denied = nobody.request(one.method, path, **body)
            assert (denied.status_code, denied.headers["www-authenticate"]) == (401, "Bearer")
            for scope, client in two.scoped.items():
                allowed = scope in one.scopes or scope is Scope.ADMIN
                status = client.request(one.method, path, **body).status_code
                assert (status != 403) is allowed, (one.method, one.path, scope, status)
                assert status != 401
