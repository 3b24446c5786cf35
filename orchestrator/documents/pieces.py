"""What of a document is embedded. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.documents.model import Passages


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """The distinct texts of a document, and where each is of use."""

    texts: Sequence[str]
    owners: Sequence[int]
    """The chunk of each piece, in order."""
    places: Sequence[int]
    """The text of each piece, as a place in `texts`."""


def pieces(passages: Passages) -> Pieces:
    """Every piece of every chunk; a text that occurs twice, as in chunks that overlap, is embedded once."""
    places: dict[str, int] = {}
    owners: list[int] = []
    at: list[int] = []
    for number, chunk in enumerate(passages.chunks):
        for piece in chunk.parts:
            text = chunk.text[piece.start : piece.end].strip()
            if text:
                owners.append(number)
                at.append(places.setdefault(text, len(places)))
    return Pieces(texts=tuple(places), owners=owners, places=at)
