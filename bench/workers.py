"""``python -m bench.workers``: what `server.workers` brings: requests a second, and CPU time of each, by their number.

Workers, engine and load run beside each other, so throughput grows only where there are cores for all of them: N for
the workers, as many for the load, one for the engine. On fewer, CPU time of a request is what can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench import load
from bench.subjects import cpu_s, engine_argv, free_port, running

CONNECTIONS = 32
"""Of each process of the load: enough that chance spreads them evenly among the workers."""
READY_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Medians over the rounds."""

    workers: int
    requests_per_s: float
    cpu_ms_per_1000: float


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    parser.add_argument("--workers", default="1,2", help="numbers, with commas")
    parser.add_argument("--requests", type=int, default=10_000, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    numbers = [int(number) for number in options.workers.split(",")]
    found = [measure(number, options.requests, options.rounds) for number in numbers]
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores; free ones for all need {2 * max(numbers) + 1}")
    print("| workers | requests/s | of the first | CPU ms per 1,000 |\n|---|---|---|---|")
    for each in found:
        ratio = each.requests_per_s / found[0].requests_per_s
        print(f"| {each.workers} | {each.requests_per_s:,.0f} | {ratio:.2f} | {each.cpu_ms_per_1000:.0f} |")
    return 0


def measure(workers: int, requests: int, rounds: int) -> Figures:
    """One service with so many workers, in front of one instant engine."""
    rates, costs = list[float](), list[float]()
    port = free_port()
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(workers) as loads:
        folder = Path(name)
        (folder / "orchestrator.toml").write_text(
            f'[server]\nport = {port}\nworkers = {workers}\n[embeddings]\nmodel = ""\n'
            f'[models."bench/model"]\nengine = "command"\nmin_replicas = 1\n'
            f"command = {json.dumps(engine_argv('{port}', 200, 0.0))}\n"
        )
        with running([sys.executable, "-m", "orchestrator", "serve"], folder, port) as tree:
            _until_ready(port)
            for _ in range(rounds + 1):
                before, began = cpu_s(tree), time.perf_counter()
                done = sum(loads.map(ask, [port] * workers, [requests // workers] * workers))
                rates.append(done / (time.perf_counter() - began))
                costs.append((cpu_s(tree) - before) * 1e6 / done)
    return Figures(
        workers=workers,
        requests_per_s=statistics.median(rates[1:]),  # the first one warms up
        cpu_ms_per_1000=statistics.median(costs[1:]),
    )


def ask(port: int, requests: int) -> int:
    """One process of the load; how many were answered, each of them rightly."""
    return uvloop.run(load.run(port, connections=CONNECTIONS, requests=requests, stream=False)).requests


def _until_ready(port: int) -> None:
    ends_at = time.monotonic() + READY_S
    while True:
        try:
            ask(port, CONNECTIONS)
            return
        except (load.Wrong, OSError):
            if time.monotonic() > ends_at:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
