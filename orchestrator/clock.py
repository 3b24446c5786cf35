"""The machine's clocks, as `ports.Clock`."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """`time.monotonic`."""
        return time.monotonic()

    def unix(self) -> float:
        """`time.time`."""
        return time.time()
