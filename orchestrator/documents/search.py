"""One search: words and vectors side by side, fused; with a reranker where there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from orchestrator.documents.embedders import Embedders
from orchestrator.documents.fusion import Fused, fuse, merge
from orchestrator.documents.model import Chunk, Place, StoreFile, VectorStore
from orchestrator.documents.ports import Embedder, Index, Shelves
from orchestrator.documents.relevance import UNRELATED, best_piece, descending, floor_of
from orchestrator.documents.roster import Roster
from orchestrator.documents.store_fields import Asked
from orchestrator.errors import EmbedderFailed, EmbedderUnavailable, IndexUnavailable, OrchestratorError

if TYPE_CHECKING:
    from orchestrator.documents.ports import Vectors

DEPTH_MIN = 100
"""Chunks that each leg gives, at least: what only one leg ranks low may still win by both."""
WORDS_ALONE = "found by words alone"
JUDGED_MIN = 10
"""Chunks whose relevance is looked at, at least: scores of neighbours depend on each other, see `relevance`."""
SCORE_DIGITS = 6
"""So that a score that a client was shown serves as a threshold."""
RERANKED_MAX = 50
"""Chunks that a reranker is asked to judge."""

Key = tuple[int, int]
"""An entry and the place of a chunk in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One chunk found."""

    file: StoreFile
    chunk: Chunk
    place: Place
    """Of the piece of the chunk that answers best."""
    score: float
    """0 to 1, see `relevance`."""
    word_rank: int | None
    vector_rank: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a search gives, best first."""

    queries: tuple[str, ...]
    results: tuple[Result, ...]
    notice: str = ""
    """What it had to do without, in one sentence."""
    retry_after_s: float | None = None
    """When that may be had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """What is missing now."""

    text: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Meant:
    """The queries as the legs take them."""

    queries: tuple[str, ...]
    by_words: bool
    """Whether words count."""
    vectors: Vectors | None = None
    """A row for each query; None: vectors don't count."""
    floor: float = 0.0
    """Of their embedder, see `relevance`."""


class _Judged(NamedTuple):
    """A chunk found, its best piece, and how relevant that is."""

    fused: Fused
    chunk: Chunk
    piece: int
    relevance: float


class Reranker(Protocol):
    """Judges passages against a query."""

    async def scores(self, query: str, passages: Sequence[str]) -> Sequence[float]:
        """One score a passage, 0 to 1. Raises `errors.EmbedderUnavailable` or `errors.EmbedderFailed`."""


class Rewriter(Protocol):
    """Makes of a question what is good to search for."""

    async def rewrite(self, query: str) -> str:
        """The query to search for. Raises `errors.EmbedderUnavailable` or `errors.EmbedderFailed`."""


class Search:
    """Searches stores. Blocks nothing: the indexes work in threads."""

    def __init__(
        self,
        *,
        shelves: Shelves,
        roster: Roster,
        embedders: Embedders,
        reranker: Reranker | None,
        rewriter: Rewriter | None,
        lacking: Callable[[str], None],
    ) -> None:
        """`lacking` is told of a store whose index lacks files."""
        self._shelves = shelves
        self._roster = roster
        self._embedders = embedders
        self._reranker = reranker
        self._rewriter = rewriter
        self._lacking = lacking
        self._floors: dict[str, float] = {}
        """Of the embedders that were asked."""

    async def search(self, store: VectorStore, asked: Asked) -> Found:
        """The best chunks of the store's completed files that pass the filter.

        Without the embedder, or while it starts, words alone decide; `Found.notice` says so.
        """
        try:
            return await self._search(store, asked)
        except IndexUnavailable:  # opened again it is whole, or new, and is filled
            return await self._search(store, asked)

    async def _search(self, store: VectorStore, asked: Asked) -> Found:
        queries, notice = await self._rewritten(asked)
        roster = await self._roster.of(store.id)
        index = await asyncio.to_thread(self._shelves.open, store.id, store.embedder, store.dimension)
        held = await asyncio.to_thread(index.entries)
        if roster.keys() - held:  # it was damaged, or removed
            self._lacking(store.id)
            notice = Notice(text="some files are not found: they are being put into the index again")
        allowed = await asyncio.to_thread(_allowed, held, dict(roster), asked)
        depth = max(DEPTH_MIN, 2 * asked.limit)
        results: Sequence[Result] = ()
        if allowed is None or allowed:
            meant, missing = await self._meant(store, queries, asked)
            notice = missing if missing.text else notice
            rankings = []
            for number in range(len(queries)):
                rankings.append(await asyncio.to_thread(_legs, index, meant, number, allowed, depth, asked))
            fused, reranked = merge(rankings), None
            if self._reranker is not None and asked.ranking.rerank and fused:
                reranked, missing = await self._reranked(self._reranker, index, queries, fused[:RERANKED_MAX])
                notice = missing if missing.text else notice
            if reranked is not None:
                fused = sorted(fused[:RERANKED_MAX], key=lambda one: -reranked[one.entry, one.chunk])
            judged = await asyncio.to_thread(_judged, index, meant, fused[: max(JUDGED_MIN, asked.limit)])
            roster = await self._roster.of(store.id)  # what was deleted meanwhile is not found
            results = _results(judged, reranked, roster)
        kept = [one for one in results if one.score >= asked.ranking.score_threshold][: asked.limit]
        return Found(queries=queries, results=tuple(kept), notice=notice.text, retry_after_s=notice.retry_after_s)

    async def _rewritten(self, asked: Asked) -> tuple[tuple[str, ...], Notice]:
        if not asked.rewrite or self._rewriter is None:
            return asked.queries, Notice()
        try:
            return tuple([await self._rewriter.rewrite(query) for query in asked.queries]), Notice()
        except (EmbedderUnavailable, EmbedderFailed) as error:
            return asked.queries, _missing("the query was not rewritten", error)

    async def _meant(self, store: VectorStore, queries: tuple[str, ...], asked: Asked) -> tuple[Meant, Notice]:
        """The queries with their vectors. Without, since

        1. the client or the configuration wants none: nothing is to be said;
        2. the store has none yet;
        3. nobody can make such vectors as the store has any more;
        4. their embedder is cold, or fails.
        """
        words = Meant(queries=queries, by_words=True)
        if not asked.ranking.embedding_weight or not (self._embedders.name or self._embedders.missing):
            return words, Notice()
        if not store.embedder:
            cause = self._embedders.missing or "its files have no vectors yet"
            return words, Notice(text=f"{WORDS_ALONE}: {cause}")
        embedder = self._embedders.named(store.embedder)
        if embedder is None:
            return words, Notice(text=f"{WORDS_ALONE}: the store is moving to another embedding model")
        try:
            vectors, floor = await self._embedded(embedder, queries)
        except (EmbedderUnavailable, EmbedderFailed) as error:
            return words, _missing(WORDS_ALONE, error)
        if vectors.shape[1] != store.dimension:
            return words, Notice(text=f"{WORDS_ALONE}: {store.embedder} now gives vectors of another dimension")
        by_words = asked.ranking.text_weight > 0
        return Meant(queries=queries, by_words=by_words, vectors=vectors, floor=floor), Notice()

    async def _embedded(self, embedder: Embedder, queries: Sequence[str]) -> tuple[Vectors, float]:
        """The queries' vectors, and the embedder's floor, for which it is asked once more at its first search."""
        vectors = await embedder.embed(queries, wait=False)
        if embedder.name not in self._floors:
            self._floors[embedder.name] = floor_of(await embedder.embed(UNRELATED, wait=False))
        return vectors, self._floors[embedder.name]

    async def _reranked(
        self, reranker: Reranker, index: Index, queries: Sequence[str], fused: Sequence[Fused]
    ) -> tuple[Mapping[Key, float] | None, Notice]:
        """The reranker's scores, 0 to 1; None where it can't be had."""
        keys = [(one.entry, one.chunk) for one in fused]
        chunks = await asyncio.to_thread(index.chunks, keys)
        try:
            scores = await reranker.scores(" ".join(queries), [chunk.text if chunk else "" for chunk in chunks])
        except (EmbedderUnavailable, EmbedderFailed) as error:
            return None, _missing("not reranked", error)
        return {key: min(max(score, 0.0), 1.0) for key, score in zip(keys, scores, strict=True)}, Notice()


