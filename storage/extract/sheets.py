"""XLSX to blocks, sheet by sheet. By the standard library: kreuzberg 4.10 leaves out a sheet whose cells lie far
apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

from storage.extract.archive import Archive, Event
from storage.extract.blocks import Block, Document, heading, one_line, table
from storage.extract.office import main_part, metadata_title

ROWS_PER_BLOCK = 200
GAP_CELLS_MAX = 50
"""So many empty cells in a row are kept, so that columns stay under their names."""
CELL_CHARS_MAX = 32_767
"""Excel's own limit."""
DATE_FORMATS = frozenset((*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)))
"""Numbers of built-in formats that show a date or a time (ECMA-376, 18.8.30)."""
EPOCHS = {"": datetime(1899, 12, 30), "1904": datetime(1904, 1, 1)}
DAYS_MAX = 2_958_465
"""The last day that Excel knows, 9999-12-31."""

_UNQUOTED = re.compile(r'"[^"]*"|\[[^\]]*\]|\\.')


def xlsx(path: Path) -> Document:
    """A heading a sheet, and its rows in tables whose first line is the sheet's first; pages are sheets.

    Raises `Unreadable`.
    """
    archive = Archive(path)
    return Document(_workbook(archive), title=metadata_title(archive))


def _workbook(archive: Archive) -> Iterator[Block]:
    main = main_part(archive)
    relations = archive.relations(main)
    epoch, sheets = EPOCHS[""], []
    for what, name, attributes in archive.events(main):
        if what == "start" and name == "sheet":
            sheets.append((attributes.get("name", ""), relations.get(attributes.get("r:id", ""), ("", ""))[1]))
        elif what == "start" and name == "workbookPr" and attributes.get("date1904") in ("1", "true"):
            epoch = EPOCHS["1904"]
    parts = {kind: part for kind, part in relations.values() if part in archive.names}
    strings = _strings(archive.events(parts["sharedStrings"])) if "sharedStrings" in parts else []
    dates = _dates(archive.events(parts["styles"])) if "styles" in parts else frozenset()
    values = _Values(strings, dates, epoch)
    for number, (name, part) in enumerate(sheets, 1):
        if part in archive.names:
            yield from _sheet(archive.events(part), values, name or f"Sheet {number}", number)


def _sheet(events: Iterator[Event], values: _Values, name: str, page: int) -> Iterator[Block]:
    rows = _rows(events, values)
    first = next(rows, None)
    if first is None:
        return
    yield heading(name, 1, page=page)
    batch = list(islice(rows, ROWS_PER_BLOCK))
    yield table([first, *batch], page=page)
    while batch := list(islice(rows, ROWS_PER_BLOCK)):
        yield table([first, *batch], page=page)


class _Values:
    """What cells show."""

    def __init__(self, strings: list[str], dates: frozenset[int], epoch: datetime) -> None:
        self._strings = strings
        self._dates = dates
        self._epoch = epoch

    def of(self, raw: str, kind: str, style: str) -> str:
        """The text of a cell: dates as ISO 8601, numbers without the noise of their last binary digit."""
        if kind == "s":
            return self._strings[int(raw)] if raw.isdecimal() and int(raw) < len(self._strings) else ""
        if kind == "b":
            return "true" if raw == "1" else "false"
        if kind in ("str", "inlineStr", "e", "d"):
            return raw
        try:
            number = float(raw)
        except ValueError:
            return raw
        if style.isdecimal() and int(style) in self._dates and 0 <= number <= DAYS_MAX:
            moment = self._epoch + timedelta(days=number)
            return moment.date().isoformat() if number == int(number) else moment.isoformat(" ", "seconds")
        return f"{number:.15g}"


def _rows(events: Iterator[Event], values: _Values) -> Iterator[list[str]]:
    """The rows that hold anything."""
    row: list[str] = []
    cell: dict[str, str] = {}
    parts: list[str] = []
    texting = False
    for what, name, attributes in events:
        if what == "text":
            if texting:
                parts.append(name)
        elif name in ("v", "t"):
            texting = what == "start"
        elif name == "c" and what == "start":
            cell, parts = dict(attributes), []
        elif name == "c":
            text = one_line(values.of("".join(parts)[:CELL_CHARS_MAX], cell.get("t", ""), cell.get("s", "")))
            if text:
                row.extend([""] * min(max(0, _column(cell.get("r", "")) - len(row)), GAP_CELLS_MAX))
                row.append(text)
        elif name == "row" and what == "end" and row:
            yield row
            row = []


def _column(reference: str) -> int:
    """The number, from 0, of the column that a reference such as ``BC12`` names."""
    number = 0
    for letter in reference[:3].upper():
        if not "A" <= letter <= "Z":
            break
        number = 26 * number + ord(letter) - 64
    return number - 1


def _strings(events: Iterator[Event]) -> list[str]:
    """The shared strings, without their phonetic readings."""
    strings: list[str] = []
    parts: list[str] = []
    texting = phonetic = False
    for what, name, _ in events:
        if what == "text":
            if texting and not phonetic:
                parts.append(name)
        elif name == "t":
            texting = what == "start"
        elif name == "rPh":
            phonetic = what == "start"
        elif name == "si" and what == "end":
            strings.append("".join(parts)[:CELL_CHARS_MAX])
            parts = []
    return strings


def _dates(events: Iterator[Event]) -> frozenset[int]:
    """The cell styles that show dates."""
    formats = set(DATE_FORMATS)
    styles: list[str] = []
    listing = False
    for what, name, attributes in events:
        if name == "cellXfs":
            listing = what == "start"
        elif what == "start" and name == "numFmt":
            code = _UNQUOTED.sub("", attributes.get("formatCode", "")).lower()
            number = attributes.get("numFmtId", "")
            if number.isdecimal() and any(letter in code for letter in "ydh"):
                formats.add(int(number))
        elif what == "start" and name == "xf" and listing:
            styles.append(attributes.get("numFmtId", ""))
    return frozenset(at for at, number in enumerate(styles) if number.isdecimal() and int(number) in formats)
