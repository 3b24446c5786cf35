"""``orchestrator search``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from orchestrator.cli.remote import Remote
from orchestrator.cli.stores import find_store
from orchestrator.cli.text import printable, snippet, word_pattern

INDENT = "      "
NOTHING_FOUND = 1
View = dict[str, Any]


def search(
    remote: Remote,
    store: str,
    query: str,
    *,
    limit: int,
    filters: Sequence[str],
    threshold: float | None,
    as_json: bool,
) -> int:
    """Print the best passages; as `grep` has it, 0 when there are some and 1 when there are none."""
    body: View = {"query": query, "max_num_results": limit}
    if filters:
        body["filters"] = {"type": "and", "filters": [_filter(one) for one in filters]}
    if threshold is not None:
        body["ranking_options"] = {"score_threshold": threshold}
    if as_json:
        body["include"] = ["ranks"]
    page = remote.post(f"/v1/vector_stores/{find_store(remote, store)['id']}/search", body)
    notice = page.get("notice")
    if notice:
        wait = f" (about {notice['retry_after_s']:.0f} s)" if notice.get("retry_after_s") else ""
        typer.echo(f"orchestrator: {printable(notice['message'])}{wait}", err=True)
    if as_json:
        typer.echo(json.dumps(page))
    elif not page["data"]:
        typer.echo(f"nothing found for {printable(query)!r}", err=True)
    else:
        typer.echo("\n".join(_shown(result, query) for result in page["data"]))
    return 0 if page["data"] else NOTHING_FOUND


def _shown(result: View, query: str) -> str:
    text = " ".join(part["text"] for part in result["content"])
    words = _highlighted(snippet(text, query), query) if _colours() else snippet(text, query)
    head = (f"{result['score']:.2f} ", printable(result["filename"]), _place(result.get("place") or {}))
    return f"{' '.join(filter(None, head))} ({result['file_id']})\n{INDENT}{words}"


def _place(place: View) -> str:
    """``· page 3 · Results › Tables``"""
    first, last = place.get("page"), place.get("page_end")
    page = [] if first is None else [f"page {first}" if last in (None, first) else f"pages {first}–{last}"]
    titles = [" › ".join(map(printable, place["headings"]))] if place.get("headings") else []
    found = page + titles
    if not found and place.get("start_byte") is not None:
        found = [f"bytes {place['start_byte']}–{place['end_byte']}"]
    return "".join(f"· {one} " for one in found).strip()


def _highlighted(text: str, query: str) -> str:
    return word_pattern(query).sub(lambda match: typer.style(match[0], bold=True, fg="yellow"), text)


def _colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _filter(text: str) -> View:
    """``KEY=VALUE`` as OpenAI's filter. What reads as a number or a boolean is that, or the string of it."""
    key, found, value = text.partition("=")
    if not key or not found:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE")
    same = [{"type": "eq", "key": key, "value": one} for one in _meant(value)]
    return same[0] if len(same) == 1 else {"type": "or", "filters": same}


def _meant(value: str) -> list[str | int | float | bool]:
    try:
        read = json.loads(value)
    except ValueError:
        return [value]
    return [value, read] if isinstance(read, bool | int | float) else [value]
