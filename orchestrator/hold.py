"""The line of requests held for one model: first come first served, let go as the engine takes them."""

from __future__ import annotations

import asyncio
from collections import deque

WINDOW_START = 4
"""Let go at first. Each answer that begins lets two more go, so the flow doubles with each round as in TCP's
slow start (RFC 5681, section 3.1) until the line is empty."""


class Turn:
    """A request's leave to go. Settled exactly once: `begun` or `lost`; later calls do nothing."""

    def __init__(self, line: Line) -> None:
        self._line: Line | None = line

    def begun(self) -> None:
        """The first byte of its answer is there: the engine keeps up."""
        self._settle(1)

    def lost(self) -> None:
        """It ended without an answer."""
        self._settle(0)

    def _settle(self, growth: int) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.settled(growth)


class Line:
    """Who waits for one model, and how many have been let go whose answers have not begun."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[Turn | None]] = deque()
        self._window = WINDOW_START
        self._out = 0
        self._open = False

    @property
    def held(self) -> int:
        """How many stand in it."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a newcomer has to stand behind others."""
        return bool(self._waiting or self._out)

    async def stand(self, timeout_s: float) -> Turn | None:
        """Wait for a turn; None after `timeout_s` or when dismissed. Cancelling leaves the line."""
        future: asyncio.Future[Turn | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._let_go()
        try:
            await asyncio.wait((future,), timeout=timeout_s)
        except asyncio.CancelledError:
            if future.done() and (turn := future.result()) is not None:
                turn.lost()
            raise
        finally:
            if not future.done():
                self._waiting.remove(future)
        return future.result() if future.done() else None

    def open(self) -> None:
        """The model is ready: let go as many as the window has room for, now and as answers begin."""
        self._open = True
        self._let_go()

    def shut(self) -> None:
        """The model is not ready: whoever stands, stands on; the next opening starts slowly again."""
        self._open = False
        self._window = WINDOW_START

    def dismiss(self) -> None:
        """There is nothing to wait for: everybody leaves without a turn."""
        self.shut()
        while self._waiting:
            self._waiting.popleft().set_result(None)

    def settled(self, growth: int) -> None:
        """One turn is over; called by `Turn`."""
        self._out -= 1
        self._window += growth
        self._let_go()

    def _let_go(self) -> None:
        while self._open and self._waiting and self._out < self._window:
            self._out += 1
            self._waiting.popleft().set_result(Turn(self))
