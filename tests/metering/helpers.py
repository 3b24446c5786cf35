"""A service with keys, and its usage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.stub import WAIT_S, Service

ADMIN = "the-operators-secret"


def entry(name: str, *scopes: str, **more: Any) -> dict[str, Any]:
    """A key whose secret is its name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "sha256": digest, "scopes": scopes or ["realtime"], **more}


def write_keys(folder: Path, *entries: dict[str, Any]) -> None:
    """The key file, with the operator's key too; replaced at once, as `orchestrator keys` does."""
    new = folder / "new.keys.json"
    operator = {**entry("operator", "admin"), "sha256": hashlib.sha256(ADMIN.encode()).hexdigest()}
    new.write_text(json.dumps({"keys": [operator, *entries]}))
    new.replace(folder / "auth.keys.json")


def client(service: Service, secret: str = ADMIN) -> httpx.Client:
    """A client with that key."""
    return service.client(authorization=f"Bearer {secret}")


@contextlib.contextmanager
def stream(service: Service, secret: str, body: dict[str, Any], events: int) -> Iterator[None]:
    """A chat stream of which so many events have come; leaving it hangs up."""
    address, content = urlsplit(service.url), json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {secret}\r\n"
    with socket.create_connection((address.hostname, address.port), WAIT_S) as connection:
        connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        seen = b""
        while seen.count(b"data:") < events:
            piece = connection.recv(65536)
            assert piece, seen
            seen += piece
        yield


def usage(service: Service, by: str = "key", **query: str) -> list[dict[str, Any]]:
    """The rows as the operator sees them."""
    with client(service) as operator:
        answer = operator.get("/api/usage", params={"by": by, **query})
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def phase(service: Service, model: str) -> str:
    """A model's phase."""
    with client(service) as operator:
        return str(operator.get(f"/api/models/{model}").json()["phase"])
