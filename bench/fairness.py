"""``python -m bench.fairness``: what a noisy key costs another that uses the same model: the other's p99 beside it
and alone, in turns in one run. The model takes few requests at a time, so the noisy ones have to wait."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from bench.subjects import cpus, engine_argv, free_port, running

BOUND = 1.2
"""A noisy key moves another's p99 by less than 20 %."""
PLACES = 8
"""Requests that the model takes at a time."""
NOISY = 64
"""Requests that the noisy key has under way at any time."""
CHUNKS = 5
CHUNK_S = 0.02
READY_S = 60.0
MODEL = "bench/model"


def configure(folder: Path, port: int, engine: list[str]) -> None:
    """Two keys, one model."""
    (folder / "orchestrator.toml").write_text(
        f'[server]\nport = {port}\n[models."{MODEL}"]\nengine = "command"\ncommand = {json.dumps(engine)}\n'
        f"min_replicas = 1\nmax_concurrent = {PLACES}\n"
    )
    names = ("quiet", "noisy")
    keys = [{"name": n, "sha256": hashlib.sha256(n.encode()).hexdigest(), "scopes": ["realtime"]} for n in names]
    (folder / "auth.keys.json").write_text(json.dumps({"keys": keys}))


async def ask(client: httpx.AsyncClient, key: str) -> float:
    """Seconds that a streamed answer takes, to its end."""
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "?"}]}
    began = time.perf_counter()
    answer = await client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    answer.raise_for_status()
    return time.perf_counter() - began


async def ready(client: httpx.AsyncClient) -> None:
    """Until the model answers. Raises what the last try did after `READY_S`."""
    ends_at = time.monotonic() + READY_S
    while True:
        try:
            await ask(client, "quiet")
            return
        except httpx.HTTPError:
            if time.monotonic() > ends_at:
                raise
            await asyncio.sleep(0.2)


async def quiet(client: httpx.AsyncClient, requests: int) -> list[float]:
    """One request after the other."""
    return [await ask(client, "quiet") for _ in range(requests)]


async def beside_noise(client: httpx.AsyncClient, requests: int) -> tuple[list[float], int]:
    """The same while another key asks as much as it can; and how much that got."""
    served = 0

    async def noise() -> None:
        nonlocal served
        while True:
            await ask(client, "noisy")
            served += 1

    loud = [asyncio.create_task(noise()) for _ in range(NOISY)]
    try:
        await ask(client, "quiet")
        return await quiet(client, requests), served
    finally:
        for task in loud:
            task.cancel()
        await asyncio.gather(*loud, return_exceptions=True)


async def measure(port: int, rounds: int, requests: int) -> tuple[list[float], list[float], int]:
    """The seconds of the quiet key's answers, alone and beside the noisy one, and the noisy one's answers."""
    alone: list[float] = []
    beside: list[float] = []
    served = 0
    limits = httpx.Limits(max_connections=NOISY + 2)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=READY_S, limits=limits) as client:
        await ready(client)
        for _ in range(rounds):
            alone += await quiet(client, requests)
            found, more = await beside_noise(client, requests)
            beside, served = beside + found, served + more
    return alone, beside, served


def main() -> int:
    """Measure and print; 1 when the ratio is beyond the bound."""
    parser = argparse.ArgumentParser(prog="python -m bench.fairness", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=100, help="of the quiet key, in each half of a round")
    options = parser.parse_args()
    pinned, port = cpus(), free_port()
    with tempfile.TemporaryDirectory() as name:
        configure(Path(name), port, engine_argv("{port}", CHUNKS, CHUNK_S, pinned.engine))
        argv = [sys.executable, "-m", "orchestrator", "serve"]
        with running(argv, Path(name), port, pinned.subject):
            alone, beside, served = asyncio.run(measure(port, options.rounds, options.requests))
    alone_ms, beside_ms = (statistics.quantiles(values, n=100)[98] * 1000 for values in (alone, beside))
    ratio = beside_ms / alone_ms
    figures = {"p99_alone_ms": round(alone_ms, 1), "p99_beside_ms": round(beside_ms, 1), "ratio": round(ratio, 3)}
    print(json.dumps({**figures, "bound": BOUND, "quiet_answers": len(beside), "noisy_answers": served}))
    return 0 if ratio <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
