"""Blocks to chunks, along the structure of the document. Pure, and linear in time.

1. Blocks become atoms (`cutting`): sentences, lines, small paragraphs.
2. Atoms are packed into pieces, which are what an embedder gets and a hit cites: of one page, unless it is tiny.
3. Pieces are packed into chunks. Neighbours within a section share their last and first pieces, so that a text which
   is in both is embedded once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from orchestrator.documents.model import Chunk, Chunking, Piece, Place
from storage.extract.blocks import Block, Locate
from storage.extract.cutting import Atom, Sizes, atoms
from storage.extract.tokens import Offsets

_SPACE = re.compile(r"\s+")


def chunk(
    blocks: Iterable[Block],
    chunking: Chunking,
    offsets: Offsets,
    *,
    piece_tokens_max: int,
    locate: Locate | None = None,
) -> Iterator[Chunk]:
    """The chunks of a document, in order, made while `blocks` are taken.

    None has more than `Chunking.chunk_tokens_max` tokens, none of its pieces more than `piece_tokens_max`, by
    `offsets` (a byte-pair tokenizer may find one or two more, where words had to be cut). Everything but white space of
    the blocks is in some chunk. A heading begins a chunk, unless the one before would be small.
    Tables and code that fit into a chunk are in one, longer ones are cut between lines, each part with the table's
    head. Where `locate` is given, the bytes of a chunk's place hold its text, but for such a repeated head.
    """
    sizes = Sizes.of(chunking, piece_tokens_max)
    for pieces in _packed(_pieces(atoms(blocks, sizes, offsets), sizes), sizes, offsets):
        yield _chunk(pieces, locate)


@dataclass(frozen=True, slots=True)
class _Piece:
    atoms: Sequence[Atom]

    @property
    def tokens(self) -> int:
        return sum(atom.tokens for atom in self.atoms)

    @property
    def section(self) -> int:
        return self.atoms[0].section

    @property
    def held(self) -> bool:
        return self.atoms[0].held

    @property
    def whole(self) -> bool:
        return self.atoms[0].whole


# --- atoms to pieces ---


def _pieces(cut: Iterable[Atom], sizes: Sizes) -> Iterator[_Piece]:
    for _, run in groupby(cut, key=lambda atom: atom.run):
        yield from _filled(run, sizes.piece)


def _filled(run: Iterable[Atom], tokens_max: int) -> Iterator[_Piece]:
    """Pieces as full as can be; the last two alike, so that none is a tiny rest."""
    before: list[Atom] = []
    current: list[Atom] = []
    total = 0
    for atom in run:
        if current and total + atom.tokens > tokens_max:
            if before:
                yield _Piece(before)
            before, current, total = current, [], 0
        current.append(atom)
        total += atom.tokens
    if before:
        yield from map(_Piece, _halved([*before, *current], len(before), tokens_max))
    elif current:
        yield _Piece(current)


def _halved(both: list[Atom], split: int, tokens_max: int) -> tuple[list[Atom], list[Atom]]:
    """Two pieces of the same size, or as they were."""
    total = sum(atom.tokens for atom in both)
    left = sum(atom.tokens for atom in both[:split])
    best = split
    for at in range(split - 1, 0, -1):
        left -= both[at].tokens
        if total - left > tokens_max or 2 * left < total - both[at].tokens:
            break
        best = at
    return both[:best], both[best:]


# --- pieces to chunks ---


def _packed(pieces: Iterable[_Piece], sizes: Sizes, offsets: Offsets) -> Iterator[list[_Piece]]:
    current: list[_Piece] = []
    for group in _groups(pieces):
        if not current:
            current = group
        elif group[0].section != current[0].section:
            yield current
            current = group
        elif _tokens(current) + _tokens(group) > sizes.chunk:
            yield current
            current = _continued(current, group, sizes, offsets)
        else:
            current = [*current, *group]
    if current:
        yield current


def _groups(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """What no chunk cuts: a piece with those after it that are held."""
    group: list[_Piece] = []
    for piece in pieces:
        if group and not piece.held:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _continued(before: Sequence[_Piece], group: list[_Piece], sizes: Sizes, offsets: Offsets) -> list[_Piece]:
    """The next chunk so far: what it repeats of the one before, and what did not fit into that."""
    limit = min(sizes.overlap, sizes.chunk - _tokens(group))
    shared = _shared(before, limit)
    if shared:
        return [*shared, *group]
    end = _end(before[-1], limit, offsets)
    if not end:
        return group
    first = group[0]
    if not first.whole and _tokens([_Piece(end), first]) <= sizes.window:
        return [_Piece([*end, *first.atoms]), *group[1:]]
    return [_Piece(end), *group]


def _shared(before: Sequence[_Piece], limit: int) -> Sequence[_Piece]:
    """The last pieces, whole, but never all."""
    total = count = 0
    for at, piece in enumerate(reversed(before[1:]), 1):
        total += piece.tokens
        if total > limit:
            break
        if not piece.held:
            count = at
    return before[-count:] if count else ()


def _end(piece: _Piece, limit: int, offsets: Offsets) -> list[Atom]:
    """The last sentences of a piece, else the last words of its last; never all of it, and nothing of a table or
    code."""
    if piece.whole or limit < 1:
        return []
    total = 0
    taken: list[Atom] = []
    for atom in reversed(piece.atoms[1:]):
        total += atom.tokens
        if total > limit:
            break
        taken.insert(0, atom)
    return taken or _last_words(piece.atoms[-1], limit, offsets)


def _last_words(atom: Atom, limit: int, offsets: Offsets) -> list[Atom]:
    spans = offsets(atom.text)
    if len(spans) <= limit:
        return []
    space = _SPACE.search(atom.text, max(0, spans[-limit][0] - 1))
    if space is None or not atom.text[space.end() :].strip():
        return []
    tokens = sum(start >= space.end() for start, _ in spans)
    start = atom.start + space.end() if atom.verbatim and atom.start is not None else atom.start
    return [replace(atom, text=atom.text[space.end() :], tokens=tokens, start=start)]


def _tokens(pieces: Iterable[_Piece]) -> int:
    return sum(piece.tokens for piece in pieces)


# --- a chunk ---


def _chunk(pieces: Sequence[_Piece], locate: Locate | None) -> Chunk:
    parts: list[str] = []
    found: list[Piece] = []
    length = 0
    for piece in pieces:
        start = length + (len(piece.atoms[0].gap) if parts else 0)
        for atom in piece.atoms:
            part = atom.gap + atom.text if parts else atom.text
            parts.append(part)
            length += len(part)
        found.append(Piece(start=start, end=length, place=_place(piece.atoms, locate)))
    place = _place([atom for piece in pieces for atom in piece.atoms], locate)
    return Chunk(text="".join(parts), place=place, pieces=tuple(found))


def _place(cut: Sequence[Atom], locate: Locate | None) -> Place:
    """Where they stand; the headings are those that all stand under."""
    body = [atom for atom in cut if not atom.heading] or cut
    pages = [atom.page for atom in body if atom.page is not None]
    page, page_end = min(pages, default=None), max(pages, default=None)
    headings = body[0].path
    for atom in body:
        if atom.path is not headings:
            headings = _common(headings, atom.path)
    starts = [atom.start for atom in cut if atom.start is not None]
    ends = [atom.end for atom in cut if atom.end is not None]
    if locate is None or not starts or not ends:
        return Place(page=page, page_end=page_end, headings=headings)
    start_byte, end_byte = locate(min(starts), max(ends))
    return Place(page=page, page_end=page_end, headings=headings, start_byte=start_byte, end_byte=end_byte)


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    count = 0
    for here, there in zip(one, other, strict=False):
        if here != there:
            break
        count += 1
    return one[:count]
