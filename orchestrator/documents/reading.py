"""From a stored file to what an index takes: its passages and their vectors, each made once for the same content."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import structlog

from orchestrator.crash import crash_point
from orchestrator.documents.embedders import Embedders
from orchestrator.documents.grouping import Grouped
from orchestrator.documents.keys import file_key, passages_key, vectors_key
from orchestrator.documents.model import IngestStatus, Passages, StoredFile, StoreFile
from orchestrator.documents.passages import PASSAGES_BYTES_MAX, PassagesDamaged, decode, encode
from orchestrator.documents.pieces import Pieces, pieces
from orchestrator.documents.ports import Embedder, Extractor, Indexed, ObjectStore, Shelf, Source
from orchestrator.documents.threads import finished
from orchestrator.errors import EmbedderFailed, EmbedderUnavailable, NotFound

if TYPE_CHECKING:
    from orchestrator.documents.ports import Vectors

EMBED_ROUND_MAX = 64
"""Texts of one call to an embedder, of one document or of several."""
VECTORS_BYTES_MAX = 2**30
LARGE_BYTES_MIN = 2**20
LARGE_MAX = 8
"""So many documents of `LARGE_BYTES_MIN` or more are held in memory at once; smaller ones as there are jobs."""
READ_SHARE = 0.1
"""How much of a file's progress its reading is; the rest is embedding."""
_SHAPE = struct.Struct("<II")
"""What stands before a document's vectors: rows, dimension. They follow as little-endian float16."""

OnProgress = Callable[[float], None]

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """A document that is ready to be indexed."""

    digest: str
    indexed: Indexed
    embedder: str
    """Whose vectors were asked for; empty: none were."""
    dimension: int
    """Of the vectors; 0: there are none."""
    bytes: int
    """What its passages and vectors take."""


