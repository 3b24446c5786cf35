"""``python -m bench.balance``: the policies side by side, and what choosing costs.

1. Simulated, in virtual time, with the product's own lanes and policies: engines of unlike capacities, conversations
   whose turns come in after each other, a fifth of all by a second front door that we know of only by what the engines
   tell every two seconds. A turn that comes to where the one before it was costs less: its prompt is cached.
2. The service's CPU time for a request with 1, 8 and 64 servers of a model, against an instant engine.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import random
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import load
from bench.subjects import cpu_s, cpus, engine_argv, free_port, running
from orchestrator.balance.lane import SLOW_START_S, Lane
from orchestrator.balance.names import Balance
from orchestrator.balance.policy import POLICIES, Policy
from orchestrator.model import Load
from orchestrator.upstream import Pool, Timeouts

CAPACITIES = (4, 8, 8, 16, 16, 32)
"""Requests that each engine works on at a time; the others wait at it."""
USE = 0.8
"""The part of what all engines can do together that is asked of them, were nothing cached."""
ELSEWHERE = 0.2
PREFILL_S = 1.0
"""Of a prompt that is not cached."""
DECODE_S = 2.0
TURNS = 6
CACHED_MAX = 24
"""Conversations that an engine keeps for each request that it works on."""
TOLD_EVERY_S = 2.0
LANES = (1, 8, 64)
MINUTE = Timeouts(connect_timeout_s=1, first_byte_timeout_s=1, stream_idle_timeout_s=1, request_timeout_s=1)


@dataclass(slots=True)
class Engine:
    """What one does: so many at a time, the others in the order in which they came."""

    capacity: int
    running: int = 0
    waiting: deque[Asked] = field(default_factory=deque)
    cached: dict[int, None] = field(default_factory=dict)
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One turn of a conversation."""

    conversation: int
    turn: int
    at: float
    lane: Lane | None
    """None: it came by the other front door."""


@dataclass(slots=True)
class Outcome:
    """What came of one policy."""

    first_s: list[float] = field(default_factory=list)
    """Until each request is begun and its prompt read."""
    hits: int = 0
    turns: int = 0
    loads: list[float] = field(default_factory=list)
    """The most loaded engine against the mean of all, at each telling."""


class World:
    """One run: `policy` over the engines, until so many requests are done."""

    def __init__(self, policy: Policy, seed: int) -> None:
        self._dice = random.Random(seed)
        self._policy = policy
        self._engines = [Engine(capacity) for capacity in CAPACITIES]
        self._lanes = [Lane(f"r{n}", Pool("h", 1, MINUTE), capacity=c) for n, c in enumerate(CAPACITIES)]
        for lane in self._lanes:
            lane.ramp_at = -SLOW_START_S
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._serial = itertools.count()
        self._conversations = itertools.count()
        self.outcome = Outcome()

    def run(self, requests: int) -> Outcome:
        """Virtual time until so many are done."""
        self._tell(0.0)
        self._arrive(0.0)
        while len(self.outcome.first_s) < requests:
            now, _, happen = heapq.heappop(self._events)
            happen(now)
        return self.outcome

    def _later(self, at: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._serial), happen))

    def _tell(self, now: float) -> None:
        """What the poller does."""
        for lane, engine in zip(self._lanes, self._engines, strict=True):
            lane.heard(Load(running=engine.running, waiting=len(engine.waiting), kv_use=None, at=now))
            lane.weigh(now, self._dice.random())
        self._policy.lay(self._lanes)
        loads = [(engine.running + len(engine.waiting)) / engine.capacity for engine in self._engines]
        if sum(loads):
            self.outcome.loads.append(max(loads) / statistics.mean(loads))
        self._later(now + TOLD_EVERY_S, self._tell)

    def _arrive(self, now: float) -> None:
        """A new conversation, and the time of the next."""
        rate = USE * sum(CAPACITIES) / (PREFILL_S + DECODE_S) / TURNS
        self._later(now + self._dice.expovariate(rate), self._arrive)
        self._ask(next(self._conversations), 0, now)

    def _ask(self, conversation: int, turn: int, now: float) -> None:
        if self._dice.random() < ELSEWHERE:
            index, lane = self._dice.choices(range(len(CAPACITIES)), CAPACITIES)[0], None
        else:
            said = [{"role": "system", "content": "s"}, {"role": "user", "content": str(conversation)}]
            lane = self._policy.choose(json.dumps({"messages": said}).encode())
            index = self._lanes.index(lane)
            lane.enter(now)
        engine, asked = self._engines[index], Asked(conversation, turn, now, lane)
        if engine.running < engine.capacity:
            self._begin(engine, asked, now)
        else:
            engine.waiting.append(asked)

    def _begin(self, engine: Engine, asked: Asked, now: float) -> None:
        engine.running += 1
        hit = asked.conversation in engine.cached
        engine.cached.pop(asked.conversation, None)
        engine.cached[asked.conversation] = None
        if len(engine.cached) > CACHED_MAX * engine.capacity:
            del engine.cached[next(iter(engine.cached))]
        prefill_s = 0.1 * PREFILL_S if hit else PREFILL_S
        if asked.lane is not None:
            self.outcome.first_s.append(now + prefill_s - asked.at)
            self.outcome.turns += asked.turn > 0
            self.outcome.hits += hit and asked.turn > 0
        took_s = prefill_s + self._dice.expovariate(1 / DECODE_S)
        self._later(now + took_s, lambda then: self._end(engine, asked, then))

    def _end(self, engine: Engine, asked: Asked, now: float) -> None:
        engine.running -= 1
        if asked.lane is not None:
            asked.lane.leave(now, 0.0)
        if engine.waiting:
            self._begin(engine, engine.waiting.popleft(), now)
        if asked.turn + 1 < TURNS:
            turn = asked.turn + 1
            self._later(now + self._dice.expovariate(0.2), lambda then: self._ask(asked.conversation, turn, then))


