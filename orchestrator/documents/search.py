"""One search: words and vectors side by side, fused; with a reranker where there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from orchestrator.documents.embedders import Embedders
from orchestrator.documents.fusion import Fused, fuse, merge
from orchestrator.documents.model import Chunk, StoreFile, VectorStore
from orchestrator.documents.ports import Index, Shelves
from orchestrator.documents.roster import Roster
from orchestrator.documents.store_fields import Asked
from orchestrator.errors import EmbedderFailed, EmbedderUnavailable, OrchestratorError

if TYPE_CHECKING:
    from orchestrator.documents.ports import Vectors

DEPTH_MIN = 100
"""Chunks that each leg gives, at least: what only one leg ranks low may still win by both."""
WORDS_ALONE = "found by words alone"
RERANKED_MAX = 50
"""Chunks that a reranker is asked to judge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One chunk found."""

    file: StoreFile
    chunk: Chunk
    score: float
    """0 to 1."""
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

    async def search(self, store: VectorStore, asked: Asked) -> Found:
        """The best chunks of the store's completed files that pass the filter.

        Without the embedder, or while it starts, words alone decide; `Found.notice` says so.
        """
        queries, notice = await self._rewritten(asked)
        roster = await self._roster.of(store.id)
        index = await asyncio.to_thread(self._shelves.open, store.id, store.embedder, store.dimension)
        held = await asyncio.to_thread(index.entries)
        if len(held) < len(roster):  # it was damaged, or removed
            self._lacking(store.id)
            notice = Notice(text="some files are not found: they are being put into the index again")
        allowed = await asyncio.to_thread(_allowed, held, dict(roster), asked)
        depth = max(DEPTH_MIN, 2 * asked.limit)
        rankings = []
        if allowed is None or allowed:
            vectors, missing = await self._vectors(store, queries, asked)
            notice = missing if missing.text else notice
            for number, query in enumerate(queries):
                vector = vectors[number] if vectors is not None else None
                rankings.append(await asyncio.to_thread(_legs, index, query, vector, allowed, depth, asked))
        fused = merge(rankings)[: max(RERANKED_MAX, asked.limit)]
        chunks = await asyncio.to_thread(index.chunks, [(one.entry, one.chunk) for one in fused])
        roster = await self._roster.of(store.id)  # what was deleted meanwhile is not found
        results = _results(fused, chunks, roster)
        if self._reranker is not None and asked.ranking.rerank and results:
            results, missing = await self._reranked(self._reranker, queries, results)
            notice = missing if missing.text else notice
        kept = [one for one in results if one.score >= asked.ranking.score_threshold][: asked.limit]
        return Found(queries=queries, results=tuple(kept), notice=notice.text, retry_after_s=notice.retry_after_s)

    async def _rewritten(self, asked: Asked) -> tuple[tuple[str, ...], Notice]:
        if not asked.rewrite or self._rewriter is None:
            return asked.queries, Notice()
        try:
            return tuple([await self._rewriter.rewrite(query) for query in asked.queries]), Notice()
        except (EmbedderUnavailable, EmbedderFailed) as error:
            return asked.queries, _missing("the query was not rewritten", error)

    async def _vectors(self, store: VectorStore, queries: Sequence[str], asked: Asked) -> tuple[Vectors | None, Notice]:
        """The queries' vectors. Without, since

        1. the client or the configuration wants none: nothing is to be said;
        2. the store has none yet;
        3. nobody can make such vectors as the store has any more;
        4. their embedder is cold, or fails.
        """
        if not asked.ranking.embedding_weight or not (self._embedders.name or self._embedders.missing):
            return None, Notice()
        if not store.embedder:
            cause = self._embedders.missing or "its files have no vectors yet"
            return None, Notice(text=f"{WORDS_ALONE}: {cause}")
        embedder = self._embedders.named(store.embedder)
        if embedder is None:
            return None, Notice(text=f"{WORDS_ALONE}: the store is moving to another embedding model")
        try:
            vectors = await embedder.embed(queries, wait=False)
        except (EmbedderUnavailable, EmbedderFailed) as error:
            return None, _missing(WORDS_ALONE, error)
        if vectors.shape[1] != store.dimension:
            return None, Notice(text=f"{WORDS_ALONE}: {store.embedder} now gives vectors of another dimension")
        return vectors, Notice()

    async def _reranked(
        self, reranker: Reranker, queries: Sequence[str], results: Sequence[Result]
    ) -> tuple[Sequence[Result], Notice]:
        try:
            scores = await reranker.scores(" ".join(queries), [one.chunk.text for one in results])
        except (EmbedderUnavailable, EmbedderFailed) as error:
            return results, _missing("not reranked", error)
        return _resorted(results, scores), Notice()


def _allowed(held: frozenset[int], roster: Mapping[int, StoreFile], asked: Asked) -> Collection[int] | None:
    """The entries that may be found; None for all that the index holds, which are `held`."""
    if asked.filter is not None:
        return frozenset(entry for entry, file in roster.items() if asked.filter(file.attributes))
    return None if held <= roster.keys() else frozenset(roster)


def _legs(
    index: Index, query: str, vector: Vectors | None, allowed: Collection[int] | None, depth: int, asked: Asked
) -> list[Fused]:
    """Both legs of one query. Blocks."""
    ranking = asked.ranking
    words = index.words(query, allowed=allowed, limit=depth) if ranking.text_weight or vector is None else []
    near = index.nearest(vector, allowed=allowed, limit=depth) if vector is not None else []
    return fuse(words, near, text_weight=ranking.text_weight or 1.0, embedding_weight=ranking.embedding_weight)


def _results(
    fused: Sequence[Fused], chunks: Sequence[Chunk | None], roster: Mapping[int, StoreFile]
) -> Sequence[Result]:
    return [
        Result(
            file=roster[one.entry],
            chunk=chunk,
            score=one.score,
            word_rank=one.word_rank,
            vector_rank=one.vector_rank,
        )
        for one, chunk in zip(fused, chunks, strict=True)
        if chunk is not None and one.entry in roster
    ]


def _resorted(results: Sequence[Result], scores: Sequence[float]) -> Sequence[Result]:
    """By the reranker's scores; what it did not judge comes after, in its old order."""
    judged = [replace(one, score=min(max(score, 0.0), 1.0)) for one, score in zip(results, scores, strict=True)]
    return sorted(judged, key=lambda one: -one.score)


def _missing(what: str, error: OrchestratorError) -> Notice:
    retry_after_s = error.retry_after_s if isinstance(error, EmbedderUnavailable) else None
    return Notice(text=f"{what}: {error}", retry_after_s=retry_after_s)
