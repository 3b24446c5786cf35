"""The machine's clocks, as `ports.Clock`."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)
    unix = staticmethod(time.time)
