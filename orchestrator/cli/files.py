"""``orchestrator files``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer

from orchestrator.cli.bars import bytes_bar
from orchestrator.cli.fetching import STDOUT, fetch, fetch_to_stdout
from orchestrator.cli.remote import Refused, Remote, size
from orchestrator.cli.sending import STDIN, Source, send, sources
from orchestrator.cli.stores import attach, confirm, delete, find_store, listed, tell_failures, wait_read
from orchestrator.cli.text import duration_s, moment, printable, safe_name
from orchestrator.errors import OrchestratorError

PAGE_ROWS = 1000
OF_ONE_FILE = (400, 413, 415, 422)
"""Refusals that say nothing about the next file."""
View = dict[str, Any]


@dataclass(slots=True)
class _Sent:
    """What became of the files so far."""

    files: list[View] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)

    def failed(self, source: Source, cause: str) -> None:
        """Say so, and keep it."""
        self.errors.append({"path": source.path, "message": cause})
        _say(f"{source.path}: {cause}")


def put(
    remote: Remote,
    paths: Sequence[str],
    *,
    purpose: str,
    name: str | None,
    recursive: bool,
    store: str | None,
    expires_after: str | None,
    wait: bool,
    as_json: bool,
) -> int:
    """Send files, and with `store` have them read; 0 when all of that went well."""
    try:
        fields = {"purpose": purpose, **_expiry(expires_after)}
        found = sources(paths, name=name, recursive=recursive)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    target = find_store(remote, store) if store is not None else None
    sent = _Sent()
    for source in found:
        if not _put_one(remote, source, fields, target, sent, as_json=as_json):
            break
    put_in = [file for file in sent.files if "vector_store_file" in file]
    ids = [file["id"] for file in put_in]
    read = wait_read(remote, target, ids, quiet=as_json) if target is not None and wait else []
    for file, view in zip(put_in, read, strict=False):
        file["vector_store_file"] = view
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": sent.files, "errors": sent.errors}))
    elif read:
        typer.echo(f"{sum(view['status'] == 'completed' for view in read)} of {len(read)} read", err=True)
    return 1 if tell_failures(read) or sent.errors else 0


def _put_one(
    remote: Remote, source: Source, fields: dict[str, str], store: View | None, sent: _Sent, *, as_json: bool
) -> bool:
    """Send one file, into the store at once; whether the others have a chance."""
    try:
        total = Path(source.path).stat().st_size if source.path != STDIN else None
        with bytes_bar(source.name, total, quiet=as_json) as progress:
            file = send(remote, source, fields, progress, _say)
    except OSError as error:
        sent.failed(source, error.strerror or str(error))
        return True
    except OrchestratorError as error:
        sent.failed(source, str(error))
        return isinstance(error, Refused) and error.status in OF_ONE_FILE
    sent.files.append(file)
    if not as_json:
        typer.echo(f"{file['id']} {size(file['bytes'])} {printable(file['filename'])}")
    if store is None:
        return True
    try:
        file["vector_store_file"] = attach(remote, store, file["id"])
    except OrchestratorError as error:
        sent.failed(source, f"it is {file['id']} now, yet not in the store: {error}")
        return False
    return True


def ls(remote: Remote, *, purpose: str | None, limit: int | None, as_json: bool) -> None:
    """The tenant's files, newest first."""
    query = {"purpose": purpose} if purpose is not None else {}
    found = listed(remote, "/v1/files", limit, PAGE_ROWS, **query)
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": list(found)}))
        return
    heading = f"{'ID':37} {'SIZE':>9} {'PURPOSE':12} {'CREATED':16} NAME"
    for file in found:
        if heading:
            typer.echo(heading)
            heading = ""
        name, kind = printable(file["filename"]), printable(file["purpose"])
        typer.echo(f"{file['id']:37} {size(file['bytes']):>9} {kind:12} {moment(file['created_at'])} {name}")


def get(remote: Remote, id: str, output: str | None, *, force: bool, as_json: bool) -> None:
    """Bring a file's content here: into the current folder under its own name made safe, or where `output` says."""
    file: View = remote.get(f"/v1/files/{quote(id, safe='')}")
    if output == STDOUT:
        fetch_to_stdout(remote, file, _say)
        return
    target = Path(output or ".")
    if target.is_dir():
        target = target / safe_name(file["filename"], file["id"])
    try:
        with bytes_bar(file["filename"], file["bytes"], quiet=as_json) as progress:
            fetch(remote, file, target, force=force, progress=progress, say=_say)
    except OSError as error:
        raise OrchestratorError(f"{target} can't be written: {error.strerror}") from None
    if as_json:
        typer.echo(json.dumps({**file, "path": str(target)}))
    else:
        typer.echo(f"{target} {size(file['bytes'])}")


def rm(remote: Remote, ids: Sequence[str], *, yes: bool, as_json: bool) -> int:
    """Remove files for good, from every store, too."""
    confirm(f"remove {len(ids)} file{'s' if len(ids) > 1 else ''} for good?", yes=yes)
    return delete(remote, [f"/v1/files/{quote(id, safe='')}" for id in ids], as_json=as_json)


def _expiry(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    return {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(duration_s(text))}


def _say(line: str) -> None:
    typer.echo(f"orchestrator: {printable(line)}", err=True)
