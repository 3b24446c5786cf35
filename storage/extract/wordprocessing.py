"""DOCX to blocks. By the standard library: kreuzberg 4.10 drops each ``&amp;`` and ``&lt;`` of such a file
(https://github.com/xberg-io/xberg/issues/1242)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from storage.extract.archive import Archive, Event
from storage.extract.blocks import Block, Document, Kind, heading
from storage.extract.office import Paragraph, main_part, metadata_title, story

_HEADING = re.compile(r"heading ?(\d)")
SIDE_PARTS = ("footnotes", "endnotes")
STYLES_DEPTH_MAX = 20
OUTLINE_BODY = 9
"""The outline level that says: no heading (ECMA-376, 17.3.1.20)."""


def docx(path: Path) -> Document:
    """Headings by style, lists, tables, footnotes. Raises `Unreadable`."""
    archive = Archive(path)
    main = main_part(archive)
    relations = archive.relations(main).values()
    styles = [name for kind, name in relations if kind == "styles" and name in archive.names]
    levels = _levels(archive.events(styles[0])) if styles else {}
    parts = [main, *(name for kind, name in relations if kind in SIDE_PARTS and name in archive.names)]
    blocks = (block for part in parts for block in _blocks(archive.events(part), levels))
    return Document(blocks, title=metadata_title(archive))


def _blocks(events: Iterator[Event], levels: dict[str, int]) -> Iterator[Block]:
    for item in story(events):
        yield item if isinstance(item, Block) else _block(item, levels)


def _block(paragraph: Paragraph, levels: dict[str, int]) -> Block:
    style = paragraph.marks.get("pStyle", "")
    named = _HEADING.fullmatch(style.lower())
    level = levels.get(style, int(named[1]) if named else 0)
    outline = paragraph.marks.get("outlineLvl", "")
    if outline.isdecimal():
        level = int(outline) + 1 if int(outline) < OUTLINE_BODY else 0
    if level:
        return heading(paragraph.text, level)
    return Block(Kind.LIST if "numPr" in paragraph.marks else Kind.PARAGRAPH, paragraph.text)


def _levels(events: Iterator[Event]) -> dict[str, int]:
    """The level of each style that makes headings, by its own name, its outline or the style that it is based on."""
    levels: dict[str, int] = {}
    bases: dict[str, str] = {}
    style = ""
    for what, tag, attributes in events:
        value = attributes.get("val", "")
        if what != "start":
            continue
        if tag == "style":
            style = attributes.get("styleId", "")
        elif tag == "name" and (found := _HEADING.fullmatch(value.lower())):
            levels[style] = int(found[1])
        elif tag == "name" and value.lower() == "title":
            levels[style] = 1
        elif tag == "outlineLvl" and value.isdecimal() and int(value) < OUTLINE_BODY:
            levels.setdefault(style, int(value) + 1)
        elif tag == "basedOn":
            bases[style] = value
    return {style: level for style in {*levels, *bases} if (level := _inherited(style, levels, bases))}


def _inherited(style: str, levels: dict[str, int], bases: dict[str, str]) -> int:
    for _ in range(STYLES_DEPTH_MAX):
        if style in levels:
            return levels[style]
        style = bases.get(style, "")
    return 0