def _allowed(held: frozenset[int], roster: Mapping[int, StoreFile], asked: Asked) -> Collection[int] | None:
    """The entries that may be found; None for all that the index holds, which are `held`."""
    if asked.filter is not None:
        return frozenset(entry for entry, file in roster.items() if asked.filter(file.attributes))
    return None if held <= roster.keys() else frozenset(roster)


def _legs(
    index: Index, meant: Meant, number: int, allowed: Collection[int] | None, depth: int, asked: Asked
) -> list[Fused]:
    """Both legs of one query. Blocks."""
    ranking, query, vectors = asked.ranking, meant.queries[number], meant.vectors
    words = index.words(query, allowed=allowed, limit=depth) if meant.by_words else []
    near = index.nearest(vectors[number], allowed=allowed, limit=depth) if vectors is not None else []
    return fuse(words, near, text_weight=ranking.text_weight or 1.0, embedding_weight=ranking.embedding_weight)


def _judged(index: Index, meant: Meant, fused: Sequence[Fused]) -> Sequence[_Judged]:
    """What is to be known of these, in their order; without those that are gone. Blocks."""
    pieces: dict[Key, tuple[int, float]] = {}
    for number, query in enumerate(meant.queries):
        own = [(one.entry, one.chunk) for one in fused if one.query == number]
        none: list[list[float]] = [[] for _ in own]
        shares = index.shares(query, own) if meant.by_words else none
        cosines = index.cosines(meant.vectors[number], own) if meant.vectors is not None else none
        for key, near, said in zip(own, cosines, shares, strict=True):
            pieces[key] = best_piece(near, said, meant.floor)
    chunks = index.chunks([(one.entry, one.chunk) for one in fused])
    return [
        _Judged(one, chunk, *pieces[one.entry, one.chunk])
        for one, chunk in zip(fused, chunks, strict=True)
        if chunk is not None
    ]


def _results(
    judged: Sequence[_Judged], reranked: Mapping[Key, float] | None, roster: Mapping[int, StoreFile]
) -> Sequence[Result]:
    """Those that are still there; no score is above one before it."""
    there = [one for one in judged if one.fused.entry in roster]
    if reranked is None:
        scores = descending([one.relevance for one in there])
    else:
        scores = [reranked[one.fused.entry, one.fused.chunk] for one in there]
    return [
        Result(
            file=roster[one.fused.entry],
            chunk=one.chunk,
            place=one.chunk.parts[min(one.piece, len(one.chunk.parts) - 1)].place,
            score=round(score, SCORE_DIGITS),
            word_rank=one.fused.word_rank,
            vector_rank=one.fused.vector_rank,
        )
        for one, score in zip(there, scores, strict=True)
    ]


def _missing(what: str, error: OrchestratorError) -> Notice:
    retry_after_s = error.retry_after_s if isinstance(error, EmbedderUnavailable) else None
    return Notice(text=f"{what}: {error}", retry_after_s=retry_after_s)
