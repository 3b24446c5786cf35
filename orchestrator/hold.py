"""The line for one model: requests held while it starts, or at its `max_concurrent`. They are let go fairly by key,
and as the engine takes them."""

from __future__ import annotations

import asyncio
from time import monotonic

import msgspec

from orchestrator.access.key import Key
from orchestrator.fair import FairQueue

WINDOW_START = 4
"""Let go at first. Each answer that begins lets two more go, so the flow doubles with each round as in TCP's
slow start (RFC 5681, section 3.1) until the line is empty."""
SHARED_S = 30.0
"""A model is shared with a key that has used it within this."""
SEEN_EVERY_S = 1.0
KEPT_SHARE = 4
"""At most one in so many places is kept for keys that share the model and have none just now; of two or more, one at
least. Else every place would often be taken, and whoever comes rarely would wait for the end of another's answer."""


class Turn(msgspec.Struct, gc=False):
    """A request's leave to go. `over` ends it; later calls do nothing."""

    line: Line | None
    key: str
    pending: bool

    def begun(self) -> None:
        """The first byte of its answer is there: the engine keeps up."""
        if self.pending and self.line is not None:
            self.pending = False
            self.line.answered(1)

    def over(self) -> None:
        """It has ended, with an answer or without."""
        line, self.line = self.line, None
        if line is not None:
            if self.pending:
                line.answered(0)
            line.left(self.key)


class Line:
    """Who waits for one model, who has been let go, and how many of these have no answer yet."""

    def __init__(self) -> None:
        self._waiting: FairQueue[asyncio.Future[Turn | None]] = FairQueue()
        self._window = WINDOW_START
        self._unanswered = 0
        self._open = False
        self._placed: dict[str, int] = {}
        self._taken = 0
        self._seen_at: dict[str, float] = {}
        self.places = 0
        """How many may be at the engine at a time; 0: any number."""

    @property
    def held(self) -> int:
        """How many stand in it."""
        return len(self._waiting)

    def held_of(self, key: str) -> int:
        """How many of a key's stand in it."""
        return self._waiting.count(key)

    @property
    def busy(self) -> bool:
        """Whether a newcomer has to stand behind others."""
        return bool(self._waiting or self._unanswered)

    def enter(self, key: Key) -> Turn | None:
        """A turn for a newcomer to an open line, where nobody waits and there is a place; None: stand."""
        name, now = key.name, monotonic()
        if now >= self._seen_at.get(name, 0.0) + SEEN_EVERY_S:
            self._see(name, now)
        if self._unanswered or self._waiting or (self.places and not self._may(name)):
            return None
        return self._place(name, pending=False)

    async def stand(self, key: Key, timeout_s: float) -> Turn | None:
        """Wait for a turn; None after `timeout_s` or when dismissed. Cancelling leaves the line."""
        future: asyncio.Future[Turn | None] = asyncio.get_running_loop().create_future()
        self._see(key.name, monotonic())
        self._waiting.push(key.name, future, 2.0**key.priority)
        self._let_go()
        try:
            await asyncio.wait((future,), timeout=timeout_s)
        except asyncio.CancelledError:
            if future.done() and (turn := future.result()) is not None:
                turn.over()
            raise
        finally:
            if not future.done():
                self._waiting.discard(key.name, future)
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
        while (key := self._waiting.next(lambda key: True)) is not None:
            self._waiting.take(key).set_result(None)

    def answered(self, growth: int) -> None:
        """One that was let go has begun its answer, or won't have one; called by `Turn`."""
        self._unanswered -= 1
        self._window += growth
        self._let_go()

    def left(self, key: str) -> None:
        """A place is free; called by `Turn`."""
        self._taken -= 1
        left = self._placed[key] - 1
        if left:
            self._placed[key] = left
        else:
            del self._placed[key]
        if self._waiting:
            self._let_go()

    def _let_go(self) -> None:
        while self._waiting and self._open and self._unanswered < self._window:
            key = self._waiting.next(self._may)
            if key is None:
                return
            future = self._waiting.take(key)
            self._unanswered += 1
            future.set_result(self._place(key, pending=True))

    def _place(self, key: str, *, pending: bool) -> Turn:
        self._taken += 1
        self._placed[key] = self._placed.get(key, 0) + 1
        return Turn(self, key, pending)

    def _may(self, key: str) -> bool:
        """Whether there is a place for a key: any for one that has none, for others those that are not kept."""
        if not self.places:
            return True
        free = self.places - self._taken
        if key not in self._placed or len(self._seen_at) <= 1:
            return free > 0
        return free > self._kept()

    def _kept(self) -> int:
        """How many places wait for keys that share the model and have none."""
        if self.places < 2:
            return 0
        return min(len(self._seen_at.keys() - self._placed.keys()), max(self.places // KEPT_SHARE, 1))

    def _see(self, key: str, now: float) -> None:
        """Somebody of this key is here. A newcomer's is noted about once in `SEEN_EVERY_S` only."""
        self._seen_at.pop(key, None)
        self._seen_at[key] = now  # the oldest first
        while self._seen_at[oldest := next(iter(self._seen_at))] < now - SHARED_S:
            del self._seen_at[oldest]
