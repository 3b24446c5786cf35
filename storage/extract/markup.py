"""HTML to blocks, by the standard library's parser: no tree, so no depth is too deep. Pure."""

from __future__ import annotations

from array import array
from dataclasses import replace
from html.parser import HTMLParser
from itertools import accumulate

from storage.extract.blocks import Block, Document, Kind, clean, heading, one_line, table
from storage.extract.source_text import SourceText

UNSEEN = frozenset({"script", "style", "template", "svg", "noscript", "iframe", "object", "head"})
VOID = frozenset({"area", "base", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"})
HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BREAKS = """
address article aside blockquote body caption dd details dialog div dl dt fieldset figcaption figure footer form
header hgroup hr html legend li main menu nav ol p pre section summary table tbody tfoot thead tr ul
"""
BREAKS = frozenset(_BREAKS.split())
"""Elements that stand on lines of their own."""
CELLS = frozenset({"td", "th"})
CELLS_MAX = 1_000
"""Of a row; the rest begins another."""
TITLE_CHARS_MAX = 1_000


def html(source: SourceText, *, page: int | None = None) -> Document:
    """Headings, paragraphs, lists, tables and preformatted text; scripts and styles are left out."""
    parser = _Blocks(source.text, page)
    parser.feed(source.text)
    parser.close()
    parser.end()
    return Document(parser.blocks, title=one_line(parser.title), locate=source.locate)


class _Blocks(HTMLParser):
    """Gathers text until an element that stands on its own begins or ends."""

    def __init__(self, text: str, page: int | None) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self.title = ""
        self._page = page
        self._lines = array("Q", accumulate((len(line) + 1 for line in text.split("\n")), initial=0))
        self._length = len(text)
        self._parts: list[str] = []
        self._start: int | None = None
        self._kind = Kind.PARAGRAPH
        self._level = 0
        self._unseen = ""
        self._depth = 0
        self._titled = False
        self._tables = 0
        self._rows: list[list[str]] = []
        self._table_start: int | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._titled = not self.title
        elif self._unseen:
            self._depth += tag == self._unseen
            if tag == "body":  # a head that was never closed
                self._unseen = ""
        elif tag in UNSEEN:
            self._unseen, self._depth = tag, 1
        elif tag == "br":
            self._parts.append("\n")
        elif tag in CELLS and self._tables:
            self._cell()
        elif tag in BREAKS or tag in HEADINGS:
            self._open(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID or tag == "br":
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._titled = False
        elif self._unseen:
            self._depth -= tag == self._unseen
            if not self._depth:
                self._unseen = ""
        elif tag in CELLS and self._tables:
            self._parts.append(" ")
        elif tag in BREAKS or tag in HEADINGS:
            self._close(tag)

    def handle_data(self, data: str) -> None:
        if self._titled:
            self.title += data[: TITLE_CHARS_MAX - len(self.title)]
        elif not self._unseen:
            if self._start is None and not data.isspace():
                self._start = self._place()
            self._parts.append(data)

    def end(self) -> None:
        """The document is over."""
        while self._tables:
            self._close("table")
        self._flush(self._length)

    def _open(self, tag: str) -> None:
        if self._tables:
            self._open_inside(tag)
            return
        self._flush()
        if tag == "table":
            self._tables, self._rows, self._table_start = 1, [], self._place()
        elif tag in HEADINGS:
            self._kind, self._level = Kind.HEADING, HEADINGS[tag]
        elif tag == "pre":
            self._kind = Kind.CODE
        elif tag == "li":
            self._kind = Kind.LIST

    def _open_inside(self, tag: str) -> None:
        """An element in a table. A table in a cell is text of that cell."""
        self._parts.append(" ")
        self._tables += tag == "table"
        if tag == "tr" and self._tables == 1:
            self._fill()
            self._rows.append([])

    def _close(self, tag: str) -> None:
        if not self._tables:
            self._flush()
            return
        self._parts.append(" ")
        self._tables -= tag == "table"
        if not self._tables:
            self._fill()
            self._keep(table(self._rows, page=self._page), self._table_start)

    def _cell(self) -> None:
        if self._tables > 1:
            self._parts.append(" ")
            return
        self._fill()
        if not self._rows or len(self._rows[-1]) >= CELLS_MAX:
            self._rows.append([])
        self._rows[-1].append("")

    def _fill(self) -> None:
        """Put the text so far into the cell that is open."""
        text = one_line("".join(self._parts))
        self._parts, self._start = [], None
        if not text:
            return
        if not self._rows or not self._rows[-1]:
            self._rows.append([""])
        row = self._rows[-1]
        row[-1] = f"{row[-1]} {text}" if row[-1] else text

    def _flush(self, end: int | None = None) -> None:
        text = "".join(self._parts)
        kind, level, start = self._kind, self._level, self._start
        self._parts, self._start, self._kind, self._level = [], None, Kind.PARAGRAPH, 0
        if not text.strip():
            return
        if kind is Kind.HEADING:
            self._keep(heading(text, level, page=self._page), start, end)
        elif kind is Kind.CODE:
            self._keep(Block(kind, clean(text).strip("\n"), page=self._page), start, end)
        else:
            lines = (one_line(line) for line in text.split("\n"))
            self._keep(Block(kind, " ".join(filter(None, lines)), page=self._page), start, end)

    def _keep(self, block: Block, start: int | None, end: int | None = None) -> None:
        if block.text.strip():
            end = self._place() if end is None else end
            self.blocks.append(replace(block, start=start, end=end))

    def _place(self) -> int:
        """Where the parser stands in the text."""
        line, column = self.getpos()
        return min(self._lines[line - 1] + column, self._length)
