"""Documents: the values of files, uploads and vector stores. Frozen, no I/O; names follow OpenAI's API.

Times end in ``_unix`` and are seconds since 1970. A `tenant` is the owner of everything: a look-up always names it, so
that another's id is an unknown one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

AttributeValue = str | float | bool
Attributes = Mapping[str, AttributeValue]

CHUNK_TOKENS_DEFAULT = 800
OVERLAP_TOKENS_DEFAULT = 400
CHUNK_TOKENS_MIN = 100
CHUNK_TOKENS_MAX = 4096


class Order(StrEnum):
    """The order of a listing, by time of creation."""

    ASC = "asc"
    DESC = "desc"


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Which part of a listing is wanted: OpenAI's cursors. `after` and `before` are ids of the same listing."""

    limit: int = 20
    order: Order = Order.DESC
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file whose content is in the object store. It never changes."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    content_type: str
    sha256: str
    """Hex digest of the content."""
    created_unix: int
    expires_unix: int | None = None


class UploadStatus(StrEnum):
    """Where an upload in parts stands."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A file that comes in parts."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    """What the client said it will send."""
    content_type: str
    status: UploadStatus
    created_unix: int
    expires_unix: int
    file_expires_after_s: int | None = None
    file_id: str | None = None
    """The file, once completed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part of an upload."""

    id: str
    upload: str
    bytes: int
    created_unix: int


class IngestStatus(StrEnum):
    """OpenAI's states of a file in a vector store, and of a batch of them."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunking:
    """How a document is cut. `auto` keeps what the client asked for apart from what it means."""

    chunk_tokens_max: int = CHUNK_TOKENS_DEFAULT
    overlap_tokens: int = OVERLAP_TOKENS_DEFAULT
    auto: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class LastError:
    """Why an ingest failed. `code` is OpenAI's: ``server_error``, ``unsupported_file`` or ``invalid_file``."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorStore:
    """A named set of files that is searched as one."""

    id: str
    tenant: str
    name: str
    created_unix: int
    last_active_unix: int
    description: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    expires_after_days: int | None = None
    """Counted from `last_active_unix`."""
    embedder: str = ""
    """The model whose vectors serve its searches; empty: none yet."""
    dimension: int = 0

    @property
    def expires_unix(self) -> int | None:
        """When it is removed, unless used before."""
        if self.expires_after_days is None:
            return None
        return self.last_active_unix + self.expires_after_days * 86400


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreFile:
    """A file's membership of a vector store, and the job that reads it."""

    store: str
    file: str
    tenant: str
    filename: str
    entry: int
    """Its number in the catalogue, never given twice: how indexes name it."""
    status: IngestStatus
    created_unix: int
    attributes: Attributes = field(default_factory=dict)
    chunking: Chunking = Chunking()
    batch: str | None = None
    last_error: LastError | None = None
    usage_bytes: int = 0
    chunks: int = 0
    passages: str = ""
    """The digest that names its passages in the object store; empty until they are there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileBatch:
    """Files that were put into a vector store by one call. Its status follows from theirs."""

    id: str
    store: str
    tenant: str
    created_unix: int
    cancelled: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FileCounts:
    """How many files are in which state."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.in_progress + self.completed + self.failed + self.cancelled


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a passage stands in its source, for citations."""

    page: int | None = None
    """Where it begins, from 1, where the format has pages, slides or sheets."""
    page_end: int | None = None
    """Where it ends; the same, if it is on one."""
    headings: tuple[str, ...] = ()
    """The titles above it, outermost first."""
    start_byte: int | None = None
    """In the source itself where that is text, else None."""
    end_byte: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of a chunk that is embedded by itself, since an embedder's window is smaller; and what a hit cites."""

    start: int
    """Its span of the chunk's text, in characters."""
    end: int
    place: Place = Place()


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """What a search returns: a passage of a document. At most `CHUNK_TOKENS_MAX` tokens."""

    text: str
    place: Place = Place()
    """That of all of it."""
    pieces: tuple[Piece, ...] = ()
    """In order; none is blank."""

    @property
    def parts(self) -> tuple[Piece, ...]:
        """Its pieces; all of it is one, where it has none."""
        return self.pieces or (Piece(start=0, end=len(self.text), place=self.place),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Passages:
    """A document as it was read: what the index is built from. The same content, read in the same way, has the same."""

    chunks: tuple[Chunk, ...] = ()
    title: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One chunk that a leg of the search found. Scores compare within one leg only."""

    entry: int
    """`StoreFile.entry`."""
    chunk: int
    """The place of the chunk in its `Passages`."""
    score: float
