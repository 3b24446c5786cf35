"""A steady load over connections that stay, which looks at every answer as a whole."""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.stub import WAIT_S, ask, until

CHAT = "/v1/chat/completions"
THREADS = 4
"""For each address."""
PAUSE_S = 0.01
ANSWERED_S = 10 * WAIT_S
"""Most for all that one step waits for."""


class Answer(NamedTuple):
    """How one request ended. `fault`: what was wrong; empty: it is whole."""

    part: str
    seconds: float
    fault: str


class Steady:
    """Clients at some addresses, each with whole answers and streams of all `models` in turn."""

    def __init__(self, urls: Collection[str], models: Collection[str], part: str) -> None:
        self.part = part
        """What requests that begin from now on belong to."""
        self.answers: list[Answer] = []
        self._bodies = [json.dumps(ask(model, stream=stream)) for stream in (False, True) for model in models]
        self._done = threading.Event()
        self._threads = ThreadPoolExecutor(len(urls) * THREADS)
        self._clients = [self._threads.submit(self._run, url) for url in urls for _ in range(THREADS)]

    def more(self, number: int) -> None:
        """Wait until so many more were answered."""
        goal = len(self.answers) + number
        until(lambda: len(self.answers) >= goal or any(one.done() for one in self._clients), ANSWERED_S)

    def begin(self, part: str, number: int) -> None:
        """Another part, once the one before has had so many answers."""
        self.more(number - self.answered(self.part))
        self.part = part

    def answered(self, part: str) -> int:
        """How many of a part were."""
        return sum(answer.part == part for answer in tuple(self.answers))

    def stop(self) -> None:
        """Let the last ones be answered. Raises what went wrong with a client itself."""
        self._done.set()
        self._threads.shutdown()
        for client in self._clients:
            client.result()

    def _run(self, url: str) -> None:
        with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=WAIT_S)) as connection:
            for number in count():
                if self._done.wait(PAUSE_S):
                    return
                part, began = self.part, time.monotonic()
                fault = _fault(connection, self._bodies[number % len(self._bodies)])
                self.answers.append(Answer(part, time.monotonic() - began, fault))


@contextlib.contextmanager
def steady(urls: Collection[str], models: Collection[str], part: str) -> Iterator[Steady]:
    """Such a load, which ends with the block."""
    load = Steady(urls, models, part)
    try:
        yield load
    finally:
        load.stop()


def figures(answers: Collection[Answer]) -> dict[str, float]:
    """What one part is reported by. Times in ms."""
    cuts = statistics.quantiles([answer.seconds * 1000 for answer in answers], n=100, method="inclusive")
    failed = sum(bool(answer.fault) for answer in answers)
    return {"requests": len(answers), "failed": failed, "p50_ms": round(cuts[49], 1), "p99_ms": round(cuts[98], 1)}


def _fault(connection: http.client.HTTPConnection, body: str) -> str:
    """Ask once, and say what was wrong with the answer."""
    try:
        connection.request("POST", CHAT, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()  # raises when it ends before its end
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return repr(error)
    if answer.status != 200:
        return f"{answer.status} {content[:200]!r}"
    streams = (answer.getheader("content-type") or "").startswith("text/event-stream")
    whole = content.endswith(b"data: [DONE]\n\n") if streams else b'"finish_reason"' in content
    return "" if whole else f"not whole: {content[-200:]!r}"
