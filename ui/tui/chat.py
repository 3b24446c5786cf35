"""``orchestrator chat``: a conversation with one model."""

from __future__ import annotations

from time import monotonic
from typing import ClassVar

from markdown_it import MarkdownIt
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Footer, Markdown, Static

from orchestrator.cli.text import plain, printable
from orchestrator.errors import OrchestratorError
from ui.tui.conversation import Finished, Message, Piece, Prompts, Talker, Waiting, account, kept
from ui.tui.prompt import Prompt
from ui.tui.terminal import TerminalApp

CLOCK_S = 1.0
ANSWER_CHARS_MAX = 2**20


def _parser() -> MarkdownIt:
    """Raw HTML is text to read: as HTML Textual would leave it out."""
    return MarkdownIt("gfm-like", {"html": False})


class Answer(Markdown):
    """One answer, drawn as fast as the terminal takes it. A link is shown, never opened: a model wrote it."""

    def __init__(self) -> None:
        super().__init__(classes="it", parser_factory=_parser, open_links=False)
        self._pieces: list[str] = []
        self._drawn = Markdown.get_stream(self)

    @property
    def text(self) -> str:
        """All that came."""
        return "".join(self._pieces)

    async def add(self, text: str) -> None:
        """The next part."""
        self._pieces.append(text)
        await self._drawn.write(plain(text))

    async def end(self) -> None:
        """No part comes any more; returns when all of them are drawn."""
        await self._drawn.stop()


class ChatApp(TerminalApp):
    """The screen."""

    TITLE = "orchestrator chat"
    CSS_PATH = "chat.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop"),
        Binding("ctrl+l", "clear", "Clear", priority=True),
        Binding("ctrl+q", "quit", "Quit", priority=True),
        Binding("pageup", "scroll(-1)", show=False, priority=True),
        Binding("pagedown", "scroll(1)", show=False, priority=True),
    ]

    def __init__(self, talker: Talker, prompts: Prompts, system: str | None = None) -> None:
        super().__init__()
        self._talker = talker
        self._prompts = prompts
        self._system = [Message("system", system)] if system else []
        self._messages: list[Message] = list(self._system)
        self._state = ""
        self._asked_at: float | None = None
        self._talk = VerticalScroll(id="talk", can_focus=False)
        self._state_line = Static(id="state", markup=False)
        self._prompt = Prompt(prompts.past(), id="prompt")

    def compose(self) -> ComposeResult:
        """The conversation above, what is typed below, and a line between them that says what happens."""
        about = printable(f"{self._talker.model} · {self._talker.url.removeprefix('http://')}")
        yield Static(about, id="head", markup=False)
        yield from (self._talk, self._state_line, self._prompt)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Ready to type."""
        self._prompt.focus()
        self._talk.anchor()
        self.set_interval(CLOCK_S, self._draw_state)

    # --- asking ---

    @on(Prompt.Sent)
    def _sent(self, event: Prompt.Sent) -> None:
        if self._asked_at is not None:
            self._say("Esc stops this answer first")
            return
        self._prompt.take()
        self._prompts.keep(event.text)
        self._answer(event.text)

    @work(exclusive=True, group="answer")
    async def _answer(self, prompt: str) -> None:
        """Ask, and show the answer as it comes."""
        self._messages = asked = kept([*self._messages, Message("user", prompt)])
        talk, answer = self._talk, Answer()
        talk.anchor()
        await talk.mount(Static(plain(f"› {prompt}"), classes="you", markup=False), answer)
        self._asked_at = monotonic()
        self._say("asking")
        told = "stopped"
        try:
            told = await self._hear(answer)
        except OrchestratorError as error:
            told = f"✗ {error}"
        finally:
            self._asked_at = None
            if self.is_running and self._messages is asked:  # else it was cleared meanwhile
                await self._end(prompt, answer, told)

    async def _hear(self, answer: Answer) -> str:
        """Show what comes; what to say of it at the end."""
        began_at, first_s, chars = monotonic(), None, 0
        async for heard in self._talker.answer(self._messages):
            match heard:
                case Waiting(text):
                    self._state = f"cold start: {text}"
                case Piece(_, thought=True):
                    self._state = "thinking"
                case Piece(text):
                    first_s = monotonic() - began_at if first_s is None else first_s
                    self._state = "answering"
                    chars += len(text)
                    await answer.add(text)
                    if chars > ANSWER_CHARS_MAX:
                        return f"stopped: the answer is longer than {ANSWER_CHARS_MAX} characters"
                case Finished():
                    return account(heard, first_s=first_s, spent_s=monotonic() - began_at)
            self._draw_state()
        return ""

    async def _end(self, prompt: str, answer: Answer, told: str) -> None:
        """Remember the turn; what was not answered at all is forgotten, and stands there to be sent again."""
        await answer.end()
        if answer.text:
            self._messages.append(Message("assistant", answer.text))
        else:
            self._messages.pop()
            self._prompt.text = self._prompt.text or prompt
            self._prompt.move_cursor(self._prompt.document.end)
        if told:
            await self._talk.mount(Static(printable(told), classes="note", markup=False))
        self._say("")

    # --- showing ---

    def _say(self, text: str) -> None:
        self._state = text
        self._draw_state()

    def _draw_state(self) -> None:
        spent = "" if self._asked_at is None else f" · {monotonic() - self._asked_at:.0f} s · Esc stops"
        self._state_line.update(printable(self._state) + spent)

    @on(Markdown.LinkClicked)
    def _link(self, event: Markdown.LinkClicked) -> None:
        self._say(event.href)

    # --- keys ---

    def action_stop(self) -> None:
        """Stop the answer; what came of it stays."""
        self.workers.cancel_group(self, "answer")

    def action_clear(self) -> None:
        """Begin anew: the model knows nothing of what was said."""
        self.workers.cancel_group(self, "answer")
        self._messages = list(self._system)
        self._talk.remove_children()
        self._say("a new conversation")

    def action_scroll(self, pages: int) -> None:
        """Look back and forth in the conversation; at its end it goes on by itself."""
        self._talk.scroll_relative(y=pages * self._talk.size.height, animate=False)
