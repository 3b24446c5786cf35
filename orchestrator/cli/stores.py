"""``orchestrator stores``, and what other commands do with vector stores."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import typer

from orchestrator.cli.bars import count_bar
from orchestrator.cli.remote import PLAIN_LINE_S, POLL_S, Refused, Remote, size
from orchestrator.cli.text import moment, printable
from orchestrator.errors import OrchestratorError

PAGE_ROWS = 100
"""The most that OpenAI's API gives of most listings."""
View = dict[str, Any]


def ls(remote: Remote, *, as_json: bool) -> None:
    """All stores of the key's tenant."""
    found = listed(remote, "/v1/vector_stores")
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": list(found)}))
        return
    heading = f"{'ID':36} {'FILES':>7} {'SIZE':>9} {'CREATED':16} NAME"
    for view in found:
        if heading:
            typer.echo(heading)
            heading = ""
        files, bytes_ = view["file_counts"]["total"], size(view["usage_bytes"])
        name = printable(view["name"] or "")
        typer.echo(f"{view['id']:36} {files:>7} {bytes_:>9} {moment(view['created_at'])} {name}")


def new(remote: Remote, name: str, *, as_json: bool) -> None:
    """Make an empty store. Its name should be its own: commands find it by that."""
    if next(_named(remote, name), None) is not None:
        raise OrchestratorError(f"there is a store named {printable(name)} already")
    view = remote.post("/v1/vector_stores", {"name": name})
    typer.echo(json.dumps(view) if as_json else view["id"])


def rm(remote: Remote, names: Sequence[str], *, yes: bool, as_json: bool) -> int:
    """Remove stores; their files stay."""
    stores = [find_store(remote, name) for name in names]
    what = ", ".join(printable(store["name"] or store["id"]) for store in stores)
    confirm(f"remove {what}? Files stay", yes=yes)
    return delete(remote, [f"/v1/vector_stores/{store['id']}" for store in stores], as_json=as_json)


def add(remote: Remote, name: str, files: Sequence[str], *, wait: bool, as_json: bool) -> int:
    """Put files that the service has into a store; 0 when all of them are read."""
    store = find_store(remote, name)
    views = [attach(remote, store, file) for file in files]
    if wait:
        views = wait_read(remote, store, files, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": views}))
    return 1 if tell_failures(views) else 0


def find_store(remote: Remote, name: str) -> View:
    """The store of that id or name. Raises `OrchestratorError` when there is none, or several have the name."""
    if name.startswith("vs_"):
        try:
            found: View = remote.get(f"/v1/vector_stores/{quote(name, safe='')}")
            return found
        except Refused as error:
            if error.status != 404:
                raise
    stores = list(_named(remote, name))
    if not stores:
        raise OrchestratorError(f"no store {printable(name)}; `orchestrator stores new NAME` makes one")
    if len(stores) > 1:
        ids = ", ".join(store["id"] for store in stores)
        raise OrchestratorError(f"{len(stores)} stores are named {printable(name)}, take an id: {ids}")
    return stores[0]


def attach(remote: Remote, store: View, file: str) -> View:
    """Put one file into a store; as the store has it."""
    found: View = remote.post(f"/v1/vector_stores/{store['id']}/files", {"file_id": file})
    return found


def wait_read(remote: Remote, store: View, files: Sequence[str], *, quiet: bool) -> list[View]:
    """Follow the reading of a store's files to its end; how the store has them then."""
    views: list[View] = []
    told_at = time.monotonic()
    with count_bar("read", len(files), quiet=quiet) as show:
        for file in files:
            while (view := _store_file(remote, store, file))["status"] == "in_progress":
                show(len(views) + (view.get("progress") or 0.0), view.get("filename") or "")
                if not quiet and time.monotonic() - told_at >= PLAIN_LINE_S:
                    told_at = time.monotonic()
                    _plain(f"{len(views)} of {len(files)} read")
                time.sleep(POLL_S)
            views.append(view)
    return views


def tell_failures(views: Sequence[View]) -> int:
    """Say which files were not read, and why; how many."""
    failed = [view for view in views if view["status"] not in ("completed", "in_progress")]
    for view in failed:
        cause = (view.get("last_error") or {}).get("message") or view["status"]
        typer.echo(f"{view['id']} {printable(view.get('filename') or '')} was not read: {printable(cause)}", err=True)
    return len(failed)


def listed(remote: Remote, path: str, limit: int | None = None, page: int = PAGE_ROWS, **query: str) -> Iterator[View]:
    """The rows of a listing, page by page, newest first; all of them without a `limit`."""
    after: dict[str, str] = {}
    left = limit if limit is not None else -1
    while left:
        rows = page if left < 0 else min(page, left)
        found = remote.get(path, limit=str(rows), **query, **after)
        yield from found["data"]
        left -= len(found["data"]) if left > 0 else 0
        if not found["has_more"] or not found["data"]:
            return
        after = {"after": found["data"][-1]["id"]}


def delete(remote: Remote, paths: Sequence[str], *, as_json: bool) -> int:
    """Remove each; 1 when one of them could not be, which is said."""
    gone = []
    for path in paths:
        try:
            gone.append(remote.delete(path))
        except Refused as error:
            if error.status != 404:
                raise
            typer.echo(f"orchestrator: {printable(str(error))}", err=True)
            continue
        if not as_json:
            typer.echo(f"removed {gone[-1]['id']}")
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": gone}))
    return 0 if len(gone) == len(paths) else 1


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal; elsewhere `yes` must have been said. Ends the command with 1 on a no, 2 where it can't ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("without a terminal, say --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def _named(remote: Remote, name: str) -> Iterator[View]:
    return (store for store in listed(remote, "/v1/vector_stores") if store["name"] == name)


def _store_file(remote: Remote, store: View, file: str) -> View:
    try:
        found: View = remote.get(f"/v1/vector_stores/{store['id']}/files/{quote(file, safe='')}")
    except Refused as error:
        if error.status != 404:
            raise
        return {"id": file, "status": "cancelled", "last_error": {"message": "it was taken out of the store"}}
    return found


def _plain(line: str) -> None:
    """A line where there is no terminal that shows a bar."""
    if not sys.stderr.isatty():
        typer.echo(line, err=True)
