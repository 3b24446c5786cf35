"""What a reader makes of a document: a flat list of blocks. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

HEADING_CHARS_MAX = 300
"""A longer heading is a paragraph in disguise."""
LEVEL_MAX = 9

_LINE_ENDS = re.compile(r"\r\n|[\r\f\v\u2028\u2029]")
_DROPPED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\ud800-\udfff]")

Locate = Callable[[int, int], tuple[int, int]]
"""A span of characters of the source's text as a span of its bytes."""


class Kind(StrEnum):
    """What a block is."""

    HEADING = "heading"
    PARAGRAPH = "paragraph"
    LIST = "list"
    """One item of a list."""
    TABLE = "table"
    """Rows, one a line."""
    CODE = "code"


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a document that stands for itself. `text` is clean (see `clean`)."""

    kind: Kind
    text: str
    level: int = 0
    """Of a heading, from 1."""
    page: int | None = None
    start: int | None = None
    """Where it begins and ends in the source's text, in characters, where that is known."""
    end: int | None = None
    verbatim: bool = False
    """It is just that span, so that its parts have places too."""
    header_lines: int = 0
    """Of a table: the lines that name the columns."""
    title: str = ""
    """Of a heading: its text without marks."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was read. `blocks` may be made while they are taken."""

    blocks: Iterable[Block]
    title: str = ""
    locate: Locate | None = None


def clean(text: str) -> str:
    """`text` in NFC, its lines ended by a newline, without control characters other than newline and tab."""
    text = _LINE_ENDS.sub("\n", text)
    if not text.isascii() or not text.isprintable():
        text = _DROPPED.sub("", text)
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def one_line(text: str) -> str:
    """`text` clean, and each run of white space a space."""
    return " ".join(clean(text).split())


def heading(text: str, level: int, *, page: int | None = None) -> Block:
    """A heading; one that is too long for that becomes a paragraph."""
    text = one_line(text)
    if len(text) > HEADING_CHARS_MAX:
        return Block(Kind.PARAGRAPH, text, page=page)
    return Block(Kind.HEADING, text, level=min(max(level, 1), LEVEL_MAX), page=page, title=text)


def table(rows: Iterable[Iterable[str]], *, page: int | None = None, header_lines: int = 1) -> Block:
    """A table of cells: one line a row, as in Markdown."""
    lines = [" | ".join(map(one_line, row)).strip() for row in rows]
    lines = [line for line in lines if line.strip(" |")]
    return Block(Kind.TABLE, "\n".join(lines), page=page, header_lines=min(header_lines, len(lines)))
