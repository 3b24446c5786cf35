"""The views of ``orchestrator top`` as tables of text. Pure. A mark and a word show a state; colour repeats it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.cli.text import printable
from ui.tui.snapshot import Counts, Rates, Snapshot, View

MARKS = {
    "cold": "○",
    "pulling": "↓",
    "queued": "…",
    "starting": "◔",
    "loading": "◑",
    "ready": "●",
    "sleeping": "☾",
    "draining": "◌",
    "failed": "✗",
}
STYLES = {"ready": "green", "failed": "bold red", "cold": "dim", "sleeping": "dim"}
"""Of a phase; the others are on their way, and yellow."""
TURNS = {"half_open": ("◑ half-open", "yellow"), "open": ("✗ open", "bold red"), "closed": ("● closed", "green")}
"""Of a server's breaker."""
NAME_CHARS_MIN = 20
NAME_CHARS_MAX = 60
BAR_CHARS = 6


@dataclass(frozen=True)
class Cell:
    """`order` is what its column is sorted by: of one type in all rows."""

    text: str
    order: float | str
    style: str = ""


@dataclass(frozen=True)
class Row:
    """`key` is unique in its table. `model` is what the keys act on, None where there is none. `detail` says in full
    what the cells cut short."""

    key: str
    model: str | None
    cells: tuple[Cell, ...]
    detail: str


@dataclass(frozen=True)
class Table:
    """One view. `empty` is what to say when it has no rows. Each row has one cell a heading."""

    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    empty: str


def shortened(name: str, chars: int) -> str:
    """`name` in at most `chars` characters; the middle goes, since both ends tell models apart."""
    name = printable(name)
    if len(name) <= chars:
        return name
    head = (chars - 1) // 2
    return f"{name[:head]}…{name[len(name) - (chars - 1 - head) :]}"


def seconds(value: float) -> str:
    """A length of time in at most 6 characters."""
    whole = int(value)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min"
    if whole < 360_000:
        return f"{whole // 3600} h"
    return f"{whole // 86400} d"


def gibibytes(count: float) -> str:
    """Bytes as GiB, as NVIDIA's tools count them, in at most 4 characters."""
    found = count / 2**30
    return f"{found:.1f}" if found < 99.9 else f"{found:.0f}"


def models(snapshot: Snapshot, name_chars: int) -> Table:
    """What each model does, and what happens to it next."""
    gpus = {gpu["uuid"]: _gpu_name(gpu) for gpu in snapshot.gpus}
    rows = tuple(_model(view, gpus, name_chars) for view in snapshot.models)
    empty = 'no models: add [models."org/name"] to orchestrator.toml, or use a key that may see some'
    return Table(("MODEL", "PHASE", "GPUS", "REQS", "NEXT"), rows, empty)


def replicas(snapshot: Snapshot, name_chars: int) -> Table:
    """Each running engine."""
    gpus = {gpu["uuid"]: _gpu_name(gpu) for gpu in snapshot.gpus}
    rows = tuple(_replica(view, gpus, name_chars) for model in snapshot.models for view in model["replicas"])
    return Table(("REPLICA", "MODEL", "PHASE", "AGE", "GPUS", "REQS"), rows, "no engine runs")


def gpus(snapshot: Snapshot, name_chars: int) -> Table:
    """Each GPU: what is used of it beside what is leased."""
    rows = tuple(_gpu(view, name_chars) for view in snapshot.gpus)
    return Table(("GPU", "STATE", "USED", "GiB", "LEASED", "OTHERS", "HELD BY"), rows, "no GPU on this machine")


def requests(snapshot: Snapshot, name_chars: int) -> Table:
    """Each model's requests: now, a second, and since the service began."""
    rows = tuple(_requests(view, snapshot, name_chars) for view in snapshot.models)
    headings = ("MODEL", "NOW", "HELD", "REQ/S", "TOK/S", "OK", "ERR", "LEFT", "503")
    return Table(headings, rows, "no models")


def servers(snapshot: Snapshot, name_chars: int) -> Table:
    """Each way to an engine: how loaded it is, and whether it gets requests."""
    rows = tuple(_server(view, name_chars) for view in snapshot.servers)
    return Table(("SERVER", "MODEL", "BREAKER", "LOAD", "RUN", "WAIT", "KV"), rows, "no server is ready")


