"""Which sums of others were counted. They are kept together with what was counted, so that nothing is counted twice
when a crash comes before the other has heard of it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SERIALS_MAX = 10_000
"""Sources that are remembered."""


class Serials:
    """The last serial of each source; its next sums have a higher one."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._unkept: set[str] = set()

    def begin(self, kept: Mapping[str, int]) -> None:
        """With those that a run before has kept, the oldest first."""
        for source, serial in kept.items():
            self._set(source, serial)

    def known(self, source: str, serial: int) -> bool:
        """Whether these sums were counted."""
        return serial <= self._last.get(source, 0)

    def add(self, source: str, serial: int) -> None:
        """These are."""
        self._set(source, serial)
        self._unkept.add(source)

    def take(self) -> dict[str, int]:
        """Those that are not kept yet."""
        taken = {source: self._last[source] for source in self._unkept}
        self._unkept.clear()
        return taken

    def put_back(self, sources: Iterable[str]) -> None:
        """What could not be kept."""
        self._unkept.update(source for source in sources if source in self._last)

    def _set(self, source: str, serial: int) -> None:
        self._last.pop(source, None)
        self._last[source] = serial  # the oldest first
        while len(self._last) > SERIALS_MAX:
            oldest = next(iter(self._last))
            del self._last[oldest]
            self._unkept.discard(oldest)
