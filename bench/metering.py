"""``python -m bench.metering``: what keys, limits and usage cost: the CPU time per request and per chunk with all of
them on, as a ratio to the same build with all of them off, side by side in one run."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop

from bench import load
from bench.subjects import Cpus, cpu_s, cpus, engine_argv, free_port, running

BOUND = 1.15
CHUNKS = 200
CONNECTIONS = 32
SECRET = "none"
"""What `load.request` sends."""
LIMIT = 10**12
READY_S = 60.0
KINDS = {"request": (False, False), "chunk": (True, False), "single chunk": (True, True)}
"""Whether it is streamed, and whether each event comes alone, as most engines send them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A running service."""

    port: int
    tree: psutil.Process


@contextlib.contextmanager
def service(on: bool, pinned: Cpus) -> Iterator[Subject]:
    """One with all of it on, or off."""
    port = free_port()
    engine = json.dumps(engine_argv("{port}", CHUNKS, 0.0, pinned.engine))
    limits = f"requests_per_minute = {LIMIT}\ntokens_per_minute = {LIMIT}\nmax_concurrent = {LIMIT}\n" if on else ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "orchestrator.toml").write_text(
            f"[server]\nport = {port}\n[usage]\nenabled = {json.dumps(on)}\n"
            f'[models."bench/model"]\nengine = "command"\nmin_replicas = 1\ncommand = {engine}\n{limits}'
        )
        if on:
            kinds = ("requests_per_minute", "tokens_per_minute", "max_concurrent", "request_bytes_max")
            key = {"name": "bench", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "scopes": ["realtime"]}
            every = {**key, **dict.fromkeys((*kinds, "tokens_per_month"), LIMIT)}
            (folder / "auth.keys.json").write_text(json.dumps({"keys": [every]}))
        argv = [sys.executable, "-m", "orchestrator", "serve"]
        with running(argv, folder, port, pinned.subject) as tree:
            yield Subject(port=port, tree=tree)


async def ready(subject: Subject) -> None:
    """Until it answers. Raises what the last try did after `READY_S`."""
    ends_at = time.monotonic() + READY_S
    while True:
        try:
            await load.run(subject.port, connections=1, requests=1, stream=False)
            return
        except (load.Wrong, OSError):
            if time.monotonic() > ends_at:
                raise
            await asyncio.sleep(0.2)


async def cost(subject: Subject, kind: str, requests: int) -> float:
    """CPU microseconds of one request or chunk. Raises `load.Wrong` unless each answer is the engine's, byte for byte,
    without what it was asked for on top."""
    stream, one_by_one = KINDS[kind]
    before = cpu_s(subject.tree)
    result = await load.run(
        subject.port,
        connections=CONNECTIONS,
        requests=max(requests // 20, CONNECTIONS) if stream else requests,
        stream=stream,
        one_by_one=one_by_one,
        chunks=CHUNKS,
    )
    return (cpu_s(subject.tree) - before) * 1e6 / result.chunks


async def measure(rounds: int, requests: int) -> dict[str, list[tuple[float, float]]]:
    """For each kind, (off, on) of each round; which of the two goes first alternates."""
    pinned = cpus()
    figures: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with service(False, pinned) as off, service(True, pinned) as on:
        await ready(off)
        await ready(on)
        for number in range(rounds + 1):
            for kind in KINDS:
                order = (off, on) if number % 2 else (on, off)
                costs = {subject.port: await cost(subject, kind, requests) for subject in order}
                if number:  # the first warms up
                    figures[kind].append((costs[off.port], costs[on.port]))
    return figures


def main() -> int:
    """Measure and print; 1 when a ratio is beyond the bound."""
    parser = argparse.ArgumentParser(prog="python -m bench.metering", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=4000, help="in a round")
    options = parser.parse_args()
    figures = uvloop.run(measure(options.rounds, options.requests))
    worst = 0.0
    for kind, pairs in figures.items():
        ratio = statistics.median(on / off for off, on in pairs)
        worst = max(worst, ratio)
        off_us, on_us = (statistics.median(values) for values in zip(*pairs, strict=True))
        line = {"per": kind, "off_us": round(off_us, 2), "on_us": round(on_us, 2), "ratio": round(ratio, 3)}
        print(json.dumps({**line, "bound": BOUND, "rounds": len(pairs)}))
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