VIEWS: dict[str, Callable[[Snapshot, int], Table]] = {
    "models": models,
    "replicas": replicas,
    "gpus": gpus,
    "requests": requests,
    "servers": servers,
}
_BESIDE_NAME_CHARS = {"models": 52, "replicas": 61, "gpus": 58, "requests": 60, "servers": 58}
"""What the other columns of each view take, their gaps included."""


def name_chars(view: str, width: int) -> int:
    """How much of a name a view has room for on a terminal of `width` columns."""
    return min(max(width - _BESIDE_NAME_CHARS[view], NAME_CHARS_MIN), NAME_CHARS_MAX)


def arranged(table: Table, *, wanted: str, column: int, descending: bool) -> tuple[Row, ...]:
    """The rows that hold `wanted` in a cell or in their detail, whatever its case, sorted by a column."""
    needle = wanted.casefold()
    found = [row for row in table.rows if needle in " ".join([*(c.text for c in row.cells), row.detail]).casefold()]
    return tuple(sorted(found, key=lambda row: row.cells[column].order, reverse=descending))


def summary(snapshot: Snapshot) -> str:
    """One line on everything."""
    ready = sum(view["phase"] == "ready" for view in snapshot.models)
    failed = sum(view["phase"] == "failed" for view in snapshot.models)
    flight, held = (sum(view[key] for view in snapshot.models) for key in ("in_flight", "held"))
    rate = sum(rates.requests for rates in snapshot.rates.values())
    parts = [f"{ready}/{len(snapshot.models)} ready", f"{failed} failed" if failed else "", f"{flight} in flight"]
    return " · ".join(part for part in (*parts, f"{held} held" if held else "", f"{rate:.1f} req/s") if part)


def _model(view: View, gpus: dict[str, str], chars: int) -> Row:
    held = ",".join(sorted({gpus.get(uuid, uuid) for replica in view["replicas"] for uuid in replica["gpus"]}))
    flight = f"{view['in_flight']}" + (f" +{view['held']}" if view["held"] else "")
    cells = (
        Cell(shortened(view["id"], chars), view["id"]),
        _phase(view["phase"], view["progress"]),
        Cell(shortened(held, 8), held),
        Cell(flight, view["in_flight"] + view["held"]),
        _next(view),
    )
    return Row(view["id"], view["id"], cells, _model_detail(view))


def _phase(phase: str, done: float | None = None) -> Cell:
    percent = "" if done is None or phase == "ready" else f" {done:.0%}"
    style = STYLES.get(phase, "yellow")
    return Cell(f"{MARKS.get(phase, '?')} {phase}{percent}", phase, style)


def _next(view: View) -> Cell:
    """What comes: ready, asleep, stopped, tried again; nothing for one that is pinned."""
    told = (("eta_s", "ready in"), ("sleeps_in_s", "sleeps in"), ("stops_in_s", "stops in"), ("retry_s", "retry in"))
    for order, (key, what) in enumerate(told):
        if view[key] is not None:
            return Cell(f"{what} {seconds(view[key])}", order * 1e9 + view[key])
    return Cell("pinned" if view.get("pinned") else "", len(told) * 1e9)


def _model_detail(view: View) -> str:
    weights = view["weights"] or {}
    parts = [view["id"], f"{view['engine']} engine", f"{view['phase']} for {seconds(view['elapsed_s'])}"]
    if total := weights.get("total_bytes"):
        parts.append(f"weights {gibibytes(weights['done_bytes'] or 0)} of {gibibytes(total)} GiB")
    parts += [view["note"], f"failed: {view['error']}" if view["error"] else ""]
    return printable(" · ".join(part for part in parts if part))


def _replica(view: View, gpus: dict[str, str], chars: int) -> Row:
    held = ",".join(gpus.get(uuid, uuid) for uuid in view["gpus"])
    cells = (
        Cell(shortened(view["id"], 20), view["id"]),
        Cell(shortened(view["model"], chars), view["model"]),
        _phase(view["phase"]),
        Cell(seconds(view["age_s"]), view["age_s"]),
        Cell(shortened(held, 8), held),
        Cell(str(view["in_flight"]), view["in_flight"]),
    )
    parts = [view["id"], view["model"], view["endpoint"] or "", f"on {view['host']}" if view["host"] else ""]
    parts += ["adopted" if view["adopted"] else "", f"failed: {view['error']}" if view["error"] else ""]
    return Row(view["id"], view["model"], cells, printable(" · ".join(part for part in parts if part)))


