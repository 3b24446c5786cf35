"""The seams of documents: what they ask of an object store, a catalogue, an extractor, an embedder and an index."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.documents.model import (
    Chunk,
    Chunking,
    FileBatch,
    FileCounts,
    Hit,
    IngestStatus,
    Page,
    Part,
    Passages,
    StoredFile,
    StoreFile,
    Upload,
    VectorStore,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    """Shape (rows, dimension), each row of length 1."""

READ_BYTES = 256 * 2**10
"""The most that a read yields at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectFacts:
    """What an object store tells of an object."""

    key: str
    bytes: int
    modified_unix: float


class ObjectStore(Protocol):
    """Bytes by key, in a bucket or a folder. Keys are ours: ASCII letters, digits, ``/ . _ -``, no ``..``.

    Every method may raise `errors.ObjectsUnavailable`: "I can't tell". None blocks the event loop.
    """

    async def put(self, key: str, source: Path, *, sha256: str, content_type: str = "application/octet-stream") -> None:
        """Store the file `source`, of any size, and take it: it may be moved. All or nothing; durable on return.

        Verified on the way by a checksum. Replaces what the key held.
        """

    async def put_bytes(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Store a small object (up to some MiB). As `put`."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`, at most `READ_BYTES` at a time.

        Raises `errors.NotFound` at the first step when there is no such key. Closing the iterator lets go at once.
        """

    async def read_bytes(self, key: str, *, bytes_max: int) -> bytes:
        """A small object whole. Raises `errors.NotFound`, and `errors.ObjectsUnavailable` when it is larger."""

    async def delete(self, key: str) -> None:
        """Remove it; fine when there is none."""

    def list(self, prefix: str) -> AsyncIterator[ObjectFacts]:
        """Every object whose key begins with `prefix`, by key."""

    async def presign(self, key: str, *, seconds: int, filename: str, content_type: str) -> str | None:
        """A URL that gets just this object for at most `seconds`; None where the store has no such thing. Never
        logged."""

    async def check(self) -> None:
        """Raise `errors.ObjectsUnavailable`, with a cause that says what to do, unless it can be read and written."""

    async def sweep(self, *, older_than_s: float) -> int:
        """Clear away parts of uploads that were cut off; how many."""

    async def aclose(self) -> None:
        """Let go of connections and threads."""


class Shelf(Protocol):
    """The catalogue of documents. One writer; each change is durable when its method returns.

    Raises `storage.catalog.CatalogError` (an `errors.OrchestratorError`) when it can't be read or written. Listings
    give at most `page.limit` rows and whether more follow; a cursor that is not in the listing raises
    `errors.NotFound`.
    """

    # --- files ---
    async def add_file(self, file: StoredFile) -> None:
        """Keep it. Idempotent by id."""

    async def file(self, tenant: str, id: str) -> StoredFile | None:
        """The tenant's file."""

    async def files_of(self, tenant: str, ids: Collection[str]) -> Mapping[str, StoredFile]:
        """Those of these that are the tenant's, by id."""

    async def files(
        self, tenant: str, page: Page, *, purpose: str | None = None
    ) -> tuple[tuple[StoredFile, ...], bool]:
        """A listing, and whether more follow."""

    async def remove_file(self, tenant: str, id: str) -> StoredFile | None:
        """Forget it, and its membership of stores; what it was, None when unknown. Its content becomes garbage, see
        `garbage`."""

    async def expired_files(self, now_unix: int, limit: int) -> tuple[StoredFile, ...]:
        """Of every tenant: those whose time is over."""

    async def used_bytes(self, tenant: str) -> int:
        """The sum of the tenant's files."""

    # --- uploads ---
    async def put_upload(self, upload: Upload) -> None:
        """Keep it, or its new state."""

    async def upload(self, tenant: str, id: str) -> Upload | None:
        """The tenant's upload."""

    async def add_part(self, part: Part) -> None:
        """Keep it. Raises `errors.NotFound` when the upload is not pending any more; its content is garbage then."""

    async def parts(self, upload: str) -> tuple[Part, ...]:
        """In order of creation."""

    async def complete_upload(self, upload: Upload, file: StoredFile) -> None:
        """Keep the file and the upload's end together; its parts become garbage. Idempotent by the file's id. Raises
        `errors.NotFound` when the upload has ended otherwise; the file's content is garbage then."""

    async def end_upload(self, upload: Upload) -> None:
        """Keep its end (cancelled or expired) unless it has ended already; its parts become garbage."""

    async def expired_uploads(self, now_unix: int, limit: int) -> tuple[Upload, ...]:
        """Pending ones of every tenant whose time is over."""

    # --- what is to be cleared away ---
    async def garbage(self, limit: int, *, but: str = "") -> tuple[str, ...]:
        """Keys of objects that nothing names any more, oldest first; without those that begin with `but`."""

    async def cleared(self, keys: Sequence[str]) -> None:
        """They are gone."""

    # --- vector stores ---
    async def add_store(self, store: VectorStore) -> None:
        """Keep a new one. Idempotent by id."""

    async def change_store(
        self, tenant: str, id: str, change: Callable[[VectorStore], VectorStore]
    ) -> VectorStore | None:
        """Keep what `change` (pure) makes of the store as it is at that moment, and return it; None when unknown. Two
        that change different fields at once don't undo each other."""

    async def store(self, tenant: str, id: str) -> VectorStore | None:
        """The tenant's store."""

    async def stores(self, tenant: str, page: Page) -> tuple[tuple[VectorStore, ...], bool]:
        """A listing, and whether more follow."""

    async def all_stores(self) -> tuple[VectorStore, ...]:
        """Of every tenant."""

    async def remove_store(self, tenant: str, id: str) -> VectorStore | None:
        """Forget it with its files' membership (the files stay); what it was, None when unknown."""

    async def counts(self, stores: Collection[str]) -> Mapping[str, tuple[FileCounts, int]]:
        """For each store, its files by state and the sum of their `usage_bytes`."""

    # --- files of a store ---
    async def add_store_files(
        self, files: Sequence[StoreFile], batch: FileBatch | None = None
    ) -> tuple[StoreFile, ...]:
        """Keep them, all together and with their batch, each with a fresh `entry` (what it came with is ignored); a
        file that is in the store already is replaced, so its old entry is gone."""

    async def store_file(self, tenant: str, store: str, file: str) -> StoreFile | None:
        """One membership."""

    async def members(self, tenant: str, store: str, files: Collection[str]) -> Mapping[str, StoreFile]:
        """Those of these files that are in the store, by file."""

    async def store_files(
        self,
        tenant: str,
        store: str,
        page: Page,
        *,
        status: IngestStatus | None = None,
        batch: str | None = None,
    ) -> tuple[tuple[StoreFile, ...], bool]:
        """A listing (cursors are file ids), and whether more follow."""

    async def all_store_files(self, store: str) -> tuple[StoreFile, ...]:
        """Every file of a store, by entry."""

    async def put_store_file(self, file: StoreFile) -> bool:
        """Keep what its job found (status, last_error, usage_bytes, chunks, passages; its attributes stay as they
        are) if the entry is still there and was not cancelled; whether so."""

    async def set_attributes(self, file: StoreFile) -> bool:
        """Keep its attributes and nothing else, if the entry is still there; whether it was."""

    async def remove_store_file(self, tenant: str, store: str, file: str) -> StoreFile | None:
        """Take it out of the store; what it was."""

    async def memberships(self, tenant: str, file: str) -> tuple[StoreFile, ...]:
        """The stores' files that are this file."""

    async def unfinished(self, limit: int) -> tuple[StoreFile, ...]:
        """Those in progress, of every tenant, oldest first."""

    async def batch(self, tenant: str, store: str, id: str) -> FileBatch | None:
        """The store's batch."""

    async def batch_counts(self, batch: str) -> FileCounts:
        """The states of its files."""

    async def cancel_batch(self, batch: FileBatch) -> None:
        """Its files in progress are cancelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A document to be read."""

    path: Path
    """A local copy; its name tells nothing."""
    filename: str
    content_type: str


class Extractor(Protocol):
    """Reads documents of many kinds, outside this process and within limits."""

    @property
    def version(self) -> str:
        """Changes when the same document would be read otherwise."""

    async def read(self, source: Source, chunking: Chunking, *, piece_tokens_max: int) -> Passages:
        """The document in chunks. Takes seconds; the event loop goes on.

        Raises `errors.Unreadable` for a document that can't be read: broken, too large, too slow, of no known kind;
        and `errors.MachineRefused` or `OSError` where the machine is at fault.
        """


class Embedder(Protocol):
    """Turns text into vectors."""

    @property
    def name(self) -> str:
        """The model; vectors of different names don't compare. Empty: there is none, search is lexical only."""

    @property
    def piece_tokens_max(self) -> int:
        """The longest text that it takes whole, in tokens."""

    async def prepare(self) -> Path | None:
        """Get what it needs before its first vector, which may take a minute, once; its tokenizer's file, if any.

        Raises `errors.EmbedderUnavailable`.
        """

    async def embed(self, texts: Sequence[str], *, wait: bool) -> Vectors:
        """One vector a text, in order. With `wait`, however long its model takes to start, politely behind others;
        without, as fast as can be.

        Raises `errors.EmbedderUnavailable` when it is cold (without `wait`) or does not answer (it says for how long),
        and `errors.EmbedderFailed` when these texts will never work.
        """

    async def aclose(self) -> None:
        """Let go of threads and memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Indexed:
    """A document for the index."""

    entry: int
    title: str
    chunks: Sequence[Chunk]
    owners: Sequence[int] = ()
    """The chunk of each row of `vectors`, as a place in `chunks`."""
    vectors: Vectors | None = None
    """The pieces' vectors, chunk by chunk; None: found by words only."""


class Index(Protocol):
    """The passages of one vector store on the local disk, by words and by vectors: a cache, rebuilt at need.

    Blocks: call it from threads, any number of them for searches, one at a time for changes.
    """

    def entries(self) -> frozenset[int]:
        """What is in it, durably."""

    def add(self, documents: Sequence[Indexed]) -> None:
        """Put them in, each anew if it was there. Durable and found by searches on return; all or nothing each."""

    def remove(self, entries: Collection[int]) -> None:
        """Take them out. Durable on return."""

    def words(self, query: str, *, allowed: Collection[int] | None, limit: int) -> list[Hit]:
        """The best chunks by BM25, best first, each once, of the `allowed` entries (None: all). `query` is the user's
        text and safe whatever it holds."""

    def nearest(self, vector: Vectors, *, allowed: Collection[int] | None, limit: int) -> list[Hit]:
        """The best chunks by cosine (each by its best piece), best first, each once. `vector`: shape (dimension,)."""

    def chunks(self, keys: Sequence[tuple[int, int]]) -> list[Chunk | None]:
        """The chunks of (entry, chunk), in order; None for what is gone."""

    def shares(self, query: str, keys: Sequence[tuple[int, int]]) -> list[list[float]]:
        """For each (entry, chunk), how much of the query's words each of its pieces says, 0 to 1, weighed by their
        rarity; nothing for what is gone."""

    def cosines(self, vector: Vectors, keys: Sequence[tuple[int, int]]) -> list[list[float]]:
        """For each (entry, chunk), how near each of its pieces is; nothing where it has no vectors."""

    def close(self) -> None:
        """Let go of files and memory."""


class Shelves(Protocol):
    """The indexes of all stores: at most so many open at once."""

    def open(self, store: str, embedder: str, dimension: int) -> Index:
        """The index of a store for one embedder's vectors; an empty one when there is none, or it is damaged or of
        another version. Blocks. The same object while it is open."""

    def discard(self, store: str, *, keep: str | None = None) -> None:
        """Remove a store's indexes from the disk, but for that of the embedder `keep`. Blocks."""
