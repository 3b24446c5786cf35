"""Passages as bytes: how a document that was read once is kept and passed between processes. Pure.

One byte of version, then a zlib stream of frames: four bytes of length (big endian) and so much msgpack. The first
frame is the title, each further one some chunks. Frames are small, so that a large document is decoded in steps
between which other threads get their turn.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import msgspec

from orchestrator.documents.model import Chunk, Passages, Piece, Place
from orchestrator.errors import OrchestratorError

VERSION = 2
PASSAGES_BYTES_MAX = 256 * 2**20
"""The most that `encode` gives and `decode` takes."""
DECODED_BYTES_MAX = 1024 * 2**20
"""The most that is unpacked of it: a small object may unpack to very much."""
FRAME_CHARS = 128 * 2**10
FRAME_BYTES_MAX = 8 * 2**20
FRAME_CHUNKS_MAX = 1024
STEP_BYTES = 256 * 2**10
ZLIB_LEVEL = 1
"""Fast: text shrinks to about 40 %, half of it is the overlap."""
LENGTH_BYTES = 4


class PassagesDamaged(OrchestratorError):
    """Not what `encode` made, or too large; the document has to be read again."""


class _Where(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A place; its headings are None where they are those of the chunk."""

    page: int | None
    page_end: int | None
    headings: tuple[str, ...] | None
    start_byte: int | None
    end_byte: int | None


class Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A chunk in its packed form."""

    text: str
    place: _Where
    pieces: tuple[tuple[int, int, _Where], ...]

    @staticmethod
    def of(chunk: Chunk) -> Row:
        """That of `chunk`."""
        own = chunk.place.headings
        pieces = tuple((piece.start, piece.end, _where(piece.place, own)) for piece in chunk.pieces)
        return Row(chunk.text, _where(chunk.place), pieces)

    def chunk(self) -> Chunk:
        """What `of` was given."""
        place = _place(self.place)
        pieces = tuple(
            Piece(start=start, end=end, place=_place(where, place.headings)) for start, end, where in self.pieces
        )
        return Chunk(text=self.text, place=place, pieces=pieces)


_DECODER = msgspec.msgpack.Decoder(list[Row])
_TITLE = msgspec.msgpack.Decoder(str)


def encode(passages: Passages) -> bytes:
    """The bytes of `passages`. Raises `PassagesDamaged` when they are more than `PASSAGES_BYTES_MAX`."""
    packer = zlib.compressobj(ZLIB_LEVEL)
    parts = [bytes([VERSION])]
    total = 1
    for frame in _frames(passages):
        part = packer.compress(len(frame).to_bytes(LENGTH_BYTES, "big") + frame)
        parts.append(part)
        total += len(part)
        if total > PASSAGES_BYTES_MAX:
            raise PassagesDamaged(f"the passages take more than {PASSAGES_BYTES_MAX} bytes")
    parts.append(packer.flush())
    return b"".join(parts)


def decode(data: bytes) -> Passages:
    """What `encode` was given. Raises `PassagesDamaged`."""
    if len(data) > PASSAGES_BYTES_MAX or data[:1] != bytes([VERSION]):
        raise PassagesDamaged("these are not passages, or of another version")
    try:
        frames = _unframed(_unpacked(data))
        title = _TITLE.decode(next(frames, b""))
        chunks = tuple(row.chunk() for frame in frames for row in _DECODER.decode(frame))
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PassagesDamaged(f"the passages are damaged: {error}") from error
    return Passages(title=title, chunks=chunks)


def _frames(passages: Passages) -> Iterator[bytes]:
    encoder = msgspec.msgpack.Encoder()
    yield encoder.encode(passages.title)
    for batch in _batches(passages.chunks):
        yield encoder.encode(batch)


def _batches(chunks: Iterable[Chunk]) -> Iterator[list[Row]]:
    rows: list[Row] = []
    chars = 0
    for chunk in chunks:
        rows.append(Row.of(chunk))
        chars += len(chunk.text)
        if chars >= FRAME_CHARS or len(rows) >= FRAME_CHUNKS_MAX:
            yield rows
            rows, chars = [], 0
    if rows:
        yield rows


def _where(place: Place, known: tuple[str, ...] | None = None) -> _Where:
    headings = None if place.headings == known else place.headings
    return _Where(place.page, place.page_end, headings, place.start_byte, place.end_byte)


def _place(where: _Where, known: tuple[str, ...] = ()) -> Place:
    return Place(
        page=where.page,
        page_end=where.page_end,
        headings=known if where.headings is None else where.headings,
        start_byte=where.start_byte,
        end_byte=where.end_byte,
    )


def _unpacked(data: bytes) -> Iterator[bytes]:
    """The stream, some bytes at a time, bounded in all."""
    unpacker = zlib.decompressobj()
    total = 0
    for start in range(1, len(data), STEP_BYTES):
        waiting = data[start : start + STEP_BYTES]
        while waiting:
            part = unpacker.decompress(waiting, STEP_BYTES)
            waiting = unpacker.unconsumed_tail
            total += len(part)
            if total > DECODED_BYTES_MAX:
                raise PassagesDamaged(f"the passages unpack to more than {DECODED_BYTES_MAX} bytes")
            yield part
    yield unpacker.flush()
    if not unpacker.eof:
        raise PassagesDamaged("the passages are cut off")


def _unframed(parts: Iterator[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for part in parts:
        held += part
        while len(held) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(held[:LENGTH_BYTES], "big")
            if end > FRAME_BYTES_MAX:
                raise PassagesDamaged("a frame of the passages is too large")
            if len(held) < end:
                break
            yield bytes(held[LENGTH_BYTES:end])
            del held[:end]
    if held:
        raise PassagesDamaged("the passages are cut off")
