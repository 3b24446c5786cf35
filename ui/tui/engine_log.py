"""The log of one engine, as it writes."""

from __future__ import annotations

from collections import deque

from rich.text import Text
from textual import work
from textual.widgets import RichLog

from orchestrator.errors import OrchestratorError
from ui.tui.snapshot import Board

LINES_MAX = 2000


class EngineLog(RichLog):
    """Follows one replica at a time, and shows its last `LINES_MAX` lines or those of them that hold a text. It stays
    where the user scrolled to; at its end it goes on with the log."""

    def __init__(self, board: Board, *, id: str) -> None:
        super().__init__(id=id, max_lines=LINES_MAX, wrap=True, markup=False, highlight=False)
        self._board = board
        self._replica: str | None = None
        self._kept: deque[str] = deque(maxlen=LINES_MAX)
        self._wanted = ""

    def follow(self, replica: str | None) -> None:
        """Show this replica's log from now on."""
        if replica == self._replica:
            return
        self._replica = replica
        self._kept.clear()
        self.clear()
        if replica is not None:
            self._read(replica)

    def show_only(self, wanted: str) -> None:
        """Lines that hold `wanted`, whatever its case."""
        self._wanted = wanted.casefold()
        self.clear()
        for line in self._kept:
            self._add(line)

    @work(exclusive=True)
    async def _read(self, replica: str) -> None:
        try:
            async for line in self._board.log(replica):
                self._kept.append(line)
                self._add(line)
            self.write(Text("— the engine has ended —"))
        except OrchestratorError as error:
            self._replica = None  # asked for again with the next look at the service
            self.write(Text(f"— {error} —"))

    def _add(self, line: str) -> None:
        if self._wanted in line.casefold():
            self.write(Text(line), scroll_end=self.is_vertical_scroll_end)
