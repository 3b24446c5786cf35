"""``orchestrator usage``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import typer

from orchestrator.cli.remote import Remote
from orchestrator.cli.text import printable

COLUMNS = {
    "requests": "REQUESTS",
    "errors": "ERRORS",
    "refused": "REFUSED",
    "cold_starts": "COLD",
    "prompt_tokens": "PROMPT",
    "completion_tokens": "COMPLETION",
    "cached_tokens": "CACHED",
    "seconds": "SECONDS",
    "gpu_seconds": "GPU-SECONDS",
}


def usage(remote: Remote, query: Mapping[str, str | None], *, as_json: bool) -> None:
    """Who used what, as a table with its sums, or as the service says it."""
    found = remote.get("/api/usage", **{name: value for name, value in query.items() if value is not None})
    if as_json:
        typer.echo(json.dumps(found))
        return
    if not found["data"]:
        typer.echo("nothing has been used")
        return
    from rich.console import Console
    from rich.table import Table

    by: list[str] = found["by"]
    table = Table(box=None, pad_edge=False, show_footer=bool(by))
    for place, name in enumerate(by):
        table.add_column(name.upper(), "" if place else "all", overflow="fold")
    for name, heading in COLUMNS.items():
        table.add_column(heading, _shown(found["totals"][name]), justify="right")
    for row in found["data"]:
        table.add_row(*(printable(row[name]) or "-" for name in by), *(_shown(row[name]) for name in COLUMNS))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)


def _shown(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
