"""Where the tokens of a text are: by a tokenizer's file, else by an estimate. What chunks are measured in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Offsets = Callable[[str], Sequence[tuple[int, int]]]
"""The spans of a text's tokens, in order, in characters."""

SPAN_CHARS = 4
"""A token's usual length, where a tokenizer tells nothing."""
TOKEN_CHARS_MAX = 64
GAP_CHARS_MAX = 8

_WIDE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_WIDE}]|[^\W{_WIDE}]{{1,8}}(?![^\W{_WIDE}])|[^\W{_WIDE}]{{1,4}}|[^\w\s]")


def estimated(text: str) -> list[tuple[int, int]]:
    """A word of up to eight letters, a mark, an ideograph: one token each; a longer word one for four letters."""
    return [match.span() for match in _TOKEN.finditer(text)]


def tokenizer_offsets(path: Path) -> Offsets:
    """The tokens of a ``tokenizer.json``, without special ones. Blocks while it loads."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def spans(text: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = tokenizer.encode(text, add_special_tokens=False).offsets
        return found

    return lambda text: list(_honest(text, spans))


def _honest(text: str, spans: Offsets) -> Iterator[tuple[int, int]]:
    """The spans, but none far longer than a token is, since WordPiece makes one "unknown" of any long word, which it
    would not of its parts; and some for long stretches that the tokenizer leaves out."""
    reached = 0
    for start, end in spans(text):
        if start - reached > GAP_CHARS_MAX and text[reached:start].strip():
            yield from _spread(reached, start)
        if end - start > TOKEN_CHARS_MAX:
            for part in range(start, end, TOKEN_CHARS_MAX):
                inner = spans(text[part : min(part + TOKEN_CHARS_MAX, end)])
                yield from ((part + begin, part + stop) for begin, stop in inner)
        else:
            yield start, end
        reached = max(reached, end)
    if len(text) - reached > GAP_CHARS_MAX and text[reached:].strip():
        yield from _spread(reached, len(text))


def _spread(start: int, end: int) -> Iterator[tuple[int, int]]:
    for at in range(start, end, SPAN_CHARS):
        yield at, min(at + SPAN_CHARS, end)
