"""``python -m bench.routers``: policies beside those of other routers, over engines of unlike capacities.

The engines are real processes that work on so many requests at a time and let the others wait (`bench.busy`).
Conversations begin at random moments, in the mean so many that they would take `USE` of what the engines have; a turn
that comes to the engine that had the one before it costs less. Each subject gets the same conversations. Told are: the
most loaded engine against the mean of all (running and waiting, by capacity), how long answers take, and the subject's
CPU time, with what it does when idle.
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

import psutil
import uvloop

from bench import load
from bench.busy import HITS, QUERIES, RUNNING, WAITING
from bench.doors import MODEL, Door, Server, ours, peer
from bench.engine import TEXT
from bench.load import Wrong
from bench.prefix import told
from bench.subjects import cpu_s, cpus, free_port, running
from orchestrator.balance.names import Balance

CAPACITIES = (4, 8, 8, 16, 16, 32)
USE = 0.8
"""The part of what all engines can do together that is asked of them, were nothing cached."""
PREFILL_S = 0.1
DECODE_S = 0.2
THINK_S = 0.3
TURNS = 6
WARM_UP_S = 10.0
"""From the start on, nothing is told."""
SAMPLE_S = 0.25
DRAIN_S = 120.0
READY_S = 60.0
POLICIES_OF_PEERS = ("round_robin", "power_of_two", "cache_aware")


@dataclass(slots=True)
class Outcome:
    """What came of one door."""

    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0
    requests: int = 0
    loads: list[float] = field(default_factory=list)
    """The most loaded engine against the mean of all, at each sample."""
    cpu_s: float = 0.0
    cached: float = 0.0


class Clients:
    """As many kept-alive connections to one port as are needed at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[load.Client] = []

    async def ask(self, request: bytes) -> bytes:
        """The body of the answer. Raises `Wrong` if that is no 200."""
        client = self._free.pop() if self._free else await load.connect(self._port)
        body = await client.ask(request)
        self._free.append(client)
        return body

    def close(self) -> None:
        """Hang up."""
        load.close(self._free)


