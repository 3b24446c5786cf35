"""Reads an answer's usage as it passes by, without parsing it. Pure."""

from __future__ import annotations

import re

import msgspec

LOOK_BYTES = 16 * 2**10
"""Pieces are looked at together, once there is so much of them: one look costs as much for a few bytes as for many."""
USAGE_BYTES_MAX = 2048
"""The longest usage object that is read whole, wherever it is cut by pieces."""

_COUNT = re.compile(rb'"(prompt|input|completion|output|cached|cache_read_input)_tokens"\s*:\s*(\d{1,12})')
_KINDS = {
    b"prompt": "prompt",
    b"input": "prompt",
    b"completion": "completion",
    b"output": "completion",
    b"cached": "cached",
    b"cache_read_input": "cached",
}
_USAGE = b'"usage"'
_ERROR = b'data: {"error"'
_EVENT = b"data:"


class Tokens(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an answer took. Made for each; a dataclass takes six times as long."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    """Of the prompt's."""


NO_TOKENS = Tokens()


class Tap:
    """One answer's bytes go through `feed`. In JSON the bytes ``"usage"`` are never part of a text, where quotes are
    escaped; so the last such name, followed by its object, is the engine's own report."""

    __slots__ = ("_carried_events", "_first", "_last", "_pieces", "_size", "_streamed", "broken", "events")

    def __init__(self, *, streamed: bool = True) -> None:
        """`streamed`: events are counted."""
        self._streamed = streamed
        self._pieces: list[bytes] = []
        self._size = 0
        self._first = self._last = b""
        self._carried_events = 0
        self.events = 0
        """Of a stream, where no usage came with them; known after `reported`. Engines send about one a token."""
        self.broken = False
        """Whether it ends with an error, as known after `reported`: a vLLM whose worker dies sends one and, even so,
        ``[DONE]``."""

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > LOOK_BYTES:
            self._look()

    def reported(self) -> Tokens | None:
        """What the engine has reported so far; None: nothing. The first report counts for what the last leaves out, as
        Anthropic's streams do."""
        self._look()
        self.broken = self._streamed and _ERROR in self._pieces[0]
        counts = _counts(self._last)
        if self._first is not self._last:
            counts = {**_counts(self._first), **counts}
        return Tokens(**counts) if counts else None

    def _look(self) -> None:
        """Look at what has come, and keep the end of it, which the next piece may continue."""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        at = data.rfind(_USAGE)
        if at >= 0:
            self._last = data[at : at + USAGE_BYTES_MAX]
            if not self._first:
                first = data.find(_USAGE)
                self._first = self._last if first == at else data[first : first + USAGE_BYTES_MAX]
        elif self._streamed:
            self.events += data.count(_EVENT) - self._carried_events
        end = data[-USAGE_BYTES_MAX:]
        self._carried_events = end.count(_EVENT) if self._streamed else 0
        self._pieces, self._size = [end], len(end)


def _counts(usage: bytes) -> dict[str, int]:
    """The numbers of a usage object; of a kind the first one counts."""
    counts: dict[str, int] = {}
    for kind, count in _COUNT.findall(usage):
        counts.setdefault(_KINDS[kind], int(count))
    return counts
