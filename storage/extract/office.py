"""What the three Office formats share: their main part, their title, and text in paragraphs and tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.errors import Unreadable
from storage.extract.archive import Archive, Event
from storage.extract.blocks import Block, clean, one_line, table

CORE = "docProps/core.xml"
SIGNS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
MARKS = frozenset({"pStyle", "outlineLvl", "numPr"})


def main_part(archive: Archive) -> str:
    """The entry that the package says is its document. Raises `Unreadable`."""
    for kind, name in archive.relations("").values():
        if kind == "officeDocument" and name in archive.names:
            return name
    raise Unreadable("names no main part")


def metadata_title(archive: Archive) -> str:
    """The title in its properties, else its subject; empty when neither is told."""
    if CORE not in archive.names:
        return ""
    found: dict[str, str] = {}
    inside = ""
    for what, name, _ in archive.events(CORE):
        if what == "text":
            found[inside] = found.get(inside, "") + name
        else:
            inside = name if what == "start" else ""
    return one_line(found.get("title", "")) or one_line(found.get("subject", ""))


@dataclass(slots=True)
class Paragraph:
    """A paragraph outside tables."""

    parts: list[str] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)
    """The values of the elements of `MARKS` that it holds."""
    role: str = ""
    """Of the shape that it is in: the type of its placeholder."""

    @property
    def text(self) -> str:
        """Clean."""
        return clean("".join(self.parts)).strip()


def story(events: Iterator[Event], *, page: int | None = None) -> Iterator[Paragraph | Block]:
    """The paragraphs and the tables of WordprocessingML or DrawingML, whose elements have the same names here."""
    reader = _Story(page)
    for what, name, attributes in events:
        if what == "text":
            reader.text(name)
        elif what == "start":
            reader.start(name, attributes.get("val", attributes.get("type", "")))
        else:
            reader.end(name)
        if reader.done:
            yield from reader.done
            reader.done.clear()


class _Story:
    def __init__(self, page: int | None) -> None:
        self.done: list[Paragraph | Block] = []
        self._page = page
        self._open: list[Paragraph] = []
        """The last is innermost: a text box stands within the paragraph that it hangs on."""
        self._rows: list[list[list[str]]] = []
        self._tables = 0
        self._role = ""
        self._unseen = 0
        self._texting = False

    def text(self, data: str) -> None:
        if self._texting and self._open and not self._unseen:
            self._open[-1].parts.append(data)

    def start(self, name: str, value: str) -> None:
        if name == "Fallback":  # the same again, for older programs
            self._unseen += 1
        elif name == "t":
            self._texting = True
        elif name == "p":
            self._open.append(Paragraph(role=self._role))
        elif name in ("sp", "ph"):
            self._role = value if name == "ph" else ""
        elif name in ("tbl", "tr", "tc"):
            self._start_table(name)
        elif self._open and name in MARKS:
            self._open[-1].marks[name] = value
        elif self._open and name in SIGNS:
            self._open[-1].parts.append(SIGNS[name])

    def end(self, name: str) -> None:
        if name == "Fallback":
            self._unseen -= 1
        elif name == "t":
            self._texting = False
        elif name == "p" and self._open:
            self._keep(self._open.pop())
        elif name == "tbl":
            self._tables -= 1
            if not self._tables:
                self.done.append(table(((" ".join(cell) for cell in row) for row in self._rows), page=self._page))
                self._rows = []

    def _start_table(self, name: str) -> None:
        self._tables += name == "tbl"
        if self._tables != 1:  # a table in a cell is text of that cell
            return
        if name == "tr" or (name == "tc" and not self._rows):
            self._rows.append([])
        if name == "tc":
            self._rows[-1].append([])

    def _keep(self, paragraph: Paragraph) -> None:
        if self._unseen or not paragraph.text:
            return
        if not self._tables:
            self.done.append(paragraph)
        elif self._rows and self._rows[-1]:
            self._rows[-1][-1].append(paragraph.text)
