"""S2: which scopes each route takes, of the control plane, the data plane and the dashboard. The documents' routes
have a matrix of their own (`tests.documents.test_tenants`).

A new route needs a row in `TABLE`, or this fails.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from orchestrator.access.key_file import new_key
from orchestrator.model import Scope
from orchestrator.proxy import TARGETS
from tests.documents.test_tenants import BODIES
from tests.stub import Service, model_table, service

OPEN: frozenset[Scope] = frozenset()
"""Needs no key."""
ANY = frozenset(Scope)
LOOK = frozenset({Scope.MONITOR})
CHANGE = frozenset({Scope.ADMIN})
ASK = frozenset({Scope.REALTIME})
READ = frozenset({Scope.UPLOAD, Scope.REALTIME})
WRITE = frozenset({Scope.UPLOAD})
TABLE: dict[tuple[str, str], frozenset[Scope]] = {
    ("GET", "/"): OPEN,
    ("GET", "/live"): OPEN,
    ("GET", "/ready"): OPEN,
    ("GET", "/health"): OPEN,
    ("GET", "/api/healthz"): OPEN,
    ("GET", "/metrics"): LOOK,
    ("GET", "/metrics/replicas"): LOOK,
    ("GET", "/metrics/replicas/{replica}"): LOOK,
    ("GET", "/v1/models"): ASK,
    ("GET", "/v1/models/{model}"): ASK,
    ("GET", "/api/models"): LOOK,
    ("GET", "/api/models/{model}"): LOOK,
    ("GET", "/api/models/{model}/endpoints"): LOOK,
    ("POST", "/api/models/{model}/endpoints"): CHANGE,
    ("DELETE", "/api/models/{model}/endpoints/{server}"): CHANGE,
    **{("POST", f"/api/models/{{model}}/endpoints/{{server}}/{act}"): CHANGE for act in ("drain", "resume")},
    **{("POST", f"/api/models/{{model}}/{act}"): CHANGE for act in ("start", "stop", "pull", "pin", "unpin")},
    ("GET", "/api/gateways"): LOOK,
    ("GET", "/api/gateways/table"): CHANGE,
    ("POST", "/api/gateways/reports"): CHANGE,
    ("GET", "/api/replicas"): LOOK,
    ("GET", "/api/gpus"): LOOK,
    ("GET", "/api/starts"): LOOK,
    ("GET", "/api/usage"): ANY,
    ("GET", "/api/logs/{replica}"): LOOK,
    ("GET", "/api/events"): LOOK,
    ("GET", "/load-stats"): LOOK,
    **{("POST", path): ASK for path in TARGETS},
    ("GET", "/dashboard/static/{name}"): OPEN,
    ("GET", "/dashboard/sign-in"): OPEN,
    ("POST", "/dashboard/sign-in"): OPEN,
    ("POST", "/dashboard/sign-out"): OPEN,
    ("GET", "/dashboard"): LOOK,
    ("GET", "/dashboard/events"): LOOK,
    ("GET", "/dashboard/models/{model}"): LOOK,
    **{("POST", f"/dashboard/models/{{model}}/{act}"): CHANGE for act in ("start", "stop", "pull", "pin", "unpin")},
    ("GET", "/dashboard/starts"): LOOK,
    ("GET", "/dashboard/servers"): LOOK,
    ("POST", "/dashboard/servers"): CHANGE,
    **{
        ("POST", f"/dashboard/models/{{model}}/endpoints/{{server}}/{act}"): CHANGE
        for act in ("drain", "resume", "remove")
    },
    ("GET", "/dashboard/gpus"): LOOK,
    ("GET", "/dashboard/requests"): LOOK,
    ("GET", "/dashboard/logs"): LOOK,
    ("GET", "/dashboard/logs/{replica}"): LOOK,
    ("GET", "/dashboard/keys"): CHANGE,
    ("GET", "/dashboard/usage"): ANY,
    ("GET", "/dashboard/files"): READ,
    ("POST", "/dashboard/files"): WRITE,
    ("POST", "/dashboard/stores"): WRITE,
    ("GET", "/dashboard/stores/{store}"): READ,
    ("POST", "/dashboard/stores/{store}/files"): WRITE,
    ("GET", "/dashboard/search"): READ,
    ("GET", "/dashboard/chat"): ASK,
    ("GET", "/dashboard/{page}"): ANY,
}
LIST_ROUTES = """
import json, os
from pathlib import Path
from orchestrator.app import Service
from orchestrator.config import Watched
watched = Watched(None, flags={"embeddings": {"model": ""}})
routes = Service(watched.load(), watched).routes()
found = [(method, route.path.replace(":path}", "}")) for route in routes for method in route.methods - {"HEAD"}]
print(json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, dict[Scope, httpx.Client]]]:
    folder = tmp_path_factory.mktemp("scopes")
    path = folder / "auth.keys.json"
    secrets = {scope: new_key(path, f"only {scope}", [scope], models=[], expires=None) for scope in Scope}
    with service(folder, model_table("acme/a")) as running, contextlib.ExitStack() as clients:
        yield (
            running,
            {
                scope: clients.enter_context(running.client(authorization=f"Bearer {secret}"))
                for scope, secret in secrets.items()
            },
        )


def test_each_route_has_its_row(tmp_path: Path) -> None:
    """The service itself says which there are."""
    listed = subprocess.run([sys.executable, "-c", LIST_ROUTES], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    routes = {(method, path) for method, path in json.loads(listed.stdout)}
    documents = set(BODIES)
    assert routes - documents == set(TABLE) - {("POST", path) for path in TARGETS}


@pytest.mark.parametrize(("method", "path"), TABLE)
def test_a_key_does_what_its_scopes_say(
    keyed: tuple[Service, dict[Scope, httpx.Client]], method: str, path: str
) -> None:
    """401 without a key, 403 without the scope, and neither with it: as an answer in JSON, and as a page."""
    running, clients = keyed
    scopes, address = (
        TABLE[method, path],
        path.format(model="acme/none", replica="none", server="none", name="none", store="vs_none", page="none"),
    )
    with running.client(accept="application/json") as nobody:
        assert (status(nobody, method, address) == 401) is bool(scopes)
    for accept in ("application/json", "text/html"):
        for scope, client in clients.items():
            found = status(client, method, address, accept=accept)
            allowed = not scopes or scope in scopes or scope is Scope.ADMIN
            assert (found not in (401, 403)) is allowed, (scope, accept, found)


def status(client: httpx.Client, method: str, path: str, **headers: str) -> int:
    """Of a stream, too, whose body is left alone."""
    with client.stream(method, path, headers=headers) as answer:
        return answer.status_code
