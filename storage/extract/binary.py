"""PDF, OpenDocument, RTF and Office's old formats to blocks, by kreuzberg."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import Unreadable
from storage.extract.blocks import Block, Document, Kind, clean, heading, one_line, table

if TYPE_CHECKING:
    from kreuzberg import ExtractionResult

REMEDY = "pip install 'orchestrator[documents]'"
PDF = "application/pdf"
MISSED_SHARE_MAX = 0.1
"""Of a page's words: running heads and page numbers may be left out of its structure, more may not."""
MISREAD_WORDS_MAX = 0
"""Words that the structure of a page has and its text has not: kreuzberg mends what it takes for broken ligatures, so
that ``xml:lang`` became ``xmltilang``."""

_WORD = re.compile(r"\w+")
_FILE_NAME = re.compile(r"\.(?:docx?|pdf|rtf|odt|tex|dvi|indd|pptx?|xlsx?|pages)$", re.I)
_SECRET = re.compile(r"password|encrypt", re.I)


def binary(path: Path, media_type: str, label: str) -> Document:
    """The document at `path`. Raises `Unreadable`; with the remedy where kreuzberg is not installed."""
    try:
        import kreuzberg
    except ImportError:
        raise Unreadable(f"is a {label}; to read those, {REMEDY}", code="unsupported_file") from None
    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        include_document_structure=True,
        output_format="markdown",  # else the structure of a PDF has no headings
        pages=kreuzberg.PageConfig(extract_pages=media_type == PDF),
        concurrency=kreuzberg.ConcurrencyConfig(max_threads=1),
    )
    try:
        result = kreuzberg.extract_file_sync(str(path), media_type, config)
    except (kreuzberg.KreuzbergError, RuntimeError, OSError, ValueError) as error:
        secret = _SECRET.search(str(error))  # its words are not passed on: they can hold the document's
        raise Unreadable("is encrypted" if secret else f"is a broken {label}") from error
    return Document(_paged(result) if result.pages else _nodes(result), title=_title(result))


def _title(result: ExtractionResult) -> str:
    """As its author gave it, not as the program that made it named the file."""
    for key in ("title", "subject"):
        title = one_line(str(result.metadata.get(key) or ""))
        if title and not _FILE_NAME.search(title):
            return title
    return ""


def _nodes(result: ExtractionResult) -> Iterator[Block]:
    nodes = result.document["nodes"] if result.document else []
    blocks = [block for node in nodes if (block := _block(dict(node["content"]), node.get("page")))]
    yield from blocks or [Block(Kind.PARAGRAPH, clean(part).strip()) for part in result.content.split("\n\n")]


def _block(content: dict[str, object], page: int | None) -> Block | None:
    text = clean(str(content.get("text") or ""))
    match content.get("node_type"):
        case "heading" | "title":
            level = content.get("level")
            return heading(text, level if isinstance(level, int) else 1, page=page)
        case "paragraph" | "footnote" | "formula":
            return Block(Kind.PARAGRAPH, text.strip(), page=page)
        case "list_item":
            return Block(Kind.LIST, text.strip(), page=page)
        case "code":
            return Block(Kind.CODE, text.strip("\n"), page=page)
        case "table":
            return table(_rows(content.get("grid")), page=page)
    return None


def _rows(grid: object) -> list[list[str]]:
    rows: dict[int, list[str]] = {}
    cells = grid.get("cells", []) if isinstance(grid, dict) else []
    for cell in cells:
        rows.setdefault(int(cell["row"]), []).append(str(cell["content"]))
    return list(rows.values())


def _paged(result: ExtractionResult) -> Iterator[Block]:
    """For each page its structure where that agrees with its text, else its text."""
    by_page: dict[int, list[Block]] = {}
    for block in _nodes(result):
        by_page.setdefault(block.page or 0, []).append(block)
    for page in result.pages or ():
        number, text = int(page["page_number"]), clean(page["content"])
        blocks = by_page.get(number, [])
        if _agree(blocks, text):
            yield from blocks
        else:
            headings = {_bare(block.text): block for block in blocks if block.kind is Kind.HEADING}
            yield from _as_text(text, headings, number)


def _agree(blocks: list[Block], text: str) -> bool:
    told = Counter(word for block in blocks for word in _WORD.findall(block.text))
    there = Counter(_WORD.findall(text))
    misread = sum((told - there).values())
    return misread <= MISREAD_WORDS_MAX and sum((there - told).values()) <= MISSED_SHARE_MAX * there.total()


def _as_text(text: str, headings: dict[str, Block], page: int) -> Iterator[Block]:
    """A page's lines; those that are its headings stand for themselves."""
    held: list[str] = []
    for line in (*text.split("\n"), ""):
        known = headings.get(_bare(line))
        if (known or not line.strip()) and held:
            yield Block(Kind.PARAGRAPH, "\n".join(held), page=page)
            held = []
        if known:
            yield known
        elif line.strip():
            held.append(line.strip())


def _bare(text: str) -> str:
    return "".join(_WORD.findall(text))
