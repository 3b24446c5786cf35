"""Chunks and pieces: never too large, nothing lost, cut where a reader would. Pure."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.documents.model import Chunk, Chunking
from storage.extract.blocks import Block, Document, Kind, clean, heading, table
from storage.extract.chunking import chunk
from storage.extract.plain import code, delimited, markdown, prose
from storage.extract.source_text import SourceText, read_text
from storage.extract.tokens import Offsets, estimated, tokenizer_offsets

WINDOW = 254
SENTENCE = "The quick brown fox jumps over the lazy dog number {} of many. "
SECONDS_PER_MB_MAX = 20.0
"""Of processor time, for the worst kind of text; a quadratic step would take hours."""


def cut(
    blocks: list[Block], size: int = 800, overlap: int = 400, window: int = WINDOW, offsets: Offsets = estimated
) -> list[Chunk]:
    return list(
        chunk(blocks, Chunking(chunk_tokens_max=size, overlap_tokens=overlap), offsets, piece_tokens_max=window)
    )


def cut_source(data: bytes, read: Callable[[SourceText], Document], size: int = 800, overlap: int = 400) -> list[Chunk]:
    document = read(read_text(data))
    chunking = Chunking(chunk_tokens_max=size, overlap_tokens=overlap)
    return list(chunk(document.blocks, chunking, estimated, piece_tokens_max=WINDOW, locate=document.locate))


def paragraph(sentences: int, start: int = 0) -> Block:
    return Block(Kind.PARAGRAPH, "".join(SENTENCE.format(start + number) for number in range(sentences)).strip())


def pieces(found: Chunk) -> list[str]:
    return [found.text[piece.start : piece.end] for piece in found.pieces]


def bare(text: str) -> str:
    return "".join(text.split())


# --- properties ---

TEXTS = st.text(st.sampled_from("ab word. 日本!é(\n\t,|x_9 -—🙂e\u0301"), max_size=400) | st.text(max_size=200)
LONG = st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=12), st.integers(1, 400))
KINDS = st.sampled_from([Kind.PARAGRAPH, Kind.LIST, Kind.TABLE, Kind.CODE])
PLAIN = st.builds(
    lambda kind, text, head: Block(kind, clean(text), header_lines=head if kind is Kind.TABLE else 0),
    KINDS,
    TEXTS | LONG,
    st.integers(0, 2),
)
BLOCKS = st.lists(PLAIN | st.builds(heading, TEXTS, st.integers(1, 4)), max_size=12)
SIZES = st.tuples(st.integers(100, 300), st.integers(0, 150), st.integers(20, 300))


@settings(max_examples=60, deadline=None)
@given(BLOCKS, SIZES)
def test_no_chunk_and_no_piece_is_too_large(blocks: list[Block], sizes: tuple[int, int, int]) -> None:
    size, overlap, window = sizes
    for found in cut(blocks, size, overlap, window):
        assert len(estimated(found.text)) <= size
        assert found.text.strip()
        for piece in pieces(found):
            assert piece.strip()
            assert len(estimated(piece)) <= window


@settings(max_examples=60, deadline=None)
@given(BLOCKS, SIZES)
def test_pieces_cover_their_chunk_in_order(blocks: list[Block], sizes: tuple[int, int, int]) -> None:
    for found in cut(blocks, *sizes):
        assert bare("".join(pieces(found))) == bare(found.text)
        spans = [(piece.start, piece.end) for piece in found.pieces]
        assert spans == sorted(spans)


@settings(max_examples=60, deadline=None)
@given(BLOCKS, st.integers(100, 300))
def test_without_overlap_the_chunks_are_the_text_and_nothing_twice(blocks: list[Block], size: int) -> None:
    plain = [Block(block.kind, block.text, level=block.level) for block in blocks]  # heads of tables are repeated
    assert bare("".join(found.text for found in cut(plain, size, 0))) == bare("".join(block.text for block in plain))


SHAPES = st.lists(st.tuples(st.sampled_from(Kind), st.integers(1, 250), st.sampled_from(" .\n")), max_size=10)


@settings(max_examples=60, deadline=None)
@given(SHAPES, SIZES)
def test_with_overlap_chunks_are_stretches_of_the_text_in_order(
    shapes: list[tuple[Kind, int, str]], sizes: tuple[int, int, int]
) -> None:
    names = (f"w{number}" for number in itertools.count())
    blocks = []
    for kind, words, end in shapes:
        text = f"{end.strip(chr(10))} ".join(itertools.islice(names, words))
        blocks.append(Block(kind, text.replace(" ", end) if end == "\n" else text, level=1))
    told = 0
    for found in cut(blocks, *sizes):
        numbers = [int(word.strip("w.")) for word in found.text.split()]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert numbers[0] <= told < numbers[-1] + 1
        told = numbers[-1] + 1
    assert told == sum(words for _, words, _ in shapes)


@settings(max_examples=80, deadline=None)
@given(st.lists(TEXTS | LONG, max_size=6), st.sampled_from([prose, markdown, code, delimited]), st.booleans())
def test_byte_ranges_hold_their_chunks_text(
    texts: list[str], read: Callable[[SourceText], Document], windows: bool
) -> None:
    raw = "\n\n".join(texts)
    data = (raw.replace("\n", "\r\n") if windows else raw).encode("utf-8", "ignore")
    for found in cut_source(data, read, size=120, overlap=50):
        place = found.place
        assert place.start_byte is not None and place.end_byte is not None
        there = bare(clean(data[place.start_byte : place.end_byte].decode()))
        rows = found.text.partition("\n")[2]  # without the head of a table, which is repeated before later rows
        assert bare(found.text) in there or (read is delimited and bare(rows) in there)
        for piece in found.pieces:
            start, end = piece.place.start_byte, piece.place.end_byte
            assert start is None or end is None or (place.start_byte <= start <= end <= place.end_byte)
            if read is prose:
                assert start is not None and end is not None
                assert bare(found.text[piece.start : piece.end]) in bare(clean(data[start:end].decode()))


# --- what a reader would expect ---


def test_default_chunks_are_four_shared_pieces_of_about_200_tokens() -> None:
    chunks = cut([paragraph(40, 40 * number) for number in range(8)])
    inner = chunks[1:-1]
    assert all(600 <= len(estimated(found.text)) <= 800 for found in inner)
    assert all(len(found.pieces) == 4 for found in inner)
    texts = [piece for found in chunks for piece in pieces(found)]
    assert all(150 <= len(estimated(piece)) <= WINDOW for piece in texts[:-1])
    assert len(set(texts)) <= len(texts) / 2 + 4  # each is in two chunks, word for word


@pytest.mark.parametrize(("overlap", "window"), [(400, 254), (400, 8192), (100, 254), (30, 254), (0, 254)])
def test_neighbours_of_a_section_overlap_by_about_what_is_asked(overlap: int, window: int) -> None:
    chunks = cut([paragraph(200)], overlap=overlap, window=window)
    assert len(chunks) > 2
    for before, after in itertools.pairwise(chunks):
        shared = max((n for n in range(len(after.text)) if before.text.endswith(after.text[:n])), default=0)
        assert overlap / 3 - 10 <= len(estimated(after.text[:shared])) <= overlap


def test_a_sentence_is_not_cut_where_it_fits() -> None:
    for found in cut([paragraph(300)]):
        for piece in pieces(found):
            assert piece.startswith("The quick") and piece.endswith("many.")


def test_no_piece_is_a_tiny_rest() -> None:
    for sentences in range(15, 60):
        counts = [len(estimated(piece)) for found in cut([paragraph(sentences)]) for piece in pieces(found)]
        assert min(counts) >= 80, sentences


def test_headings_begin_chunks_and_give_the_path() -> None:
    chunks = cut(
        [heading("Book", 1), heading("One", 2), paragraph(30), heading("Two", 2), paragraph(30), heading("Deep", 3)]
    )
    assert [found.place.headings for found in chunks] == [("Book", "One"), ("Book", "Two"), ("Book", "Two", "Deep")]
    assert chunks[0].text.startswith("Book\n\nOne\n\nThe quick")
    assert chunks[1].text.startswith("Two\n\nThe quick")


def test_small_sections_share_a_chunk_and_its_path_is_what_they_share() -> None:
    small = [part for name in "ABC" for part in (heading(name, 2), paragraph(2))]
    [found] = cut([heading("Top", 1), *small])
    assert found.place.headings == ("Top",)


def test_a_table_and_code_that_fit_are_kept_whole() -> None:
    rows = [["name", "value"], *([f"row {number}", str(number)] for number in range(60))]
    program = "\n".join(f"    line_{number} = call({number})" for number in range(60))
    blocks = [paragraph(30), table(rows), paragraph(30), Block(Kind.CODE, program), paragraph(30)]
    chunks = cut(blocks)
    for block in (blocks[1], blocks[3]):
        assert any(block.text in found.text for found in chunks)
        for found in chunks:  # and in no chunk in part
            lines = [line for line in block.text.split("\n") if line in found.text]
            assert len(lines) in (0, len(block.text.split("\n")))


def test_a_long_table_is_cut_between_rows_and_each_part_has_its_head() -> None:
    rows = [["name", "value"], *([f"row {number}", str(number)] for number in range(600))]
    chunks = cut([table(rows)])
    assert len(chunks) > 3
    for found in chunks:
        first, *others = found.text.split("\n")
        assert first == "name | value"
        assert all(line.startswith("row ") and line.count("|") == 1 for line in others)


def test_pages_are_told() -> None:
    blocks = [Block(Kind.PARAGRAPH, paragraph(60, 100 * page).text, page=page) for page in (1, 2, 3)]
    assert [found.place.page for found in cut(blocks, overlap=0)] == [1, 1, 2, 3]


PAGED = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90)), min_size=1, max_size=14)


@settings(max_examples=80, deadline=None)
@given(PAGED, SIZES)
def test_each_piece_knows_its_pages(shape: list[tuple[int, int]], sizes: tuple[int, int, int]) -> None:
    """Blocks of some words, each on the page of the one before or some pages on."""
    page, blocks = 1, []
    for pages, words in shape:
        page += pages
        blocks.append(Block(Kind.PARAGRAPH, " ".join(f"w{page}." for _ in range(words)), page=page))
    for found in cut(blocks, *sizes):
        for text, place in (
            (found.text, found.place),
            *zip(pieces(found), (p.place for p in found.pieces), strict=True),
        ):
            said = [int(word.strip("w.")) for word in text.split() if word.startswith("w")]
            assert not said or (place.page, place.page_end) == (min(said), max(said))


def test_a_hit_cites_one_page_unless_pages_are_tiny() -> None:
    long = [Block(Kind.PARAGRAPH, paragraph(9, 100 * page).text, page=page) for page in range(1, 7)]
    places = [piece.place for found in cut(long) for piece in found.pieces]
    assert {place.page for place in places} == set(range(1, 7))
    assert all(place.page == place.page_end for place in places)
    (found,) = cut([Block(Kind.PARAGRAPH, f"Slide {page}.", page=page) for page in range(1, 41)])
    assert (found.place.page, found.place.page_end) == (1, 40)
    assert 4 <= len(found.pieces) <= 10  # not one for each


def test_pieces_stand_under_their_own_headings() -> None:
    blocks = [heading("Top", 1), heading("One", 2), paragraph(9), heading("Two", 2), paragraph(9, 50)]
    (found,) = cut(blocks, window=140)
    assert found.place.headings == ("Top",)
    assert [piece.place.headings for piece in found.pieces] == [("Top", "One"), ("Top", "Two")]


def test_a_tokenizers_own_tokens_bound_chunks_and_pieces(tmp_path: Path) -> None:
    offsets = tokenizer_offsets(wordpiece(tmp_path / "tokenizer.json"))
    text = "".join(SENTENCE.format(number) for number in range(300)) + "x" * 5000 + " \U0001f600" * 500
    chunks = cut([Block(Kind.PARAGRAPH, text)], offsets=offsets)
    assert bare(text[-40:]) in bare(chunks[-1].text)
    for found in chunks:
        assert len(offsets(found.text)) <= 800
        assert all(len(offsets(piece)) <= WINDOW for piece in pieces(found))


def wordpiece(path: Path) -> Path:
    """A tokenizer of MiniLM's kind over few words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz0123456789."
    pieces = ["[UNK]", "quick", "brown", "the", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(path))
    return path