def simulated(requests: int, seed: int) -> Table:
    """Each policy over the same engines and the same arrivals."""
    table = Table("policy", "max/mean load, median", "p99", "first token: median", "p99", "cached")
    for balance in Balance:
        outcome = World(POLICIES[balance](random.Random(seed).random), seed).run(requests)
        loads, first_s = statistics.quantiles(outcome.loads, n=100), statistics.quantiles(outcome.first_s, n=100)
        table.add_row(
            balance,
            f"{loads[49]:.2f}",
            f"{loads[98]:.2f}",
            f"{first_s[49]:.2f} s",
            f"{first_s[98]:.2f} s",
            f"{outcome.hits / outcome.turns:.0%}",
        )
    return table


async def cost(balance: Balance, lanes: int, requests: int, rounds: int) -> list[float]:
    """CPU milliseconds of the service for a thousand requests, a value for each round. The servers are one engine
    under as many paths."""
    places = cpus()
    with tempfile.TemporaryDirectory() as name:
        folder, engine, port = Path(name), free_port(), free_port()
        endpoints = ", ".join(f'{{ url = "http://127.0.0.1:{engine}/s{n}" }}' for n in range(lanes))
        (folder / "orchestrator.toml").write_text(
            f'[server]\nport = {port}\n[models."bench/model"]\nengine = "static"\nbalance = "{balance}"\n'
            f"endpoints = [{endpoints}]\n"
        )
        argv = [sys.executable, "-m", "orchestrator", "serve"]
        with (
            running(engine_argv(engine, 20, 0.0, places.engine), folder, engine),
            running(argv, folder, port, places.subject) as tree,
        ):
            await load.run(port, connections=32, requests=2000, stream=False, rewrites=True)
            found = []
            for _ in range(rounds):
                before = cpu_s(tree)
                await load.run(port, connections=32, requests=requests, stream=False, rewrites=True)
                found.append((cpu_s(tree) - before) * 1e6 / requests)
            return found


def costs(requests: int, rounds: int) -> Table:
    """The service's CPU time with each number of servers."""
    table = Table("CPU ms per 1,000 requests", *(f"{lanes} servers" for lanes in LANES))
    for balance in Balance:
        medians = [statistics.median(asyncio.run(cost(balance, lanes, requests, rounds))) for lanes in LANES]
        table.add_row(balance, *(f"{median:.0f}" for median in medians))
    return table


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="simulated, for each policy")
    parser.add_argument("--real", type=int, default=10_000, help="sent in each round; 0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    console = Console(width=120)
    console.print(simulated(options.requests, options.seed))
    if options.real:
        console.print(costs(options.real, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
