"""EPUB to blocks: its chapters in the order of its spine, each by the reader of HTML."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import Unreadable
from storage.extract.archive import Archive, inside
from storage.extract.blocks import Block, Document, one_line
from storage.extract.markup import html
from storage.extract.source_text import read_text

CONTAINER = "META-INF/container.xml"


def epub(path: Path) -> Document:
    """Its chapters and its title. Raises `Unreadable`."""
    archive = Archive(path)
    package = ""
    for what, name, attributes in archive.events(CONTAINER):
        if what == "start" and name == "rootfile":
            package = package or attributes.get("full-path", "")
    if not package:
        raise Unreadable("names no package")
    chapters, title = _package(archive, package)
    return Document(_blocks(archive, chapters), title=title)


def _package(archive: Archive, package: str) -> tuple[list[str], str]:
    """The chapters' entries, and the title."""
    folder = posixpath.dirname(package)
    items: dict[str, str] = {}
    spine: list[str] = []
    titles: list[str] = []
    titling = False
    for what, name, attributes in archive.events(package):
        if what == "text":
            if titling:
                titles.append(name)
        elif name == "title":
            titling = what == "start" and not titles
        elif what == "start" and name == "item":
            items[attributes.get("id", "")] = inside(folder, attributes.get("href", ""))
        elif what == "start" and name == "itemref":
            spine.append(attributes.get("idref", ""))
    return [items[id] for id in spine if id in items], one_line("".join(titles))


def _blocks(archive: Archive, chapters: list[str]) -> Iterator[Block]:
    for chapter in dict.fromkeys(chapters):
        if chapter in archive.names:
            for block in html(read_text(archive.read(chapter))).blocks:
                yield replace(block, start=None, end=None)
