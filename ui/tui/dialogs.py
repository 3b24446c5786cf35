"""The dialogs of ``orchestrator top``."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

KEYS = """\
1 … 6, Tab, ← →   models, replicas, GPUs, requests, servers, logs
↑ ↓ PgUp PgDn     choose a row, or scroll the log
w                 wake the chosen model
d                 drain and stop it; asks first
p                 pin it, or let it go (where the service can)
l                 its log
/                 show only what holds a text; Esc: everything
o, r              sort by the next column; the other way round
q, Ctrl-C         leave

● ready  ◑ loading  ◔ starting  ↓ pulling  … queued
☾ sleeping  ◌ draining  ○ cold  ✗ failed
LEFT: left by their client. 503: told to come back while cold.
OTHERS: GiB that no engine of ours holds.
BREAKER open: it gets nothing for a while; half-open: a little."""


class Ask(ModalScreen[bool]):
    """One question; y is yes, whatever else a user tries is no."""

    BINDINGS: ClassVar[list[BindingType]] = [("y", "answer(True)", "Yes"), ("n,escape,q", "answer(False)", "No")]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question and its keys."""
        yield Static(f"{self._question}\n\ny yes · n no", markup=False)

    def action_answer(self, sure: bool) -> None:
        """Close with the answer."""
        self.dismiss(sure)


class Help(ModalScreen[None]):
    """The keys and the marks."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,question_mark,enter", "close", "Close")]

    def compose(self) -> ComposeResult:
        """All on one page of 80 × 24."""
        yield Static(KEYS, markup=False)

    def action_close(self) -> None:
        """Back to the view."""
        self.dismiss()
