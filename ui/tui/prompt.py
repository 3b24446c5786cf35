"""Where the user types in ``orchestrator chat``."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.events import Key
from textual.message import Message
from textual.widgets import TextArea

NEW_LINE = ("ctrl+j", "shift+enter", "alt+enter")
"""Every terminal can send the first."""


class Prompt(TextArea):
    """Several lines. Enter sends them, Ctrl-J begins another; the up arrow on the first line goes back to what was
    asked before, the down arrow on the last one forth again."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", key_display="Enter"),
        Binding(",".join(NEW_LINE), "newline", "New line", key_display="^j"),
        Binding("up", "earlier", show=False),
        Binding("down", "later", show=False),
    ]

    class Sent(Message):
        """The user wants an answer to `text`."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, past: list[str], *, id: str) -> None:
        super().__init__(id=id, compact=True, highlight_cursor_line=False, tab_behavior="focus")
        self._past = past
        self._at = len(past)
        self._unsent = ""

    async def _on_key(self, event: Key) -> None:
        """Here, where letters come too: as bindings with priority they would overtake letters typed before them."""
        action = {"enter": self.action_send, **dict.fromkeys(NEW_LINE, self.action_newline)}.get(event.key)
        if action is None:
            await super()._on_key(event)
            return
        event.stop()
        event.prevent_default()
        action()

    def action_send(self) -> None:
        """Hand the text over; the one who takes it clears it."""
        if self.text.strip():
            self.post_message(self.Sent(self.text))

    def take(self) -> None:
        """The text was sent: remember and clear it."""
        if not self._past or self._past[-1] != self.text:
            self._past.append(self.text)
        self._at, self._unsent = len(self._past), ""
        self.text = ""

    def action_newline(self) -> None:
        """A line break where the cursor is."""
        self.insert("\n")

    def action_earlier(self) -> None:
        """Up a line, or to the prompt before."""
        if self.cursor_at_first_line and self._at > 0:
            self._recall(self._at - 1)
        else:
            self.action_cursor_up()

    def action_later(self) -> None:
        """Down a line, or to the prompt after."""
        if self.cursor_at_last_line and self._at < len(self._past):
            self._recall(self._at + 1)
        else:
            self.action_cursor_down()

    def _recall(self, index: int) -> None:
        if self._at == len(self._past):
            self._unsent = self.text
        self._at = index
        self.text = self._past[index] if index < len(self._past) else self._unsent
        self.move_cursor(self.document.end)