# --- text that would make a careless pattern go back and forth ---

HALF = 2**19
RUNS = {
    "spaces": b"a" + b" " * HALF + b"b",
    "spaces and newlines": b"a" + b" \n" * (HALF // 2) + b"b",
    "dots": b"." * HALF,
    "dots and spaces": b". " * (HALF // 2),
    "quotes": b'."' * (HALF // 2),
    "parentheses": b"(" * HALF,
    "one word": b"x" * HALF,
    "backticks": b"`" * HALF,
    "hashes": b"#" * HALF,
    "rules": b"-|:" * (HALF // 3),
    "tiny lines": b"x\n" * (HALF // 2),
    "tiny items": b"- x\n" * (HALF // 4),
    "tiny headings": b"# x\n" * (HALF // 4),
    "fences": b"```\n" * (HALF // 4),
    "commas": b"," * HALF,
    "marks": b"\xcc\x81" * (HALF // 64),
    "wide": "日本。".encode() * (HALF // 9),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("read", [prose, markdown, code, delimited])
@pytest.mark.slow
def test_long_runs_take_linear_time(name: str, read: Callable[[SourceText], Document]) -> None:
    began = time.process_time()
    found = cut_source(RUNS[name], read)
    assert time.process_time() - began < SECONDS_PER_MB_MAX / 2
    assert bare("".join(part.text for part in found))


@pytest.mark.slow
def test_a_line_of_10_mb_and_a_million_lines() -> None:
    for data in (b"word " * 2_000_000, b"x" * 10_000_000, b"x\n" * 1_000_000):
        began = time.process_time()
        assert cut_source(data, prose)
        assert time.process_time() - began < SECONDS_PER_MB_MAX * len(data) / 1e6