class Reading:
    """Does the work of a job up to the index. Everything it makes is kept in the object store and found there again."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        objects: ObjectStore,
        embedders: Embedders,
        make_extractor: Callable[[Path | None], Extractor],
        folder: Path,
    ) -> None:
        """`make_extractor` is given the tokenizer to count with, and may block; `folder` takes local copies while they
        are read."""
        self._shelf = shelf
        self._objects = objects
        self._embedders = embedders
        self._make_extractor = make_extractor
        self._extractors: dict[Path | None, Extractor] = {}
        self._making = asyncio.Lock()
        self._large = asyncio.Semaphore(LARGE_MAX)
        self._folder = folder
        self._embed: dict[str, Grouped[str, Vectors]] = {}

    @property
    def embedder(self) -> str:
        """The name of the embedder that makes new vectors; empty: none does."""
        return self._embedders.name

    async def ready(self) -> bool:
        """Whether new vectors can be made; waits a little for an embedder that fetches its model."""
        return await self._embedders.prepared()

    async def prepare(self) -> None:
        """Return once they can be. Raises `errors.EmbedderUnavailable`."""
        await self._embedders.prepare()

    async def read(self, file: StoreFile, embedder: str, on_progress: OnProgress, *, anew: bool = False) -> Read | None:
        """The file, with vectors of `embedder` (empty: without); None when the file is gone.

        With `anew`, cut as the current embedder wants it, else as it was before. Vectors are left out where they are
        not kept and not the current embedder's, as of a store on the move; or where that refuses a file that was
        completed by another, or without. Raises `errors.Unreadable`, `errors.EmbedderFailed`; and
        `errors.ObjectsUnavailable` and `errors.EmbedderUnavailable` for what may go better later.
        """
        stored = await self._shelf.file(file.tenant, file.file)
        if stored is None:
            return None
        async with self._large if stored.bytes >= LARGE_BYTES_MIN else contextlib.nullcontext():
            return await self._read(stored, file, embedder, on_progress, anew=anew)

    async def _read(
        self, stored: StoredFile, file: StoreFile, embedder: str, on_progress: OnProgress, *, anew: bool
    ) -> Read:
        digest, passages, size = await self._passages(stored, file, anew=anew)
        on_progress(READ_SHARE)
        cut = pieces(passages)
        vectors = None
        if embedder and cut.texts:
            try:
                vectors = await self._vectors(file.tenant, digest, embedder, cut, on_progress)
            except EmbedderFailed:
                if file.status is not IngestStatus.COMPLETED:
                    raise
                log.warning("found_by_words_only", entry=file.entry)  # its cause may repeat the text
        indexed = Indexed(
            entry=file.entry,
            title=passages.title,
            chunks=passages.chunks,
            owners=cut.owners if vectors is not None else (),
            vectors=vectors,
        )
        return Read(
            digest=digest,
            indexed=indexed,
            embedder=embedder,
            dimension=0 if vectors is None else int(vectors.shape[1]),
            bytes=size + (0 if vectors is None else 2 * int(vectors.size)),
        )

    async def content(self, file: StoreFile) -> Passages:
        """What was read of a file that is completed. Raises `errors.NotFound` when it is not kept."""
        kept = await self._objects.read_bytes(passages_key(file.tenant, file.passages), bytes_max=PASSAGES_BYTES_MAX)
        return await asyncio.to_thread(decode, kept)

    # --- passages ---

    async def _passages(self, stored: StoredFile, file: StoreFile, *, anew: bool) -> tuple[str, Passages, int]:
        """The digest that names them, themselves, and their size."""
        if file.passages and not anew and (kept := await self._kept(file.tenant, file.passages)):
            return file.passages, *kept
        extractor = await self._reader()
        digest = self._digest(stored, file, extractor)
        if kept := await self._kept(file.tenant, digest):
            return digest, *kept
        async with self._copy(file_key(stored.tenant, stored.id)) as path:
            source = Source(path=path, filename=stored.filename, content_type=stored.content_type)
            passages = await extractor.read(source, file.chunking, piece_tokens_max=self._piece_tokens_max())
        encoded = await asyncio.to_thread(encode, passages)
        crash_point("ingest.before_passages")
        await self._objects.put_bytes(passages_key(file.tenant, digest), encoded)
        crash_point("ingest.after_passages")
        return digest, passages, len(encoded)

    async def _kept(self, tenant: str, digest: str) -> tuple[Passages, int] | None:
        try:
            kept = await self._objects.read_bytes(passages_key(tenant, digest), bytes_max=PASSAGES_BYTES_MAX)
            return await asyncio.to_thread(decode, kept), len(kept)
        except (NotFound, PassagesDamaged):
            return None

    async def _reader(self) -> Extractor:
        """Counts tokens as the embedder does, where its tokenizer is there; else estimates them."""
        await self._embedders.prepared()
        tokenizer = self._embedders.tokenizer
        async with self._making:  # one for all, so that its limits hold
            if tokenizer not in self._extractors:
                self._extractors[tokenizer] = await asyncio.to_thread(self._make_extractor, tokenizer)
        return self._extractors[tokenizer]

    def _digest(self, stored: StoredFile, file: StoreFile, extractor: Extractor) -> str:
        """Of all that decides what reading gives."""
        chunking = file.chunking
        facts = (
            stored.sha256,
            PurePath(stored.filename).suffix.lower(),
            stored.content_type,
            extractor.version,
            str(chunking.chunk_tokens_max),
            str(chunking.overlap_tokens),
            str(self._piece_tokens_max()),
        )
        return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()

    def _piece_tokens_max(self) -> int:
        current = self._embedders.current
        return current.piece_tokens_max if current else 256

    @contextlib.asynccontextmanager
    async def _copy(self, key: str) -> AsyncIterator[Path]:
        """An object as a file of its own, gone at the end."""
        path = self._folder / secrets.token_hex(16)
        try:
            await finished(partial(_append, path, b""))
            async for data in self._objects.read(key):
                await finished(partial(_append, path, data))
            yield path
        finally:
            await finished(partial(path.unlink, missing_ok=True))

    # --- vectors ---

    async def _vectors(
        self, tenant: str, digest: str, embedder: str, cut: Pieces, on_progress: OnProgress
    ) -> Vectors | None:
        """A row for each piece."""
        key = vectors_key(tenant, digest, embedder)
        try:
            kept = await self._objects.read_bytes(key, bytes_max=VECTORS_BYTES_MAX)
            rows = await asyncio.to_thread(_unpacked, kept)
        except NotFound:
            rows = None
        if rows is None or len(rows) != len(cut.texts):
            maker = self._embedders.current
            if maker is None or maker.name != embedder:
                return None
            rows = await self._embedded(maker, cut.texts, on_progress)
            await self._keep(key, rows)
        return await asyncio.to_thread(rows.__getitem__, list(cut.places))

    async def _embedded(self, embedder: Embedder, texts: Sequence[str], on_progress: OnProgress) -> Vectors:
        import numpy as np

        embed = self._embed.get(embedder.name)
        if embed is None:

            async def work(round_: Sequence[str]) -> Sequence[Vectors]:
                return list(await embedder.embed(round_, wait=True))

            embed = Grouped(work, round_max=EMBED_ROUND_MAX, shared=(EmbedderUnavailable,))
            self._embed[embedder.name] = embed
        rows: list[Vectors] = []
        for begin in range(0, len(texts), EMBED_ROUND_MAX):
            rows += await embed(texts[begin : begin + EMBED_ROUND_MAX])
            on_progress(READ_SHARE + (1 - READ_SHARE) * len(rows) / len(texts))
        return await asyncio.to_thread(np.stack, rows)

    async def _keep(self, key: str, rows: Vectors) -> None:
        crash_point("ingest.before_vectors")
        await self._objects.put_bytes(key, await asyncio.to_thread(_packed, rows))
        crash_point("ingest.after_vectors")


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab", opener=partial(os.open, mode=0o600)) as file:
        file.write(data)


def _packed(rows: Vectors) -> bytes:
    return _SHAPE.pack(*rows.shape) + rows.astype("<f2").tobytes()


def _unpacked(kept: bytes) -> Vectors | None:
    """None for what is not whole."""
    import numpy as np

    if len(kept) < _SHAPE.size:
        return None
    count, dimension = _SHAPE.unpack_from(kept)
    if len(kept) != _SHAPE.size + 2 * count * dimension:
        return None
    return np.frombuffer(kept, "<f2", offset=_SHAPE.size).reshape(count, dimension).astype(np.float32)
