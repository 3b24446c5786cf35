"""What ``orchestrator chat`` says, hears and remembers. Pure but for the Protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]
MESSAGES_MAX = 400
"""Of one conversation; the oldest go, and with them what the model knows of it."""


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: Role
    text: str


@dataclass(frozen=True)
class Waiting:
    """The model is on its way; `text` is what the service says of it, as ``loading 43 %, about 16 s``."""

    text: str


@dataclass(frozen=True)
class Piece:
    """The next part of the answer, or of what a reasoning model thinks before it."""

    text: str
    thought: bool = False


@dataclass(frozen=True)
class Finished:
    """The answer is over. The tokens are the engine's count, where it told one; `reason` is OpenAI's
    ``finish_reason``."""

    prompt_tokens: int | None
    completion_tokens: int | None
    reason: str


Heard = Waiting | Piece | Finished


class Talker(Protocol):
    """A model of a running service."""

    url: str
    model: str

    def answer(self, messages: Sequence[Message]) -> AsyncIterator[Heard]:
        """The answer as it comes, over a cold start if need be; ends with `Finished`. Closing the iterator stops the
        engine. Raises `OrchestratorError` with a sentence for people."""


class Prompts(Protocol):
    """What the user asked before, over all sessions."""

    def past(self) -> list[str]:
        """Oldest first."""

    def keep(self, prompt: str) -> None:
        """Remember one more."""


def kept(messages: Sequence[Message]) -> list[Message]:
    """The most recent messages, and a system message that stands before them."""
    system = [message for message in messages[:1] if message.role == "system"]
    rest = list(messages[len(system) :])
    return system + rest[max(len(rest) - MESSAGES_MAX, 0) :]


def account(finished: Finished, *, first_s: float | None, spent_s: float) -> str:
    """One line on an answer: tokens, their rate, and when the first one came."""
    parts = []
    if finished.completion_tokens is not None:
        parts.append(f"{finished.completion_tokens} tokens")
        if first_s is not None and finished.completion_tokens > 1 and spent_s > first_s:
            parts.append(f"{(finished.completion_tokens - 1) / (spent_s - first_s):.0f} a second")
    if first_s is not None:
        parts.append(f"first after {first_s:.1f} s")
    if finished.reason == "length":
        parts.append("cut at the model's or the request's limit of tokens")
    return " · ".join(parts)
