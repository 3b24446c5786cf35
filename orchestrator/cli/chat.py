"""``orchestrator chat``: a conversation on a terminal; elsewhere one question from stdin, its answer to stdout."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from orchestrator.cli.chat_history import PromptHistory
from orchestrator.cli.live import Live, decoded
from orchestrator.cli.text import printable
from orchestrator.cli.top import has_screen
from orchestrator.errors import OrchestratorError
from ui.tui.conversation import Finished, Heard, Message, Piece, Talker, Waiting

PATH = "/v1/chat/completions"
WAIT_S = 300
"""How long the service is asked to hold a request while its model starts; it may hold it for less."""
ASKS_MAX = 12
"""How often a question is put again when a start takes longer than that."""
PROMPT_BYTES_MAX = 4 * 2**20
NEAREST_MAX = 5


class HttpTalker:
    """A `ui.tui.conversation.Talker` by the HTTP API."""

    def __init__(self, live: Live, model: str) -> None:
        self.url = live.url
        self.model = model
        self._live = live

    async def answer(self, messages: Sequence[Message]) -> AsyncIterator[Heard]:
        """Asks again while the model is still on its way, up to `ASKS_MAX` times."""
        body = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.text} for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for _ in range(ASKS_MAX):
            async with contextlib.aclosing(self._ask(body)) as hearing:
                try:
                    async for heard in hearing:
                        yield heard
                    return
                except StillCold as error:
                    last = error
        raise last

    async def _ask(self, body: dict[str, Any]) -> AsyncGenerator[Heard, None]:
        headers = {"prefer": f"wait={WAIT_S}, progress"}
        usage: dict[str, Any] = {}
        reason = ""
        async with contextlib.aclosing(self._live.events("POST", PATH, body=body, headers=headers)) as events:
            async for name, text in events:
                if name == ":":
                    yield Waiting(text)
                    continue
                if text == "[DONE]":
                    break
                event = decoded(text)
                if not isinstance(event, dict):
                    continue
                if event.get("error"):
                    raise _fault(event["error"])
                usage = event.get("usage") or usage
                for choice in event.get("choices") or ():
                    reason = choice.get("finish_reason") or reason
                    for piece in _pieces(choice.get("delta") or {}):
                        yield piece
        if not reason:
            raise OrchestratorError("the answer broke off")
        yield Finished(usage.get("prompt_tokens"), usage.get("completion_tokens"), reason)


class StillCold(OrchestratorError):
    """The model was still on its way when the service let the question go."""


def chat(url: str, key: str | None, model: str, *, system: str | None, remember: bool) -> None:
    """Talk until the user leaves; without a terminal, answer what stdin asks."""
    asyncio.run(_check(url, key, model))
    if has_screen():
        from ui.tui.chat import ChatApp

        ChatApp(HttpTalker(Live(url, key), model), PromptHistory.of_user(remember=remember), system).run_in_terminal()
        return
    prompt = _prompt()
    messages = [Message("system", system)] if system else []
    asyncio.run(_print_answer(url, key, model, [*messages, Message("user", prompt)]))


async def _check(url: str, key: str | None, model: str) -> None:
    """Raises an error that names the nearest models when there is none of that name."""
    async with Live(url, key) as live:
        known = [found["id"] for found in (await live.get("/v1/models"))["data"]]
    if model in known:
        return
    raise OrchestratorError(f"no model {printable(model)!r}; {nearest(model, known)}")


def nearest(model: str, known: Sequence[str]) -> str:
    """Which models there are, those first that are spelt much as `model` is."""
    by_case = {name.casefold(): name for name in known}
    wanted = model.casefold()
    alike = [by_case[name] for name in difflib.get_close_matches(wanted, by_case, NEAREST_MAX, 0.5)]
    alike += [name for name in known if wanted in name.casefold() and name not in alike]
    if alike:
        return f"did you mean {' or '.join(alike[:NEAREST_MAX])}?"
    if not known:
        return "the service has none that this key may use"
    more = f" and {len(known) - NEAREST_MAX} more" if len(known) > NEAREST_MAX else ""
    return f"there are {', '.join(known[:NEAREST_MAX])}{more}"


def _prompt() -> str:
    data = sys.stdin.buffer.read(PROMPT_BYTES_MAX + 1)
    if len(data) > PROMPT_BYTES_MAX:
        raise OrchestratorError(f"the prompt on stdin is longer than {PROMPT_BYTES_MAX // 2**20} MiB")
    prompt = data.decode("utf-8", "replace")
    if not prompt.strip():
        raise OrchestratorError("the prompt on stdin is empty")
    return prompt


async def _print_answer(url: str, key: str | None, model: str, messages: Sequence[Message]) -> None:
    """The answer to stdout as it comes and as it is; what a terminal on stderr is told of a cold start."""
    async with Live(url, key) as live:
        talker: Talker = HttpTalker(live, model)
        async for heard in talker.answer(messages):
            match heard:
                case Piece(text, thought=False):
                    sys.stdout.write(text)
                    sys.stdout.flush()
                case Waiting(text) if sys.stderr.isatty():
                    print(f"{model}: {printable(text)}", file=sys.stderr)
                case Finished(reason="length"):
                    print("\norchestrator: the answer was cut at a limit of tokens", file=sys.stderr)
    print()


def _pieces(delta: dict[str, Any]) -> list[Piece]:
    """vLLM and SGLang tell a model's thoughts in fields of their own."""
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    found = [Piece(thought, thought=True)] if isinstance(thought, str) else []
    content = delta.get("content")
    return [*found, Piece(content)] if isinstance(content, str) and content else found


def _fault(error: Any) -> OrchestratorError:
    fields = error if isinstance(error, dict) else {"message": error}
    kind = StillCold if fields.get("code") in ("model_cold", "no_capacity") else OrchestratorError
    return kind(str(fields.get("message") or "the engine failed"))