def _gpu(view: View, chars: int) -> Row:
    total, leased = view["memory_bytes"], sum(holder["bytes"] for holder in view["holders"])
    used = max(total - view["free_bytes"], 0)
    filled = round(BAR_CHARS * used / total) if total else 0
    holders = ", ".join(sorted({holder["model"] for holder in view["holders"]}))
    cells = (
        Cell(shortened(_gpu_name(view), 8), _gpu_name(view)),
        Cell("● healthy", "healthy", "green") if view["healthy"] else Cell("✗ fault", "fault", "bold red"),
        Cell("█" * filled + "░" * (BAR_CHARS - filled), used / total if total else 0.0),
        Cell(f"{gibibytes(used)}/{gibibytes(total)}", used),
        Cell(gibibytes(leased), leased),
        Cell(gibibytes(view["foreign_bytes"]), view["foreign_bytes"]),
        Cell(shortened(holders, chars), holders),
    )
    held = [f"{holder['model']} {gibibytes(holder['bytes'])} GiB ({holder['phase']})" for holder in view["holders"]]
    parts = [view["name"], view["uuid"], view["fault"], *held]
    only = {holder["model"] for holder in view["holders"]}
    model = only.pop() if len(only) == 1 else None
    return Row(view["uuid"], model, cells, printable(" · ".join(part for part in parts if part)))


def _server(view: View, chars: int) -> Row:
    """What an engine does not tell is a dash, and sorted below nothing at all."""
    word, style = TURNS[view["breaker"]]
    if view["breaker"] == "closed" and not view["in_rotation"]:
        word, style = "◌ draining", "yellow"
    load, use = view["load"], view["cache_use"]
    cells = (
        Cell(shortened(view["replica"], 16), view["replica"]),
        Cell(shortened(view["model"], chars), view["model"]),
        Cell(word, word, style),
        Cell(f"{load:.2f}" if load < 10 else f"{load:.0f}", load),
        *(
            Cell("–" if view[n] is None else str(view[n]), -1 if view[n] is None else view[n])
            for n in ("running", "waiting")
        ),
        Cell("–" if use is None else f"{use:.0%}", -1.0 if use is None else use),
    )
    parts = [view["replica"], view["model"], f"{view['in_flight']} in flight, capacity {view['capacity']}"]
    parts += [f"{view['failures']} failures" if view["failures"] else ""]
    parts += [f"out for {seconds(view['retry_s'] or 0)}: {view['fault']}" if view["fault"] else ""]
    return Row(f"{view['model']} {view['replica']}", view["model"], cells, printable(" · ".join(p for p in parts if p)))


def _count(told: int | None) -> Cell:
    return Cell("–" if told is None else str(told), -1 if told is None else told)


def _gpu_name(view: View) -> str:
    """``0``, or ``node-1:0`` where there are several hosts."""
    return f"{view['host']}:{view['index']}" if view["host"] else str(view["index"])


def _requests(view: View, snapshot: Snapshot, chars: int) -> Row:
    counts = snapshot.counts.get(view["id"], Counts())
    rates = snapshot.rates.get(view["id"], Rates())
    whole = (counts.ok, counts.failed, counts.cancelled, counts.refused)
    cells = (
        Cell(shortened(view["id"], chars), view["id"]),
        Cell(str(view["in_flight"]), view["in_flight"]),
        Cell(str(view["held"]), view["held"]),
        Cell(f"{rates.requests:.1f}", rates.requests),
        Cell(f"{rates.tokens:.0f}", rates.tokens),
        *(Cell(f"{count:.0f}", count) for count in whole),
    )
    told = "{:.0f} answered, {:.0f} failed, {:.0f} left by their client, {:.0f} told to come back".format(*whole)
    return Row(view["id"], view["id"], cells, f"{printable(view['id'])} · since the service began: {told}")
