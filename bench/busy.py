"""An engine that is busy: it works on so many requests at a time, the others wait, and it caches prompts.

Run as a program: ``python -m bench.busy --port P --capacity N --prefill-s S --decode-s S --seed N``. Loopback only.
It answers with `engine.WHOLE`, and says of itself on ``/metrics`` what a vLLM says.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
from collections import deque

import uvloop

from bench.engine import WHOLE_RESPONSE, Engine, outlive_not

HIT = 0.1
"""What reading a cached prompt takes of what reading a new one takes."""
CACHED_MAX = 24
"""Conversations that it keeps for each request that it works on."""
CONVERSATION = re.compile(rb"Conversation (\d+)")
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
QUERIES = "vllm:prefix_cache_queries_total"
HITS = "vllm:prefix_cache_hits_total"
"""Counted in requests, not in tokens."""


class Slots:
    """What its connections share: the requests that run, and the others in the order in which they came."""

    def __init__(self, capacity: int, prefill_s: float, decode_s: float, seed: int) -> None:
        self._capacity, self._prefill_s, self._decode_s = capacity, prefill_s, decode_s
        self._dice = random.Random(seed)
        self._running = 0
        self._waiting = deque[Busy]()
        self._cached = dict[bytes, None]()
        self._queries = self._hits = 0

    def take(self, asked: Busy) -> None:
        """Work on it now or later."""
        if self._running < self._capacity:
            self._begin(asked)
        else:
            self._waiting.append(asked)

    def page(self) -> bytes:
        """Its metrics."""
        told = {RUNNING: self._running, WAITING: len(self._waiting), QUERIES: self._queries, HITS: self._hits}
        return "".join(f'{name}{{engine="0"}} {value}\n' for name, value in told.items()).encode()

    def _begin(self, asked: Busy) -> None:
        self._running += 1
        hit = asked.conversation in self._cached
        self._cached.pop(asked.conversation, None)
        self._cached[asked.conversation] = None
        if len(self._cached) > CACHED_MAX * self._capacity:
            del self._cached[next(iter(self._cached))]
        self._queries, self._hits = self._queries + 1, self._hits + hit
        took_s = (HIT if hit else 1) * self._prefill_s + self._dice.expovariate(1 / self._decode_s)
        asyncio.get_running_loop().call_later(took_s, self._end, asked)

    def _end(self, asked: Busy) -> None:
        asked.answer(WHOLE_RESPONSE)
        self._running -= 1
        if self._waiting:
            self._begin(self._waiting.popleft())


class Busy(Engine):
    """One connection."""

    def __init__(self, slots: Slots) -> None:
        super().__init__(0, 0.0)
        self._slots = slots
        self._url = b""
        self.conversation = b""

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_message_complete(self) -> None:
        if self._url == b"/v1/chat/completions":
            found = CONVERSATION.search(self._body)
            self.conversation = found[1] if found else b""
            self._slots.take(self)
        elif self._url == b"/metrics":
            page = self._slots.page()
            self.answer(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(page), page))
        elif self._parser.get_method() == b"GET":
            super().on_message_complete()
        else:
            self.answer(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    def answer(self, response: bytes) -> None:
        """Send it, where the client is still there."""
        if not self._transport.is_closing():
            self._transport.write(response)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--capacity", type=int, required=True)
    parser.add_argument("--prefill-s", type=float, required=True)
    parser.add_argument("--decode-s", type=float, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--owner", type=int, required=True, help="end soon after this process has ended")
    options = parser.parse_args()
    slots = Slots(options.capacity, options.prefill_s, options.decode_s, options.seed)
    await asyncio.get_running_loop().create_server(lambda: Busy(slots), "127.0.0.1", options.port, backlog=2048)
    await outlive_not(options.owner)


if __name__ == "__main__":
    uvloop.run(main())
