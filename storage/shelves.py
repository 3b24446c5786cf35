"""The indexes of vector stores on the local disk: ``ROOT/v1/STORE/EMBEDDER/{words,vectors}``. All of it is a cache.

An index that is neither among the last used nor in anybody's hands is let go by the interpreter, as nothing refers to
it any more: so none is closed under a search.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import threading
import uuid
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import structlog

from orchestrator.crash import crash_point
from orchestrator.documents.model import Chunk, Hit
from orchestrator.documents.ports import Indexed
from orchestrator.errors import IndexUnavailable, OrchestratorError
from storage.seals import Seals

if TYPE_CHECKING:
    from orchestrator.documents.ports import Vectors as Floats
    from storage.lexical import Lexical
    from storage.vectors import Vectors

VERSION = "v1"
"""Of what the folders hold; those of other versions are removed."""
OPEN_MAX = 16
LOCKS = 64
"""Stores that share one wait for each other's opening."""

_VERSIONS = re.compile(r"v[0-9]+")
_STORE = re.compile(r"[A-Za-z0-9_-]{1,200}")

log = structlog.get_logger()


class IndexClosed(IndexUnavailable):
    """The index was let go or discarded; open it again."""


class DiskIndex:
    """`ports.Index`: a store's passages by words and by vectors. Changes wait for each other.

    A document is in when it is in both. What a crash left in one alone is taken out when it is opened. `IndexClosed`
    after `close`; `LexicalError` and `VectorsError` where the disk does not go along, and nothing of the document is
    in then.
    """

    def __init__(self, folder: Path, dimension: int, seals: Seals | None = None) -> None:
        """Open what is in `folder`, or an empty one. Raises `LexicalDamaged` or `VectorsDamaged`, `LexicalError` or
        `VectorsError` where the machine refuses."""
        from storage.lexical import Lexical
        from storage.vector_files import sync_folder
        from storage.vectors import Vectors

        self.dimension = dimension
        self._folder = folder
        self._seals = seals = seals or Seals()
        self.damaged = False
        """It met with damage, and is of no use any more."""
        self._changing = threading.Lock()
        self._parts: tuple[Lexical, Vectors] | None = None
        lexical, vectors = Lexical(folder / "words", seals), Vectors(folder / "vectors", dimension, seals)
        for parent in (folder, *folder.parents[:2]):
            sync_folder(parent)
        _mend(lexical, vectors)
        self._parts = lexical, vectors

    def entries(self) -> frozenset[int]:
        """What is in it, durably."""
        with self._open() as (lexical, vectors):
            return lexical.entries() & vectors.entries()

    def add(self, documents: Sequence[Indexed]) -> None:
        """Put them in, each anew if it was there. Durable and found by searches on return.

        Of each document, all or nothing is in, whatever ends it early.
        """
        with self._change() as (lexical, vectors):
            vectors.remove([document.entry for document in documents])  # what is in one alone does not count as in
            crash_point("index.before_lexical")
            lexical.add(documents)
            crash_point("index.after_lexical")
            vectors.add(documents)

    def remove(self, entries: Collection[int]) -> None:
        """Take them out. Durable on return."""
        with self._change() as (lexical, vectors):
            vectors.remove(entries)
            crash_point("index.before_lexical")
            lexical.remove(entries)
            crash_point("index.after_lexical")

    def words(self, query: str, *, allowed: Collection[int] | None, limit: int) -> list[Hit]:
        """The best chunks by BM25; see `Lexical.search`."""
        with self._open() as (lexical, _):
            return lexical.search(query, allowed=allowed, limit=limit)

    def nearest(self, vector: Floats, *, allowed: Collection[int] | None, limit: int) -> list[Hit]:
        """The best chunks by cosine; see `Vectors.nearest`."""
        with self._open() as (_, vectors):
            return vectors.nearest(vector, allowed=allowed, limit=limit)

    def chunks(self, keys: Sequence[tuple[int, int]]) -> list[Chunk | None]:
        """The chunks of (entry, chunk), in order; None for what is gone."""
        with self._open() as (lexical, _):
            return lexical.chunks(keys)

    def shares(self, query: str, keys: Sequence[tuple[int, int]]) -> list[list[float]]:
        """How much of the query each piece says; see `Lexical.shares`."""
        with self._open() as (lexical, _):
            return lexical.shares(query, keys)

    def cosines(self, vector: Floats, keys: Sequence[tuple[int, int]]) -> list[list[float]]:
        """How near each piece is; see `Vectors.cosines`."""
        with self._open() as (_, vectors):
            return vectors.cosines(vector, keys)

    def close(self) -> None:
        """Refuse what comes from now on. Waits for a change under way; a search under way goes on to its end."""
        with self._changing:
            self._parts = None

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Lexical, Vectors]]:
        from storage.lexical_files import LexicalDamaged
        from storage.vector_files import VectorsDamaged

        parts = self._parts
        if parts is None:
            raise IndexClosed("the index was closed")
        try:
            yield parts
        except (LexicalDamaged, VectorsDamaged):
            self.damaged = True
            raise

    @contextlib.contextmanager
    def _change(self) -> Iterator[tuple[Lexical, Vectors]]:
        with self._changing, self._open() as parts:
            try:
                yield parts
            except (OrchestratorError, ValueError):
                self.damaged |= _damaged(
                    self._folder, self.dimension, self._seals
                )  # what is in memory serves searches only
                with contextlib.suppress(OrchestratorError):  # the first error tells more; the next opening mends too
                    _mend(*parts)
                raise


