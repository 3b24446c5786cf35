"""Readers of files that are text: prose, Markdown, code, tables in lines. Pure; each takes time linear in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from storage.extract.blocks import HEADING_CHARS_MAX, LEVEL_MAX, Block, Document, Kind, one_line
from storage.extract.source_text import SourceText

FRONT_MATTER_CHARS_MAX = 20_000
CODE_CHARS_MIN = 200
PARAGRAPH_CHARS_MIN = 80
"""Shorter definitions and paragraphs stay with what follows."""

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
_ITEM = re.compile(r"[ \t]{0,12}(?:[-*+]|\d{1,9}[.)])[ \t]")
_RULED = re.compile(r"[ \t]*\|?[ \t]*:?-[-:| \t]*$")
_SETEXT = re.compile(r" {0,3}(?:=+|-+)[ \t]*$")
_TITLE = re.compile(r"^title:[ \t]*(.{1,300})$", re.M)

Span = tuple[int, int]


def prose(source: SourceText) -> Document:
    """Paragraphs, apart by empty lines."""
    return Document(_paragraphs(source.text), locate=source.locate)


def code(source: SourceText) -> Document:
    """Blocks that begin at a line without indent after an empty one: in most languages, a definition each."""
    return Document(_definitions(source.text), locate=source.locate)


def delimited(source: SourceText) -> Document:
    """One table whose first line names the columns."""
    block = _block(source.text, Kind.TABLE, (0, len(source.text)), header_lines=1)
    return Document([block] if block.text else [], locate=source.locate)


def markdown(source: SourceText) -> Document:
    """Headings, lists, tables and fenced code; the marks stay in the text."""
    text = source.text
    start, title = _front_matter(text)
    return Document(_markdown(text, start), title=title, locate=source.locate)


def _lines(text: str, start: int = 0) -> Iterator[Span]:
    """Each line without its end."""
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield start, end
        start = end + 1


def _block(text: str, kind: Kind, span: Span, *, level: int = 0, title: str = "", header_lines: int = 0) -> Block:
    part = text[span[0] : span[1]].rstrip()
    return Block(
        kind,
        part,
        start=span[0],
        end=span[0] + len(part),
        verbatim=True,
        level=level,
        title=title,
        header_lines=header_lines,
    )


def _blank(text: str, span: Span) -> bool:
    return not text[span[0] : span[1]].strip()


def _paragraphs(text: str) -> Iterator[Block]:
    begun: int | None = None
    end = 0
    for span in _lines(text):
        if not _blank(text, span):
            begun = span[0] if begun is None else begun
            end = span[1]
        elif begun is not None and end - begun >= PARAGRAPH_CHARS_MIN:
            yield _block(text, Kind.PARAGRAPH, (begun, end))
            begun = None
    if begun is not None:
        yield _block(text, Kind.PARAGRAPH, (begun, end))


def _definitions(text: str) -> Iterator[Block]:
    begun: int | None = None
    end = 0
    after_blank = False
    for span in _lines(text):
        if _blank(text, span):
            after_blank = True
            continue
        opens = after_blank and not text[span[0]].isspace() and text[span[0]] not in ")]}"
        if begun is not None and opens and end - begun >= CODE_CHARS_MIN:
            yield _block(text, Kind.CODE, (begun, end))
            begun = None
        begun = span[0] if begun is None else begun
        end = span[1]
        after_blank = False
    if begun is not None:
        yield _block(text, Kind.CODE, (begun, end))


# --- Markdown ---


def _front_matter(text: str) -> tuple[int, str]:
    """Where the text begins after its YAML head, and the title that this tells."""
    if not text.startswith("---\n"):
        return 0, ""
    end = text.find("\n---\n", 3, FRONT_MATTER_CHARS_MAX)
    if end < 0:
        return 0, ""
    found = _TITLE.search(text, 4, end)
    return end + 5, one_line(found[1]).strip("\"'") if found else ""


def _markdown(text: str, start: int) -> Iterator[Block]:
    """Lines gather in `held` until one tells that a block ended."""
    held: list[Span] = []
    fence = ""
    for span in _lines(text, start):
        line = text[span[0] : min(span[1], span[0] + 2 * HEADING_CHARS_MAX)]
        if fence:
            held.append(span)
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                yield _block(text, Kind.CODE, (held[0][0], span[1]))
                held, fence = [], ""
        elif found := _FENCE.match(line):
            yield from _gathered(text, held)
            held, fence = [span], found[1]
        elif found := _ATX.match(line):
            yield from _gathered(text, held)
            yield _heading(text, span, len(found[1]))
            held = []
        elif len(held) == 1 and _SETEXT.match(line) and not _special(text, held[0]):
            yield _heading(text, (held[0][0], span[1]), 1 if "=" in line else 2)
            held = []
        elif _ends(text, held, span, line):
            yield from _gathered(text, held)
            held = [] if not line.strip() else [span]
        elif line.strip():
            held.append(span)
    if fence:
        yield _block(text, Kind.CODE, (held[0][0], held[-1][1]))
    else:
        yield from _gathered(text, held)


def _ends(text: str, held: list[Span], span: Span, line: str) -> bool:
    """Whether a line ends the block before it: an empty one, an item of a list, the first row of a table."""
    if not line.strip():
        return True
    if _ITEM.match(line):
        return True
    if not held:
        return False
    rows = text.startswith("|", held[-1][0])
    return line.startswith("|") != rows


def _special(text: str, span: Span) -> bool:
    return text.startswith("|", span[0]) or bool(_ITEM.match(text, span[0], span[1]))


def _gathered(text: str, held: list[Span]) -> Iterator[Block]:
    """The block that some lines make."""
    if not held:
        return
    span = (held[0][0], held[-1][1])
    if len(held) > 1 and "|" in text[slice(*held[0])] and _RULED.match(text, *held[1]):
        yield _block(text, Kind.TABLE, span, header_lines=2)
    elif _ITEM.match(text, *held[0]):
        yield _block(text, Kind.LIST, span)
    else:
        yield _block(text, Kind.PARAGRAPH, span)


def _heading(text: str, span: Span, level: int) -> Block:
    if span[1] - span[0] > HEADING_CHARS_MAX:
        return _block(text, Kind.PARAGRAPH, span)
    first = text[span[0] : span[1]].split("\n")[0]
    title = one_line(first.strip().strip("#"))
    return _block(text, Kind.HEADING if title else Kind.PARAGRAPH, span, level=min(level, LEVEL_MAX), title=title)
