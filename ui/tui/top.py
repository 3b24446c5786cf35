"""``orchestrator top``: a live view of a running service."""

from __future__ import annotations

import asyncio
from enum import Enum
from functools import reduce
from typing import ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import DataTable, Footer, Input, Static

from orchestrator.cli.text import printable
from orchestrator.errors import OrchestratorError
from ui.tui.dialogs import Ask, Help
from ui.tui.engine_log import EngineLog
from ui.tui.snapshot import Board, Snapshot, View
from ui.tui.tables import VIEWS, Row, Table, arranged, name_chars, summary
from ui.tui.terminal import TerminalApp

LIVE_S = 2.0
"""Between two looks at the numbers that no event tells, while events come."""
POLL_S = 1.0
"""Between two looks while they don't."""
LOST_S = 3.0
"""Before the next try when the service did not answer, and before events are asked for again."""
LOGS = "logs"
TABS = (*VIEWS, LOGS)


class Link(Enum):
    """How the screen follows the service; each with its mark."""

    LIVE = "● live"
    POLLING = "◔ polling"
    LOST = "✗ lost, trying again"


class TopApp(TerminalApp):
    """The screen. `first` was read before it opens, so that a service that can't be read is told on one line."""

    TITLE = "orchestrator top"
    CSS_PATH = "top.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("w", "ask('start')", "Wake"),
        Binding("d", "drain", "Drain"),
        Binding("p", "pin", "Pin"),
        Binding("l", "show('logs')", "Logs"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("o", "sort", "Sort"),
        Binding("r", "reverse", "Reverse", show=False),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
        Binding("tab,right", "step(1)", "Next view", show=False, priority=True),
        Binding("shift+tab,left", "step(-1)", "Previous view", show=False, priority=True),
        Binding("escape", "unfilter", "No filter", show=False),
        *(Binding(str(number), f"show('{tab}')", tab, show=False) for number, tab in enumerate(TABS, 1)),
    ]

    def __init__(self, board: Board, first: Snapshot) -> None:
        super().__init__()
        self._board = board
        self._snapshot = first
        self._link = Link.POLLING
        self._trouble = ""
        self._tab = TABS[0]
        self._wanted = dict.fromkeys(TABS, "")
        self._sorted: dict[str, tuple[int, bool]] = dict.fromkeys(VIEWS, (0, False))
        self._shown: tuple[Row, ...] = ()
        self._empty = ""
        self._model: str | None = None
        self._look = asyncio.Event()
        self._fresh: list[View] = []
        """What events told since the last look began: it may be older than they are."""
        # Kept, not looked up: what is looked up is looked for in the dialog, while one is open.
        self._head, self._tabs = Static(id="head", markup=False), Static(id="tabs")
        self._warning = Static(id="trouble", markup=False)
        self._table = DataTable[Text](id="table", cursor_type="row", zebra_stripes=False)
        self._log_view = EngineLog(board, id="log")
        self._below = Static(id="detail", markup=False)
        hint = "show what holds … (Enter keeps it, Esc removes it)"
        self._box = Input(id="filter", placeholder=hint, compact=True)

    def compose(self) -> ComposeResult:
        """Two lines above, or three, two below, and the view between."""
        yield from (self._head, self._warning, self._tabs, self._table, self._log_view, self._below, self._box)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to follow the service."""
        self._box.display = False
        self._log_view.display = False
        self._focus_view()
        self._draw()
        self._follow()
        self._poll()

    # --- following ---

    @work(exclusive=True, group="poll")
    async def _poll(self) -> None:
        while True:
            self._fresh.clear()
            try:
                found = (await self._board.snapshot()).since(self._snapshot)
                self._snapshot = reduce(Snapshot.with_model, self._fresh, found)
                if self._link is Link.LOST:
                    self._link, self._trouble = Link.POLLING, ""
            except OrchestratorError as error:
                self._link, self._trouble = Link.LOST, str(error)
            self._draw()
            self._look.clear()
            wait_s = {Link.LIVE: LIVE_S, Link.POLLING: POLL_S, Link.LOST: LOST_S}[self._link]
            try:
                async with asyncio.timeout(wait_s):
                    await self._look.wait()
            except TimeoutError:  # nobody asked for a look; it is time for one
                pass

    @work(exclusive=True, group="events")
    async def _follow(self) -> None:
        while True:
            try:
                async for name, data in self._board.events():
                    self._link, self._trouble = Link.LIVE, ""
                    if name == "model":
                        self._fresh.append(data)
                        self._snapshot = self._snapshot.with_model(data)
                        self._draw()
                self._broke_off("the events ended")
            except OrchestratorError as error:
                self._broke_off(str(error))
            await asyncio.sleep(LOST_S)

    def _broke_off(self, why: str) -> None:
        if self._link is not Link.LOST:
            self._link, self._trouble = Link.POLLING, why
        self._look.set()

    # --- drawing ---

    def _draw(self) -> None:
        if not self._head.is_attached:  # the screen closes
            return
        parts = [self._link.value, self._board.url.removeprefix("http://"), summary(self._snapshot)]
        if self._trouble and self._link is Link.POLLING:
            parts.insert(1, self._trouble)
        self._head.update(printable(" · ".join(parts)))
        self._warning.display = bool(self._snapshot.trouble)
        self._warning.update(printable(f"✗ {self._snapshot.trouble}"))
        self._draw_tabs()
        if self._tab == LOGS:
            self._draw_log()
        else:
            self._draw_table()

    def _draw_tabs(self) -> None:
        text = Text(no_wrap=True)
        for number, tab in enumerate(TABS, 1):
            chosen = tab == self._tab
            label = f"[{number} {tab}]" if chosen else f" {number} {tab} "
            text.append(label, style="bold reverse" if chosen else "")
        if self._wanted[self._tab]:
            text.append(f"  only with “{self._wanted[self._tab]}”", style="bold")
        self._tabs.update(text)

    def _draw_table(self) -> None:
        table = VIEWS[self._tab](self._snapshot, name_chars(self._tab, self.size.width))
        column, descending = self._sorted[self._tab]
        rows = arranged(table, wanted=self._wanted[self._tab], column=column, descending=descending)
        drawn = [(row.key, row.cells) for row in self._shown]
        if drawn != [(row.key, row.cells) for row in rows] or not self._table.columns:
            self._fill(table, rows)
        self._shown = rows  # their details may have changed
        self._empty = f"nothing holds “{self._wanted[self._tab]}”" if table.rows else table.empty
        self._detail()

    def _fill(self, table: Table, rows: tuple[Row, ...]) -> None:
        """Show `rows`; the cursor stays on its row, else on its model, where there still is one."""
        column, descending = self._sorted[self._tab]
        widget = self._table
        before, scroll = self._chosen(), widget.scroll_offset
        widget.clear(columns=True)
        for index, heading in enumerate(table.headings):
            mark = (" ▼" if descending else " ▲") if index == column else ""
            width = max(cell_len(text) for text in (heading + mark, *(row.cells[index].text for row in rows)))
            widget.add_column(Text(heading + mark, style="bold"), width=width)
        self._shown = rows
        for row in rows:
            widget.add_row(*(Text(cell.text, style=cell.style, no_wrap=True) for cell in row.cells), key=row.key)
        same = [index for index, row in enumerate(rows) if before is not None and row.key == before.key]
        alike = [index for index, row in enumerate(rows) if row.model == self._model]
        for index in (*same, *alike)[:1]:
            widget.move_cursor(row=index, scroll=not same)
            widget.scroll_to(y=scroll.y, animate=False)

    def _chosen(self) -> Row | None:
        """The row under the cursor."""
        index = self._table.cursor_row
        return self._shown[index] if index < len(self._shown) else None

    def _detail(self) -> None:
        row = self._chosen()
        self._tell(row.detail if row else self._empty)

    def _tell(self, text: str) -> None:
        """On the lines below the view; that the service is lost goes before all else."""
        self._below.update(printable(self._trouble if self._link is Link.LOST else text))

    @on(DataTable.RowHighlighted)
    def _moved(self) -> None:
        if self._tab != LOGS:
            self._detail()

    def on_resize(self, event: Resize) -> None:
        """Names take what room there is."""
        self._draw()

    def _draw_log(self) -> None:
        """Follow the newest engine of the chosen model."""
        view = self._view()
        replica = view["last_replica"] if view else None
        self._log_view.follow(replica)
        told = "choose a model first: 1, and the arrow keys"
        if view:
            told = f"{view['id']} · {replica or 'not started since the service began'} · ↑ ↓ scroll, End follows"
        self._tell(told)

    # --- keys ---

    def _view(self) -> View | None:
        """The model that the keys act on: the chosen row's, or the one whose log is shown."""
        row = self._chosen()
        if self._tab != LOGS and row is not None:
            self._model = row.model
        return next((view for view in self._snapshot.models if view["id"] == self._model), None)

    def _target(self) -> str | None:
        """Its name; says so when there is none."""
        view = self._view()
        if view is None:
            self.notify("choose a model first", severity="warning")
        return view["id"] if view else None

    def action_ask(self, verb: str) -> None:
        """Ask the service for something about the chosen model."""
        if model := self._target():
            self._ask(model, verb)

    @work(group="ask")
    async def _ask(self, model: str, verb: str) -> None:
        try:
            await self._board.ask(model, verb)
            self.notify(printable(f"{model}: {verb}"), markup=False, timeout=3)
        except OrchestratorError as error:
            self.notify(printable(str(error)), severity="error", markup=False, timeout=10)
        self._look.set()

    def action_drain(self) -> None:
        """Stop the chosen model, once the user says so."""
        if model := self._target():
            question = printable(f"Drain and stop {model}? Its requests end first.")

            def answered(sure: bool | None) -> None:
                if sure:
                    self._ask(model, "stop")

            self.push_screen(Ask(question), answered)

    def action_pin(self) -> None:
        """Pin the chosen model, or let it go."""
        if view := self._view():
            self._ask(view["id"], "unpin" if view["pinned"] else "pin")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A service that can't pin has no key for it; while a dialog is open, the keys are its own."""
        if action == "pin":
            return any("pinned" in view for view in self._snapshot.models)
        return action != "step" or not (len(self.screen_stack) > 1 or isinstance(self.focused, Input))

    def action_show(self, tab: str) -> None:
        """Another view."""
        self._view()  # what was chosen stays chosen
        self._box.display = False
        self._tab = tab
        self._shown = ()
        self._table.clear(columns=True)
        self._table.display = tab != LOGS
        self._log_view.display = tab == LOGS
        self._focus_view()
        self._draw()

    def action_step(self, by: int) -> None:
        """The view beside this one."""
        self.action_show(TABS[(TABS.index(self._tab) + by) % len(TABS)])

    def action_sort(self) -> None:
        """Sort by the next column."""
        if self._tab != LOGS:
            count = len(VIEWS[self._tab](self._snapshot, 0).headings)
            self._sorted[self._tab] = ((self._sorted[self._tab][0] + 1) % count, False)
            self._redraw()

    def action_reverse(self) -> None:
        """Sort the other way round."""
        if self._tab != LOGS:
            column, descending = self._sorted[self._tab]
            self._sorted[self._tab] = (column, not descending)
            self._redraw()

    def action_help(self) -> None:
        """The keys."""
        self.push_screen(Help())

    def action_filter(self) -> None:
        """Type what the rows, or the lines of the log, must hold."""
        self._box.value = self._wanted[self._tab]
        self._box.display = True
        self.screen.set_focus(self._box)

    def action_unfilter(self) -> None:
        """Show everything again."""
        self._only_with("")
        self._filtered()

    @on(Input.Changed, "#filter")
    def _typed(self, event: Input.Changed) -> None:
        self._only_with(event.value)

    def _only_with(self, wanted: str) -> None:
        if wanted == self._wanted[self._tab]:
            return
        self._wanted[self._tab] = wanted
        if self._tab == LOGS:
            self._log_view.show_only(wanted)
        self._redraw()

    @on(Input.Submitted, "#filter")
    def _filtered(self) -> None:
        self._box.display = False
        self._focus_view()

    def _focus_view(self) -> None:
        """At once, so that the next key is the view's already."""
        self.screen.set_focus(self._log_view if self._tab == LOGS else self._table)

    def _redraw(self) -> None:
        self._table.clear(columns=True)
        self._draw()
