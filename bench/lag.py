"""How late an event loop comes to what is due."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from pathlib import Path

STEP_S = 0.002
SCHEDULED = Path("/proc/thread-self/schedstat")
"""Linux's: nanoseconds on a processor, nanoseconds waited for one, times."""


class Lag:
    """The worst so far, in seconds; without what the thread waited for a processor, which others had."""

    def __init__(self) -> None:
        self.worst_s = 0.0

    @contextlib.asynccontextmanager
    async def measured(self) -> AsyncIterator[None]:
        """While the block runs. What was made before it is out of the collector's sight, as it is in the service
        (`server.serve`): each of its full walks stops all threads for as long as there are objects."""
        gc.freeze()
        meter = asyncio.create_task(self._measure())
        try:
            yield
        finally:
            meter.cancel()
            gc.unfreeze()

    async def _measure(self) -> None:
        while True:
            began, waited_s = time.perf_counter(), _waited_s()
            await asyncio.sleep(STEP_S)
            late_s = time.perf_counter() - began - STEP_S
            self.worst_s = max(self.worst_s, late_s - (_waited_s() - waited_s))


def _waited_s() -> float:
    with contextlib.suppress(FileNotFoundError):  # not Linux: all lateness counts
        return int(SCHEDULED.read_text().split()[1]) / 1e9
    return 0.0