def _damaged(folder: Path, dimension: int, seals: Seals) -> bool:
    """Whether what is open can't be opened again: somebody removed it or wrote to it. No, where that can't be told."""
    from storage.lexical import Lexical
    from storage.lexical_files import LexicalDamaged
    from storage.vector_files import Columns, VectorsDamaged, read_manifest

    try:
        if not folder.exists():
            return True
        Lexical(folder / "words", seals).close()
        Columns(folder / "vectors", read_manifest(folder / "vectors", dimension)).check(seals)
    except (LexicalDamaged, VectorsDamaged):
        return True
    except (OrchestratorError, OSError):
        return False
    return False


def _mend(lexical: Lexical, vectors: Vectors) -> None:
    """Take out what is in one alone."""
    half = lexical.entries() ^ vectors.entries()
    vectors.remove(half)
    lexical.remove(half)


class DiskShelves:
    """`ports.Shelves` in a folder. `open_max` indexes stay open unused, beside those that are in use."""

    def __init__(self, root: Path, open_max: int = OPEN_MAX) -> None:
        """Make the folder, and remove from it what other versions and an ended process left. Blocks."""
        self._root = root
        self._open_max = open_max
        self._bookkeeping = threading.Lock()
        self._seals = Seals()
        self._stores = tuple(threading.Lock() for _ in range(LOCKS))
        self._recent: OrderedDict[Path, DiskIndex] = OrderedDict()
        self._alive: WeakValueDictionary[Path, DiskIndex] = WeakValueDictionary()
        (root / VERSION).mkdir(parents=True, exist_ok=True)
        for folder in root.iterdir():
            if folder.name == "trash" or (folder.name != VERSION and _VERSIONS.fullmatch(folder.name)):
                shutil.rmtree(folder)

    def open(self, store: str, embedder: str, dimension: int) -> DiskIndex:
        """The index of a store for one embedder's vectors; an empty one when there is none, or it is damaged or of
        another version or dimension. Blocks. The same object while it is open."""
        folder = self._folder(store) / _name(embedder)
        with self._lock(store):
            index = self._known(folder)
            if index is not None and (index.damaged or index.dimension != dimension):
                self._drop(folder)
                index = None
            if index is None:
                index = self._opened(folder, dimension)
            self._keep(folder, index)
            return index

    def discard(self, store: str, *, keep: str | None = None) -> None:
        """Remove a store's indexes from the disk, but for that of the embedder `keep`. Blocks, for a change under way
        too. Those who have one of them open get `IndexClosed`."""
        kept = None if keep is None else _name(keep)
        home = self._folder(store)
        with self._lock(store), contextlib.suppress(FileNotFoundError):
            for folder in list(home.iterdir()):
                if folder.name != kept:
                    self._drop(folder)
            if kept is None:
                home.rmdir()

    def close(self) -> None:
        """Let go of all. Blocks, for changes under way too."""
        with self._bookkeeping:
            indexes = list(self._alive.values())
            self._recent.clear()
        for index in indexes:
            index.close()

    def _folder(self, store: str) -> Path:
        if not _STORE.fullmatch(store):
            raise ValueError("no id of a store")
        return self._root / VERSION / store

    def _lock(self, store: str) -> threading.Lock:
        return self._stores[hash(store) % LOCKS]

    def _known(self, folder: Path) -> DiskIndex | None:
        with self._bookkeeping:
            return self._alive.get(folder)

    def _keep(self, folder: Path, index: DiskIndex) -> None:
        with self._bookkeeping:
            self._alive[folder] = self._recent[folder] = index
            self._recent.move_to_end(folder)
            while len(self._recent) > self._open_max:
                self._recent.popitem(last=False)

    def _opened(self, folder: Path, dimension: int) -> DiskIndex:
        from storage.lexical_files import LexicalDamaged
        from storage.vector_files import VectorsDamaged

        try:
            return DiskIndex(folder, dimension, self._seals)
        except (LexicalDamaged, VectorsDamaged) as error:
            log.warning("index_damaged", store=folder.parent.name, error=str(error))
        self._drop(folder)
        return DiskIndex(folder, dimension, self._seals)

    def _drop(self, folder: Path) -> None:
        """Close the index and remove its folder, which is out of the way at once."""
        with self._bookkeeping:
            index = self._alive.pop(folder, None)
            self._recent.pop(folder, None)
        if index is not None:
            index.close()
        self._seals.forget(folder)
        trash = self._root / "trash" / uuid.uuid4().hex
        trash.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(trash)
            shutil.rmtree(trash)


def _name(embedder: str) -> str:
    return hashlib.sha256(embedder.encode()).hexdigest()[:32]
