"""``orchestrator top``: a live screen on a terminal, one snapshot elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from time import monotonic
from urllib.parse import quote

import typer

from orchestrator.cli.live import Live, decoded
from orchestrator.cli.text import plain, troubles
from ui.tui.snapshot import Counts, Snapshot, View
from ui.tui.tables import VIEWS, summary

PLAIN_COLUMNS = 200
"""The width where there is no terminal."""
LOG_TAIL_BYTES = 64 * 2**10


class HttpBoard:
    """A `ui.tui.snapshot.Board` by the HTTP API."""

    def __init__(self, live: Live) -> None:
        self.url = live.url
        self._live = live

    async def snapshot(self) -> Snapshot:
        """All there is to see, read one after the other."""
        models = await self._live.get("/api/models")
        gpus = await self._live.get("/api/gpus")
        servers = await self._live.get("/load-stats")
        page = await self._live.text("/metrics")
        health = await self._live.get("/health")
        return Snapshot(
            at=monotonic(),
            models=tuple(models["data"]),
            gpus=tuple(gpus["data"]),
            servers=tuple(servers["data"]),
            trouble=" · ".join(troubles(health)),
            counts=counted(page),
        )

    async def events(self) -> AsyncIterator[tuple[str, View]]:
        """``GET /api/events``."""
        async for name, text in self._live.events("GET", "/api/events"):
            if isinstance(data := decoded(text), dict):
                yield name, data
            elif name == ":":
                yield name, {}

    async def ask(self, model: str, verb: str) -> None:
        """Start, stop, pin or unpin."""
        await self._live.post(f"/api/models/{quote(model)}/{verb}")

    async def log(self, replica: str) -> AsyncIterator[str]:
        """Fit for a terminal, whatever the engine wrote."""
        path = f"/api/logs/{quote(replica, safe='')}?tail_bytes={LOG_TAIL_BYTES}&follow=1"
        async for line in self._live.lines("GET", path, silence_s=None):
            yield plain(line)


def top(url: str, key: str | None, *, once: bool, as_json: bool) -> None:
    """Show the service until the user leaves; a snapshot and no more with `once`, as JSON, or without a terminal."""
    first = asyncio.run(_read(url, key))
    if as_json:
        typer.echo(json.dumps(_as_json(first)))
    elif once or not has_screen():
        _print(first)
    else:
        _screen(url, key, first)


def has_screen() -> bool:
    """Whether this process has a terminal to draw on, and its keys."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def counted(page: str) -> dict[str, Counts]:
    """Each model's counts in the text of ``/metrics``."""
    from prometheus_client.parser import text_string_to_metric_families

    outcomes = {"ok": "ok", "error": "failed", "cancelled": "cancelled"}
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            counts = found.setdefault(sample.labels.get("model", ""), {})
            if sample.name == "orchestrator_requests_total" and sample.labels["outcome"] in outcomes:
                counts[outcomes[sample.labels["outcome"]]] = sample.value
            elif sample.name == "orchestrator_cold_responses_total":
                counts["refused"] = sample.value
            elif sample.name == "orchestrator_tokens_total":
                counts["tokens"] = counts.get("tokens", 0.0) + sample.value
    return {model: Counts(**counts) for model, counts in found.items() if counts}


async def _read(url: str, key: str | None) -> Snapshot:
    async with Live(url, key) as live:
        return await HttpBoard(live).snapshot()


def _screen(url: str, key: str | None, first: Snapshot) -> None:
    from ui.tui.top import TopApp

    TopApp(HttpBoard(Live(url, key)), first).run_in_terminal()


def _as_json(snapshot: Snapshot) -> dict[str, object]:
    requests = [{"model": model, **asdict(counts)} for model, counts in snapshot.counts.items()]
    seen = {"models": snapshot.models, "gpus": snapshot.gpus, "servers": snapshot.servers}
    return {"object": "snapshot", **seen, "requests": requests, "trouble": snapshot.trouble}


def _print(snapshot: Snapshot) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_COLUMNS)
    console.print(Text(summary(snapshot)))
    if snapshot.trouble:
        console.print(Text(snapshot.trouble))
    for view in VIEWS.values():
        table = view(snapshot, PLAIN_COLUMNS)
        console.print()
        if not table.rows:
            console.print(Text(table.empty))
            continue
        shown = Table(box=None, pad_edge=False)
        for heading in table.headings:
            shown.add_column(heading, overflow="fold")
        for row in table.rows:
            shown.add_row(*(Text(cell.text) for cell in row.cells))
        console.print(shown)
