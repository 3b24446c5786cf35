"""``python -m bench.prefix``: what a policy does for engines that cache prompts, with real vLLM on the CPU.

Some engines of SmolLM2-135M, none of which can cache all conversations, stand behind one service as static servers.
Clients hold conversations over a few turns; some system prompts are shared by many of them. From vLLM's own counters:
the share of the prompts' tokens that it had in its cache. From the clients: the time to the first token.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.doors import MODEL, Door, Server, ours, peer
from bench.subjects import free_port, running
from orchestrator.balance.names import Balance
from orchestrator.config import cache_dir
from orchestrator.demo.engine import prepare_engine
from orchestrator.demo.weights import prepare_weights

AT_ONCE = 4
"""Requests that an engine works on at a time."""
BLOCK_TOKENS = 32
SYSTEMS = 4
"""System prompts in use."""
SYSTEM_WORDS = 400
SAID_WORDS = 80
"""Of each message of a user."""
ANSWER_TOKENS = 16
THINK_S = 1.0
"""Between an answer and the next turn, in the mean."""
START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
    "at",
)
ENGINE_ENV = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # serves /reset_prefix_cache
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What the clients say, the same to each door."""

    conversations: Sequence[Sequence[str]]
    """Of each: the system prompt, then what the user says at each turn."""
    at_once: int
    """Conversations under way."""


@dataclass(slots=True)
class Outcome:
    """What came of one door, all rounds together."""

    first_s: list[float] = field(default_factory=list)
    """To the first token: all turns but the first of each conversation."""
    asked_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0


def trace(conversations: int, turns: int, at_once: int, seed: int) -> Trace:
    """Conversations of random words."""
    dice = random.Random(seed)

    def say(words: int) -> str:
        return " ".join(dice.choices(WORDS, k=words))

    systems = [say(SYSTEM_WORDS) for _ in range(SYSTEMS)]
    said = [[dice.choice(systems), *(say(SAID_WORDS) for _ in range(turns))] for _ in range(conversations)]
    return Trace(conversations=said, at_once=at_once)


def engine_argv(python: str, weights: str, port: int, cache_tokens: int) -> list[str]:
    """A vLLM whose cache holds so many tokens."""
    return [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", weights, "--served-model-name", MODEL,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048",
        "--max-num-seqs", str(AT_ONCE), "--enable-prefix-caching", "--block-size", str(BLOCK_TOKENS),
        "--num-gpu-blocks-override", str(cache_tokens // BLOCK_TOKENS), "--uvicorn-log-level", "warning",
    ]  # fmt: skip


@contextlib.contextmanager
def engines(count: int, cache_tokens: int) -> Iterator[list[Server]]:
    """So many, ended on exit; started one after another, since each needs much of the machine until it is ready."""
    cache = cache_dir(os.environ)
    python = prepare_engine(cache, lambda step: None).python
    weights = prepare_weights(cache, python, lambda step: None)
    os.environ.update(ENGINE_ENV)
    with contextlib.ExitStack() as stack:
        servers = []
        for number in range(count):
            print(f"starting engine {number + 1} of {count}", file=sys.stderr, flush=True)
            port, folder = free_port(), Path(stack.enter_context(tempfile.TemporaryDirectory()))
            argv = engine_argv(python, weights, port, cache_tokens)
            stack.enter_context(running(argv, folder, port, timeout_s=START_TIMEOUT_S))
            servers.append(Server(port=port, capacity=AT_ONCE))
        yield servers


def told(page: str, name: str) -> int:
    """The sum of a counter over its series."""
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name + "{")))


async def counted(client: httpx.AsyncClient, servers: Sequence[Server]) -> tuple[int, int]:
    """Tokens of prompts so far, and those of them that were cached."""
    pages = [(await client.get(f"{server.url}/metrics")).text for server in servers]
    asked, cached = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
    return sum(told(page, asked) for page in pages), sum(told(page, cached) for page in pages)


