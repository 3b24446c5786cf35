"""Who goes next where only so many may at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """So many places, in the order of asking, but what is urgent before the rest. For one event loop.

    `spare` places are kept for the urgent, who then never wait for the rest unless they fill those themselves.
    """

    def __init__(self, places: int, *, spare: int = 0) -> None:
        self._places = places
        self._spare = spare
        self._taken = 0
        self._waiting: dict[bool, deque[asyncio.Future[None]]] = {True: deque(), False: deque()}

    @property
    def idle(self) -> bool:
        """Whether no place is taken."""
        return not self._taken

    @asynccontextmanager
    async def one(self, *, urgent: bool) -> AsyncIterator[None]:
        """A place, for as long as the block runs. Waits for it without limit; cancelling is fine."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[urgent].append(turn)
        self._grant()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():
                self._taken -= 1
            self._grant()

    def _grant(self) -> None:
        for urgent, places in ((True, self._places), (False, self._places - self._spare)):
            waiting = self._waiting[urgent]
            while waiting and self._taken < places:
                turn = waiting.popleft()
                if not turn.cancelled():
                    self._taken += 1
                    turn.set_result(None)
            if waiting:
                return
