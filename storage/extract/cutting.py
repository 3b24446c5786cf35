"""Blocks to atoms: the pieces of text that chunks are made of and that are never cut again. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil

from orchestrator.documents.model import Chunking
from storage.extract.blocks import Block, Kind
from storage.extract.tokens import Offsets

BLOCK_GAP = "\n\n"
PORTION_CHARS = 32 * 2**10
"""So much of a block is looked at at once: bounds memory, whatever a line or a paragraph holds."""
SHARED_TOKENS_MIN = 128
"""An overlap of so many tokens is made of whole pieces, so that both chunks embed the same texts."""
SECTION_SHARE = 4
"""A heading begins a new chunk unless the chunk before it would hold less than this part of what it may; heads of
tables are repeated up to this part of it."""
CHARS_PER_TOKEN_MAX = 16
"""What has more, has long stretches that no token counts: those are not kept."""

PAGE_TOKENS_MIN = 32
"""A page begins a new piece, so that a hit cites just one, unless the piece before it would hold less than this."""
RAGGED_TOKENS = 2
"""Text that begins or ends within a word may have so many tokens more than the word's parts had."""

Path = tuple[str, ...]

_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"”’)\]])\s+|(?<=[。！？])(?=\S)|\s{17,}|\n{2,}")
"""Between sentences; long white space too, since no token counts it. Each alternative looks at a character once."""
_FIELD = re.compile(r"(?<=[,;}\])>|])|\s{17,}")
"""Between the fields of a line that is too long."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What bounds chunks and pieces, in tokens."""

    chunk: int
    overlap: int
    piece: int
    """What a piece is filled up to."""
    window: int
    """What a piece may have."""

    @staticmethod
    def of(chunking: Chunking, piece_tokens_max: int) -> Sizes:
        """Pieces are equal parts of a chunk, and of its overlap where that is large enough to share them."""
        chunk = chunking.chunk_tokens_max
        overlap = min(chunking.overlap_tokens, chunk // 2)
        parts = ceil(chunk / piece_tokens_max)
        if overlap >= SHARED_TOKENS_MIN:
            parts = max(parts, ceil(chunk / overlap))
        return Sizes(chunk=chunk, overlap=overlap, piece=max(1, chunk // parts), window=piece_tokens_max)


@dataclass(slots=True)
class Atom:
    """Text that stays together. Its maker completes it before it gives it away."""

    text: str
    tokens: int
    gap: str
    """What stands between it and the atom before."""
    path: Path = ()
    page: int | None = None
    start: int | None = None
    """Its span in the source's text."""
    end: int | None = None
    verbatim: bool = False
    """It is just that span."""
    section: int = 0
    """Atoms of different sections share no chunk."""
    run: int = 0
    """Atoms of different runs share no piece."""
    held: bool = False
    """No chunk begins with it: it belongs to a table or code that is kept whole."""
    whole: bool = False
    """It is part of such."""
    heading: bool = False


def atoms(blocks: Iterable[Block], sizes: Sizes, offsets: Offsets) -> Iterator[Atom]:
    """The atoms of a document, in order. None has more than `Sizes.piece` tokens, and none is blank."""
    return _Cutter(sizes, offsets).atoms(blocks)


class _Cutter:
    def __init__(self, sizes: Sizes, offsets: Offsets) -> None:
        self._sizes = sizes
        self._offsets = offsets
        self._joint = len(offsets(BLOCK_GAP))
        self._path: list[tuple[int, str]] = []
        self._titles: Path = ()
        self._heads: list[Atom] = []
        """Headings that nothing followed yet."""
        self._section = 0
        self._section_tokens = 0
        self._run = 0
        self._run_tokens = 0
        self._page: int | None = None

    def atoms(self, blocks: Iterable[Block]) -> Iterator[Atom]:
        kind = Kind.PARAGRAPH
        for block in blocks:
            if not block.text.strip():
                continue
            if block.kind is Kind.HEADING:
                self._open(block)
            elif block.kind in (Kind.TABLE, Kind.CODE):
                yield from self._lines(block)
            else:
                gap = "\n" if block.kind is kind is Kind.LIST else BLOCK_GAP
                for part in _portions(block):
                    yield from self._placed(self._prose(part, gap))
                    gap = "\n"
            kind = block.kind
        yield from self._placed([])

    # --- where things stand ---

    def _open(self, block: Block) -> None:
        """A heading: what follows stands under it."""
        while self._path and self._path[-1][0] >= block.level:
            self._path.pop()
        self._path.append((block.level, block.title or block.text))
        self._titles = tuple(title for _, title in self._path)
        if self._section_tokens >= self._sizes.chunk // SECTION_SHARE:
            self._section += 1
            self._section_tokens = 0
            self._begin_run()
        heads = self._prose(block, BLOCK_GAP)
        for atom in heads:
            atom.heading = True
        self._heads += heads

    def _placed(self, cut: list[Atom]) -> list[Atom]:
        """The atoms of a block with the headings before them, in their section."""
        heads, self._heads = self._heads, []
        if heads and cut and _tokens(heads) + cut[0].tokens <= self._sizes.piece:
            cut = [_joined([*heads, cut[0]]), *cut[1:]]
        else:
            cut = [*heads, *cut]
        for atom in cut:
            if atom.page != self._page and self._run_tokens >= PAGE_TOKENS_MIN:
                self._begin_run()
            self._page = atom.page
            atom.section, atom.run = self._section, self._run
            self._section_tokens += atom.tokens
            self._run_tokens += atom.tokens
        return cut

    def _begin_run(self) -> None:
        self._run += 1
        self._run_tokens = 0

    def _whole(self, cut: list[Atom]) -> list[Atom]:
        """The same for a table or code that no chunk cuts."""
        self._begin_run()
        placed = self._placed(cut)
        for at, atom in enumerate(placed):
            atom.held, atom.whole = at > 0, True
        self._begin_run()
        return placed

    # --- cutting ---

    def _prose(self, block: Block, gap: str) -> list[Atom]:
        ends = self._ends(block.text)
        if self._fits(0, len(block.text), ends, self._sizes.piece // 2):
            return self._cut(block, ends, [(0, len(block.text))], self._sizes.piece, gap)
        return self._cut(block, ends, _between(block.text, _SENTENCE, 0, len(block.text)), self._sizes.piece, gap)

    def _fits(self, start: int, end: int, ends: list[int], tokens_max: int) -> bool:
        tokens = bisect_right(ends, end) - bisect_right(ends, start) + self._joint
        return tokens <= tokens_max and end - start <= CHARS_PER_TOKEN_MAX * tokens_max

    def _lines(self, block: Block) -> Iterator[Atom]:
        """A table or code: whole if it fits into a chunk, else in parts that do, each with the table's head."""
        head, body = _beheaded(block)
        heads = self._line_atoms(head, BLOCK_GAP) if head else []
        if _tokens(heads) > self._sizes.chunk // SECTION_SHARE:
            heads, body = [], block
        if _tokens(self._heads) > self._sizes.chunk // SECTION_SHARE:
            yield from self._placed([])
        only = True
        for part in _portions(body):
            cut = self._line_atoms(part, "\n" if heads else BLOCK_GAP)
            while cut:
                before = _tokens(self._heads) + _tokens(heads)
                fits = _fitting(cut, self._sizes.chunk - before)
                taken, cut = [*heads, *cut[:fits]], cut[fits:]
                small = only and not cut and _tokens(self._heads) + _tokens(taken) <= self._sizes.piece
                yield from self._placed([_joined(taken)]) if small else self._whole(taken)
                only = False
                heads = [replace(atom, start=None, end=None, verbatim=False) for atom in heads]

    def _line_atoms(self, block: Block, gap: str) -> list[Atom]:
        limit = min(self._sizes.piece, self._sizes.chunk // 2)  # so that it fits beside a head
        ends = self._ends(block.text)
        spans: list[tuple[int, int]] = []
        for start, end in _line_groups(block.text, limit // 2):
            if self._fits(start, end, ends, limit):
                spans.append((start, end))
            else:
                spans += _grouped(_between(block.text, _FIELD, start, end), limit // 2)
        return self._cut(block, ends, spans, limit, gap)

    def _ends(self, text: str) -> list[int]:
        """Where each token ends, never before the one that comes before it."""
        return list(accumulate((end for _, end in self._offsets(text)), max))

    def _cut(self, block: Block, ends: list[int], spans: Iterable[tuple[int, int]], limit: int, gap: str) -> list[Atom]:
        """An atom for each span of the block's text, or several where it has more than `limit` tokens."""
        found: list[Atom] = []
        extra, reached = self._joint, 0
        for start, end in spans:
            for inner, outer in _pieces(block.text, ends, start, end, reached, max(1, limit - extra - RAGGED_TOKENS)):
                tokens = bisect_right(ends, outer) - bisect_right(ends, reached) + extra
                tokens += _ragged(block.text, inner, outer) * RAGGED_TOKENS
                gap = _gap(block.text[reached:inner]) if found else gap
                found.append(_atom(block, inner, outer, tokens, gap, self._titles))
                extra, reached = 0, outer
        return found


def _tokens(atoms: Iterable[Atom]) -> int:
    return sum(atom.tokens for atom in atoms)


def _atom(block: Block, start: int, end: int, tokens: int, gap: str, path: Path) -> Atom:
    text = block.text[start:end]
    if block.verbatim and block.start is not None:
        span: tuple[int | None, int | None] = (block.start + start, block.start + end)
    else:
        span = (block.start, block.end)
    return Atom(text, tokens, gap, path, block.page, *span, verbatim=block.verbatim)


def _joined(parts: Sequence[Atom]) -> Atom:
    """One atom of several, with the place of the last in all but its span."""
    if len(parts) == 1:
        return parts[0]
    starts = [atom.start for atom in parts if atom.start is not None]
    ends = [atom.end for atom in parts if atom.end is not None]
    return replace(
        parts[-1],
        text=parts[0].text + "".join(atom.gap + atom.text for atom in parts[1:]),
        tokens=_tokens(parts),
        gap=parts[0].gap,
        start=min(starts, default=None),
        end=max(ends, default=None),
        verbatim=False,
    )


def _portions(block: Block) -> Iterator[Block]:
    """The block in parts of at most `PORTION_CHARS`, cut at lines, else at white space, else anywhere."""
    text, start = block.text, 0
    if len(text) <= PORTION_CHARS:
        yield block
        return
    while start < len(text):
        end = min(start + PORTION_CHARS, len(text))
        if end < len(text):
            middle = start + PORTION_CHARS // 2
            end = max(text.rfind("\n", middle, end), text.rfind(" ", middle, end), -1) + 1 or end
        yield _part(block, start, end)
        start = end


def _part(block: Block, start: int, end: int) -> Block:
    text = block.text[start:end]
    if not block.verbatim or block.start is None:
        return replace(block, text=text, header_lines=0)
    return replace(block, text=text, start=block.start + start, end=block.start + end, header_lines=0)


def _beheaded(block: Block) -> tuple[Block | None, Block]:
    """The head of a table, and the rest; no head where nothing follows."""
    at = 0
    for _ in range(block.header_lines):
        at = block.text.find("\n", at) + 1
        if not at:
            return None, block
    return (_part(block, 0, at), _part(block, at, len(block.text))) if at else (None, block)


def _line_groups(text: str, chars: int) -> Iterator[tuple[int, int]]:
    """Lines, short ones together up to about `chars`. Empty lines at either end are left out, indents are not."""
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + chars)
        if end < 0:
            end = text.find("\n", start + chars)
        end = len(text) if end < 0 or len(text) - start <= chars else end
        yield from _trimmed(text, start, end)
        start = end + 1


def _between(text: str, breaks: re.Pattern[str], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The spans that are not `breaks`, but for those that are blank."""
    for found in breaks.finditer(text, start, end):
        yield from _trimmed(text, start, found.start())
        start = found.end()
    yield from _trimmed(text, start, end)


def _grouped(spans: Iterable[tuple[int, int]], chars: int) -> Iterator[tuple[int, int]]:
    """Neighbours together up to about `chars`."""
    begun: tuple[int, int] | None = None
    for start, end in spans:
        if begun and end - begun[0] > chars:
            yield begun
            begun = None
        begun = (begun[0] if begun else start, end)
    if begun:
        yield begun


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The span without white space after it and empty lines before it, unless nothing is left."""
    if part := text[start:end].rstrip():
        yield start + _blank_lines(part), start + len(part)


def _blank_lines(text: str) -> int:
    """How much of `text` is empty lines before the first other."""
    return text.rfind("\n", 0, len(text) - len(text.lstrip())) + 1


def _ragged(text: str, start: int, end: int) -> bool:
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    return bool(before.strip() or after.strip())


def _gap(between: str) -> str:
    """White space in short."""
    lines = between.count("\n")
    return "\n\n" if lines > 1 else "\n" if lines else " " if between else ""


def _pieces(text: str, ends: list[int], start: int, end: int, reached: int, limit: int) -> Iterator[tuple[int, int]]:
    """A span in parts of at most `limit` tokens, cut at white space where there is any in their second halves.

    `reached` is where the part before ends: tokens of the white space since then count too.
    """
    while True:
        first = bisect_right(ends, reached)
        if bisect_right(ends, end) - first <= limit:
            break
        edge = ends[first + limit - 1]
        if ends[first + limit] == edge and ends[bisect_left(ends, edge) - 1] > start:
            edge = ends[bisect_left(ends, edge) - 1]  # several tokens are one character
        middle = max(start, ends[first + limit // 2])
        cut = max(text.rfind("\n", middle, edge + 1), text.rfind(" ", middle, edge + 1))
        outer = cut if cut > start else edge
        if text[start:outer].strip():
            yield start, start + len(text[start:outer].rstrip())
        reached = outer
        start = outer + len(text[outer:end]) - len(text[outer:end].lstrip())
    if text[start:end].strip():
        yield start, end


def _fitting(cut: Sequence[Atom], room: int) -> int:
    """How many atoms to take: all that fit; about half, where all would fit into two parts; at least one."""
    rest = 0
    for atom in cut:
        rest += atom.tokens
        if rest > 2 * room:
            break
    share = room if rest <= room or rest > 2 * room else rest // 2
    total = fits = 0
    for atom in cut:
        if total >= share or total + atom.tokens > room:
            break
        total += atom.tokens
        fits += 1
    return max(fits, 1)
