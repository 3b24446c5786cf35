"""What may be tried again, and how much of it. Pure: times are handed in."""

from __future__ import annotations

from math import exp

from orchestrator.errors import UpstreamError, UpstreamLost, UpstreamUnreachable

TRIES_MAX = 3
"""One request is sent to at most so many engines."""
RETRY_SHARE = 0.2
RETRIES_PER_S_MIN = 3.0
WINDOW_S = 10.0
"""Of the requests of the last `WINDOW_S` so many may be tried again, and some where there are few."""
RETRIED = frozenset({500, 502, 503, 504})
"""Answers that another engine may better: a dying engine's, a full one's, those of what stands before one."""
RESPONSES = b"/v1/responses"
NOT_REPEATED = frozenset({RESPONSES})
"""Paths where a request may leave something behind: the answer is stored, tools may act. All the others compute an
answer from what is in the request, and nothing else: sent twice they cost twice, and that is all."""


def may_repeat(target: bytes, error: UpstreamError | None = None) -> bool:
    """Whether a request that failed so before any of its answer was passed on may go to another engine; without an
    error: one that was answered by one of `RETRIED`.

    1. Nothing reached the engine: always. 2. It was sent, and what became of it is unknown: where the path only
    computes. A request that kills its engine so kills `TRIES_MAX` at the most.
    """
    if isinstance(error, UpstreamUnreachable) and not isinstance(error, UpstreamLost):
        return True
    return target not in NOT_REPEATED


class RetryBudget:
    """Keeps failures from making load: the retries of one model.

    Finagle's (https://finagle.github.io/blog/2016/02/08/retry-budgets), which Linkerd has too, with a smaller floor;
    its window is an exponential one here.
    """

    def __init__(self) -> None:
        self._credit = 0.0
        self._floor = RETRIES_PER_S_MIN * WINDOW_S
        self._at: float | None = None
        self.taken = 0
        """Retries ever."""

    def earn(self) -> None:
        """One request more, not a retry."""
        self._credit += RETRY_SHARE

    def left(self, now: float) -> int:
        """How many retries there may be now."""
        self._advance(now)
        return int(self._credit + self._floor)

    def take(self, now: float) -> bool:
        """Whether one more retry may be; it is counted."""
        if not self.left(now):
            return False
        self.taken += 1
        if self._floor >= 1:
            self._floor -= 1
        else:
            self._credit -= 1 - self._floor
            self._floor = 0.0
        return True

    def _advance(self, now: float) -> None:
        elapsed_s = 0.0 if self._at is None else max(now - self._at, 0.0)
        self._at = now
        self._credit *= exp(-elapsed_s / WINDOW_S)
        self._floor = min(self._floor + RETRIES_PER_S_MIN * elapsed_s, RETRIES_PER_S_MIN * WINDOW_S)