def request(port: int, conversation: int, turn: int) -> bytes:
    """One more turn: all that was said before comes again."""
    said = [{"role": "system", "content": "You are of help."}]
    for number in range(turn + 1):
        content = f"Conversation {conversation:05}: " + "".join(
            f"word{conversation * 31 + number * 7 + word} " for word in range(30)
        )
        said += [{"role": "user", "content": content}, {"role": "assistant", "content": TEXT}]
    body = json.dumps({"model": MODEL, "messages": said[:-1], "stream": False}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Play:
    """The load on one door, once."""

    def __init__(self, port: int, servers: Sequence[Server], seed: int) -> None:
        self._port, self._servers, self._dice = port, servers, random.Random(seed)
        self._clients = Clients(port)
        self._metrics = [Clients(server.port) for server in servers]
        self._conversations: list[asyncio.Task[None]] = []
        self._counts = self._is_over = False
        self.outcome = Outcome()

    async def run(self, seconds: float, tree: psutil.Process) -> Outcome:
        """For so long after the warm-up, and until all is answered. Raises `TimeoutError`."""
        arriving = asyncio.create_task(self._arrive())
        await asyncio.sleep(WARM_UP_S)
        before, cpu, self._counts = await self._counted(), cpu_s(tree), True
        sampling = asyncio.create_task(self._sample())
        await asyncio.sleep(seconds)
        self._counts, self._is_over = False, True
        self.outcome.cpu_s = (cpu_s(tree) - cpu) / self.outcome.requests
        after = await self._counted()
        self.outcome.cached = (after[1] - before[1]) / max(after[0] - before[0], 1)
        for task in (arriving, sampling):
            task.cancel()
        async with asyncio.timeout(DRAIN_S):
            await asyncio.gather(*self._conversations)
        for clients in (self._clients, *self._metrics):
            clients.close()
        return self.outcome

    async def _arrive(self) -> None:
        """Begin conversations until cancelled."""
        rate = USE * sum(server.capacity for server in self._servers) / (PREFILL_S + DECODE_S) / TURNS
        while True:
            self._conversations.append(asyncio.create_task(self._converse(len(self._conversations))))
            await asyncio.sleep(self._dice.expovariate(rate))

    async def _converse(self, number: int) -> None:
        dice = random.Random(number)
        for turn in range(TURNS):
            if self._is_over:
                return
            counts, began = self._counts, time.perf_counter()
            self.outcome.requests += counts
            try:
                load.check(await self._clients.ask(request(self._port, number, turn)), stream=False)
            except Wrong:
                self.outcome.failed += 1
                return
            if counts:
                self.outcome.latencies_s.append(time.perf_counter() - began)
            await asyncio.sleep(dice.expovariate(1 / THINK_S))

    async def _pages(self) -> list[str]:
        """What each engine says of itself."""
        get = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
        return [body.decode() for body in await asyncio.gather(*(clients.ask(get) for clients in self._metrics))]

    async def _counted(self) -> tuple[int, int]:
        """Requests so far, and those whose conversation was cached."""
        pages = await self._pages()
        return sum(told(page, QUERIES) for page in pages), sum(told(page, HITS) for page in pages)

    async def _sample(self) -> None:
        """Until cancelled."""
        while True:
            loads = [
                (told(page, RUNNING) + told(page, WAITING)) / server.capacity
                for page, server in zip(await self._pages(), self._servers, strict=True)
            ]
            if sum(loads):
                self.outcome.loads.append(max(loads) / statistics.mean(loads))
            await asyncio.sleep(SAMPLE_S)


@contextlib.contextmanager
def engines(folder: Path, cpu: int | None) -> Iterator[list[Server]]:
    """One for each of the capacities."""
    with contextlib.ExitStack() as stack:
        servers = [Server(port=free_port(), capacity=capacity) for capacity in CAPACITIES]
        for number, server in enumerate(servers):
            argv = [
                *(sys.executable, "-m", "bench.busy", "--port", str(server.port), "--capacity", str(server.capacity)),
                *("--prefill-s", str(PREFILL_S), "--decode-s", str(DECODE_S), "--seed", str(number)),
                *("--owner", str(os.getpid())),
            ]
            stack.enter_context(running(argv, folder, server.port, cpu))
        yield servers


async def ready(port: int) -> None:
    """Until a request is answered. Raises what the last try did after `READY_S`."""
    ends_at = time.monotonic() + READY_S
    while True:
        try:
            await Clients(port).ask(request(port, 99999, 0))
            return
        except (Wrong, OSError):
            if time.monotonic() > ends_at:
                raise
            await asyncio.sleep(0.2)


def measure(door: Door, seconds: float, seed: int) -> Outcome:
    """The door in front of new engines."""
    places = cpus()
    with tempfile.TemporaryDirectory() as name, engines(Path(name), places.engine) as servers:
        port = free_port()
        with running(door.argv(Path(name), port, servers), Path(name), port, places.subject) as tree:

            async def play() -> Outcome:
                await ready(port)
                return await Play(port, servers, seed).run(seconds, tree)

            return uvloop.run(play())


def doors(peers: Path | None) -> list[Door]:
    """All; of ours, two also without knowing the capacities, as the others are."""
    told_of = [ours(balance, told=True) for balance in Balance]
    untold = [ours(balance, told=False) for balance in (Balance.LEAST_LOADED, Balance.PREFIX)]
    others = [peer(name, policy, peers) for name in ("sglang-router", "vllm-router") for policy in POLICIES_OF_PEERS]
    return [*told_of, *untold, *others]


def row(door: Door, outcome: Outcome) -> str:
    """Of the README's table."""
    if len(outcome.latencies_s) < 2 or len(outcome.loads) < 2:
        return f"| {door.name}, {door.policy} (answered {len(outcome.latencies_s)}) | | | | | |"
    loads = statistics.quantiles(outcome.loads, n=100)
    latencies_s = statistics.quantiles(outcome.latencies_s, n=100)
    failed = f" ({outcome.failed} failed)" if outcome.failed else ""
    return (
        f"| {door.name}, {door.policy}{failed} | {loads[49]:.2f} / {loads[98]:.2f} |"
        f" {latencies_s[49] * 1000:.0f} ms | {latencies_s[98] * 1000:,.0f} ms |"
        f" {outcome.cached:.0%} | {outcome.cpu_s * 1e6:.0f} |"
    )


def main() -> int:
    """Print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends with us
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="a folder to look for peers' programs in, such as an env's bin")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each subject, after its warm-up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="subjects whose name or policy has this in it")
    options = parser.parse_args()
    print("| | max / mean load: median / p99 | median | p99 | cached | CPU ms / 1,000 requests |")
    print("| --- | --: | --: | --: | --: | --: |")
    for door in doors(options.peers):
        if options.only not in f"{door.name}, {door.policy}":
            continue
        if door.is_missing:
            print(f"{door.needs} is not here", file=sys.stderr)
            continue
        print(row(door, measure(door, options.seconds, options.seed)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
