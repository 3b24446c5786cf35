"""PPTX to blocks, slide by slide in the order of the show. By the standard library: kreuzberg 4.10 gives them in the
order of their files, without numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from storage.extract.archive import Archive, Event
from storage.extract.blocks import Block, Document, Kind, heading
from storage.extract.office import main_part, metadata_title, story

TITLES = frozenset({"title", "ctrTitle"})
FURNITURE = frozenset({"sldNum", "dt", "ftr", "hdr", "sldImg"})


def pptx(path: Path) -> Document:
    """A heading a slide, its paragraphs and tables, then its notes; pages are slides. Raises `Unreadable`."""
    archive = Archive(path)
    return Document(_slides(archive), title=metadata_title(archive))


def _slides(archive: Archive) -> Iterator[Block]:
    main = main_part(archive)
    relations = archive.relations(main)
    shown = [
        relations.get(attributes.get("r:id", ""), ("", ""))[1]
        for what, name, attributes in archive.events(main)
        if what == "start" and name == "sldId"
    ]
    for number, slide in enumerate(shown, 1):
        if slide in archive.names:
            yield from _slide(archive, slide, number)


def _slide(archive: Archive, slide: str, number: int) -> Iterator[Block]:
    blocks = list(_shapes(archive.events(slide), number))
    titles = [block for block in blocks if block.kind is Kind.HEADING]
    yield from titles[:1] or [heading(f"Slide {number}", 1, page=number)]
    yield from (block for block in blocks if block not in titles[:1])
    for kind, notes in archive.relations(slide).values():
        if kind == "notesSlide" and notes in archive.names:
            yield from _shapes(archive.events(notes), number)


def _shapes(events: Iterator[Event], page: int) -> Iterator[Block]:
    for item in story(events, page=page):
        if isinstance(item, Block):
            yield item
        elif item.role in TITLES:
            yield heading(item.text, 1, page=page)
        elif item.role not in FURNITURE:
            yield Block(Kind.LIST, item.text, page=page)
