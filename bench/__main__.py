"""``orchestrator bench``: CPU time, added latency, memory and start-up, beside peers in one run.

Goals are ratios against the better of the Rust routers that are installed; a machine's noise then hits both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from bench import load
from bench.subjects import Subject, cpu_s, engine_argv, free_port, missing, rss_bytes, running, subjects

CONNECTIONS = 32
CHUNKS = 200
OPEN_STREAMS = 1000
RUST = ("sglang-router", "vllm-router")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """One subject's medians over the rounds; None: not measured."""

    name: str
    cpu_ms_per_1000_requests: float | None = None
    cpu_ms_per_1000_chunks: float | None = None
    added_median_ms: float | None = None
    rss_mb_at_1000_streams: float | None = None
    note: str = ""


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0 when every subject answered rightly."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the subjects end with us
    parser = argparse.ArgumentParser(prog="orchestrator bench", description=__doc__)
    parser.add_argument("--subjects", help="names to measure, with commas; default: all that are installed")
    parser.add_argument("--peers", type=Path, help="a folder to look for peers' programs in, such as an env's bin")
    parser.add_argument("--requests", type=int, default=4000, help="requests in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(argv)
    names = options.subjects.split(",") if options.subjects else None
    found = [subject for subject in subjects(options.peers) if names is None or subject.name in names]
    if not found or options.requests < 100 or options.rounds < 1:
        parser.error("nothing to measure")
    figures = [_measured(subject, options.requests, options.rounds) for subject in found]
    start_s = start_seconds(5)
    if options.json:
        print(json.dumps({"subjects": [asdict(each) for each in figures], "import_to_listening_s": start_s}))
    else:
        print(table(figures, markdown=options.markdown))
        print("\n".join(goals(figures, start_s)))
    return 1 if any(each.note.startswith("wrong") for each in figures) else 0


def _measured(subject: Subject, requests: int, rounds: int) -> Figures:
    if missing(subject):
        return Figures(name=subject.name, note=f"not installed: {subject.remedy}")
    print(f"measuring {subject.name} …", file=sys.stderr, flush=True)
    try:
        flat = asyncio.run(_flat_out(subject, requests, rounds))
        return replace(flat, rss_mb_at_1000_streams=asyncio.run(_open_streams(subject)))
    except (load.Wrong, TimeoutError, OSError, RuntimeError) as error:
        return Figures(name=subject.name, note=f"wrong: {error!s:.200}")


async def _flat_out(subject: Subject, requests: int, rounds: int) -> Figures:
    """CPU per request and per chunk, and the added latency against the engine alone, round by round."""
    # Slow subjects get fewer requests: their cost shows all the same.
    few = requests // 10 if subject.name in ("LiteLLM", "Starlette + httpx") else requests
    with tempfile.TemporaryDirectory() as folder:
        engine_port, port = free_port(), free_port()
        engine, own = engine_argv(engine_port, CHUNKS, 0), engine_argv("{port}", CHUNKS, 0)
        (Path(folder) / "engine").mkdir()
        with (
            running(engine, Path(folder) / "engine", engine_port),
            running(subject.argv(Path(folder), port, engine_port, own), Path(folder), port) as tree,
        ):
            await _ready(port)
            await load.run(port, connections=CONNECTIONS, requests=few // 4, stream=False)
            whole, chunked, added = [], [], []
            for _ in range(rounds):
                whole.append(await _cost(subject, tree, port, few, stream=False))
                chunked.append(await _cost(subject, tree, port, max(few // 20, 32), stream=True))
                through = await load.run(port, connections=1, requests=few // 4, stream=False)
                direct = await load.run(engine_port, connections=1, requests=few // 4, stream=False)
                added.append((through.median_s - direct.median_s) * 1000)
    return Figures(
        name=subject.name,
        cpu_ms_per_1000_requests=statistics.median(whole),
        cpu_ms_per_1000_chunks=statistics.median(chunked),
        added_median_ms=statistics.median(added),
    )


async def _cost(subject: Subject, tree: psutil.Process, port: int, requests: int, *, stream: bool) -> float:
    """CPU milliseconds for a thousand requests, or chunks."""
    before = cpu_s(subject, tree)
    result = await load.run(port, connections=CONNECTIONS, requests=requests, stream=stream)
    return (cpu_s(subject, tree) - before) * 1e6 / result.chunks


async def _open_streams(subject: Subject) -> float:
    """Resident megabytes while OPEN_STREAMS slow streams are open."""
    with tempfile.TemporaryDirectory() as folder:
        engine_port, port = free_port(), free_port()
        engine, own = engine_argv(engine_port, 600, 1.0), engine_argv("{port}", 600, 1.0)
        (Path(folder) / "engine").mkdir()
        with (
            running(engine, Path(folder) / "engine", engine_port),
            running(subject.argv(Path(folder), port, engine_port, own), Path(folder), port) as tree,
        ):
            await _ready(port)
            clients = await load.hold_open(port, OPEN_STREAMS)
            megabytes = rss_bytes(subject, tree) / 1e6
            for client in clients:
                client.transport.abort()
            return megabytes


async def _ready(port: int) -> None:
    """Until a request is answered: routers look for their engine first, and ours starts it."""
    ends_at = time.monotonic() + 60
    while True:
        try:
            await load.run(port, connections=1, requests=1, stream=False)
            return
        except (load.Wrong, OSError):
            if time.monotonic() > ends_at:
                raise
            await asyncio.sleep(0.2)


def start_seconds(times: int) -> float:
    """The median from spawning ``orchestrator serve`` to its ``listening``."""
    seconds = []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            argv = (sys.executable, "-m", "orchestrator", "serve", "--port", "0")
            began = time.perf_counter()
            with subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                assert process.stdout is not None
                process.stdout.readline()
                seconds.append(time.perf_counter() - began)
                process.terminate()
    return statistics.median(seconds)


def table(figures: list[Figures], *, markdown: bool) -> str:
    """The figures as text for people, or for the README."""
    head = ("", "CPU ms / 1,000 requests", "CPU ms / 1,000 chunks", "added median ms", "MB at 1,000 streams")
    rows = [head, *(_row(each) for each in figures)]
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|---|--:|--:|--:|--:|", *lines[1:]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(each: Figures) -> tuple[str, ...]:
    values = (
        (each.cpu_ms_per_1000_requests, ".0f"),
        (each.cpu_ms_per_1000_chunks, ".2f"),
        (each.added_median_ms, ".2f"),
        (each.rss_mb_at_1000_streams, ".0f"),
    )
    name = each.name + (f" ({each.note})" if each.note else "")
    return name, *("" if value is None else f"{value:,{form}}" for value, form in values)


def goals(figures: list[Figures], start_s: float) -> list[str]:
    """Each goal and whether this run met it."""
    ours = next((each for each in figures if each.name == "orchestrator"), None)
    rust = [each for each in figures if each.name in RUST and each.cpu_ms_per_1000_requests]
    lines = [_goal("import to listening", start_s, 1.0, "s")]
    if ours is None or ours.cpu_ms_per_1000_requests is None:
        return lines
    if rust:
        requests = min(each.cpu_ms_per_1000_requests or 0 for each in rust)
        chunks = min(each.cpu_ms_per_1000_chunks or 0 for each in rust)
        lines.append(_goal("CPU per request, of the better Rust router's", ours.cpu_ms_per_1000_requests / requests, 1))
        lines.append(_goal("CPU per chunk, likewise", (ours.cpu_ms_per_1000_chunks or 0) / chunks, 0.6))
    lines.append(_goal("added median latency", ours.added_median_ms or 0, 0.3, "ms"))
    lines.append(_goal("memory at 1,000 open streams", ours.rss_mb_at_1000_streams or 0, 100, "MB"))
    return lines


def _goal(what: str, value: float, limit: float, unit: str = "×") -> str:
    return f"{'PASS' if value <= limit else 'MISS'}  {what}: {value:.2f} {unit} (goal: at most {limit:g} {unit})"


if __name__ == "__main__":
    sys.exit(main())
