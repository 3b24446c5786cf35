"""``orchestrator endpoints``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer

from orchestrator.cli.remote import Remote
from orchestrator.cli.text import printable
from orchestrator.errors import OrchestratorError
from orchestrator.servers.endpoint import normal_url

Json = dict[str, Any]


def show(remote: Remote, model: str | None, *, as_json: bool) -> None:
    """A line for each server; an endpoint without one has a line too."""
    models = [model] if model else [m["id"] for m in remote.get("/api/models")["data"] if m["engine"] == "static"]
    found = [endpoint for name in models for endpoint in _all(remote, name)]
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": found}))
        return
    if not found:
        typer.echo("no static model has an endpoint")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("MODEL", "ENDPOINT", "ADDRESS", "PHASE", "REQUESTS", "FROM", "WHAT"):
        table.add_column(heading, overflow="fold")
    for endpoint in found:
        for row in _rows(endpoint):
            table.add_row(*row)
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)


def add(remote: Remote, model: str, body: Json, *, as_json: bool) -> None:
    """Add one."""
    _tell(remote.post(_path(model), body), "added", as_json=as_json)


def drain(remote: Remote, model: str, server: str, *, as_json: bool) -> None:
    """Drain one."""
    _tell(remote.post(f"{_path(model)}/{_id(remote, model, server)}/drain"), "drains", as_json=as_json)


def remove(remote: Remote, model: str, server: str, *, as_json: bool) -> None:
    """Remove one."""
    _tell(remote.delete(f"{_path(model)}/{_id(remote, model, server)}"), "removed", as_json=as_json)


def read_key(file: str | None) -> str:
    """A server's key, from a file or the standard input: an argument could be read by everybody on the machine."""
    if file is None:
        return ""
    try:
        return (sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OrchestratorError(f"{file}: {error}") from None


def _all(remote: Remote, model: str) -> list[Json]:
    found: list[Json] = remote.get(_path(model))["data"]
    return found


def _id(remote: Remote, model: str, server: str) -> str:
    """An endpoint's id, from what people say."""
    if "://" not in server:
        return quote(server, safe="")
    try:
        url = normal_url(server)
    except ValueError as error:
        raise OrchestratorError(str(error)) from None
    found = next((str(endpoint["id"]) for endpoint in _all(remote, model) if endpoint["url"] == url), None)
    if found is None:
        raise OrchestratorError(f"{model} has no endpoint {printable(server)}")
    return found


def _path(model: str) -> str:
    return f"/api/models/{model}/endpoints"


def _tell(answer: Json, what: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(answer) if as_json else f"{answer['id']} {what}")


def _rows(endpoint: Json) -> list[tuple[str, ...]]:
    begin = (str(endpoint["model"]), str(endpoint["id"]))
    if not endpoint["servers"]:
        return [(*begin, endpoint["url"], "-", "0", endpoint["from"], printable(endpoint["error"]))]
    return [
        (
            *begin,
            endpoint["url"] + (f" at {server['address']}" if server["address"] not in endpoint["url"] else ""),
            server["phase"],
            str(server["in_flight"]),
            endpoint["from"],
            printable(server["error"]),
        )
        for server in endpoint["servers"]
    ]