async def turn(client: httpx.AsyncClient, url: str, messages: list[dict[str, str]], tokens: int) -> tuple[float, str]:
    """Seconds to the first token of an answer, and the answer. Raises `httpx.HTTPError`."""
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": tokens, "stream": True}
    began, first_s, answer = time.perf_counter(), 0.0, ""
    async with client.stream("POST", f"{url}/v1/chat/completions", json={**body, "ignore_eos": True}) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            first_s = first_s or time.perf_counter() - began
            if line.startswith("data: {"):
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                answer += choice["delta"].get("content") or ""
    return first_s, answer


async def ready(client: httpx.AsyncClient, url: str) -> None:
    """Until a request is answered. Raises what the last try did after `ANSWER_TIMEOUT_S`."""
    ends_at = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            await turn(client, url, [{"role": "user", "content": "?"}], 1)
            return
        except httpx.HTTPError:
            if time.monotonic() > ends_at:
                raise
            await asyncio.sleep(0.2)


async def play(url: str, servers: Sequence[Server], played: Trace, seed: int, outcome: Outcome) -> None:
    """The whole trace, with caches empty before."""
    dice, places = random.Random(seed), asyncio.Semaphore(played.at_once)

    async def converse(client: httpx.AsyncClient, system: str, said: Sequence[str]) -> None:
        messages = [{"role": "system", "content": system}]
        async with places:
            for number, text in enumerate(said):
                messages.append({"role": "user", "content": text})
                first_s, answer = await turn(client, url, messages, ANSWER_TOKENS)
                messages.append({"role": "assistant", "content": answer})
                if number:
                    outcome.first_s.append(first_s)
                await asyncio.sleep(dice.expovariate(1 / THINK_S))

    async with httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S) as client:
        await ready(client, url)
        for server in servers:
            (await client.post(f"{server.url}/reset_prefix_cache")).raise_for_status()
        before, began = await counted(client, servers), time.monotonic()
        await asyncio.gather(*(converse(client, each[0], each[1:]) for each in played.conversations))
        after = await counted(client, servers)
        outcome.seconds += time.monotonic() - began
    outcome.asked_tokens += after[0] - before[0]
    outcome.cached_tokens += after[1] - before[1]


def doors(peers: Path | None) -> list[Door]:
    """Those that are on this machine."""
    of_ours = [ours(balance, told=True) for balance in (Balance.ROUND_ROBIN, Balance.LEAST_LOADED, Balance.PREFIX)]
    others = [peer(name, "cache_aware", peers) for name in ("sglang-router", "vllm-router")]
    return [door for door in (*of_ours, *others) if not door.is_missing]


def row(door: Door, outcome: Outcome) -> str:
    """Of the README's table."""
    centiles = statistics.quantiles(outcome.first_s, n=100)
    return (
        f"| {door.name}, {door.policy} | {outcome.cached_tokens / outcome.asked_tokens:.0%} |"
        f" {statistics.median(outcome.first_s):.2f} s | {centiles[94]:.2f} s | {outcome.seconds:.0f} s |"
    )


def main() -> int:
    """Print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends with us
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, default=3)
    parser.add_argument("--cache-tokens", type=int, default=8192, help="of each engine")
    parser.add_argument("--conversations", type=int, default=18)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=9, help="conversations under way")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers", type=Path, help="a folder to look for peers' programs in, such as an env's bin")
    options = parser.parse_args()
    outcomes = [(door, Outcome()) for door in doors(options.peers)]
    with engines(options.engines, options.cache_tokens) as servers:
        for number in range(options.rounds):
            seed = options.seed + number
            played = trace(options.conversations, options.turns, options.at_once, seed)
            for door, outcome in outcomes:
                port = free_port()
                with (
                    tempfile.TemporaryDirectory() as name,
                    running(door.argv(Path(name), port, servers), Path(name), port),
                ):
                    asyncio.run(play(f"http://127.0.0.1:{port}", servers, played, seed, outcome))
                print(row(door, outcome), file=sys.stderr, flush=True)
    print("| | of prompts' tokens cached | first token, median | p95 | whole trace |\n| --- | --: | --: | --: | --: |")
    print("\n".join(row(door, outcome) for door, outcome in outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
