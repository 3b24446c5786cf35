"""``python -m bench.retrieval FOLDER...``: how well search finds, on test collections (see `bench.collection`), and
what its scores say; with several collections, also of what the queries of one find in another, which nothing answers.

Through the product's own parts: its reading and cutting, its small embedder, its indexes, its fusion; and a reranker
where one is named.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Collection as Members
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.collection import Collection, CollectionError, ndcg, read, recall
from bench.retrieval_scores import NONSENSE, THRESHOLDS, ScoreRow, Scores, score_row, scored, together
from orchestrator.config import cache_dir
from orchestrator.documents.asking import ModelReranker
from orchestrator.documents.fusion import fuse
from orchestrator.documents.model import Chunking, Hit, Passages
from orchestrator.documents.pieces import pieces
from orchestrator.documents.ports import Embedder, Index, Indexed
from orchestrator.documents.relevance import UNRELATED, floor_of
from orchestrator.documents.search import DEPTH_MIN, JUDGED_MIN, RERANKED_MAX, Reranker
from orchestrator.errors import EmbedderUnavailable
from storage.embed.minilm import EmbeddedMiniLm
from storage.extract import formats
from storage.extract.chunking import chunk
from storage.extract.tokens import Offsets, tokenizer_offsets
from storage.shelves import DiskIndex

BATCH_DOCUMENTS = 200
WIDTH = 120
"""Of the table where no terminal says how wide it is."""
WAITS_MAX = 60
"""For a reranker that starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """How well one way of searching found, over all queries of a collection."""

    collection: str
    run: str
    ndcg: float
    """At 10, see `bench.collection.ndcg`."""
    recall: float
    """At 10."""


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 2 for a folder that can't be used."""
    options = _parser().parse_args(argv)
    try:
        collections = [read(folder) for folder in options.folders]
    except CollectionError as error:
        print(error, file=sys.stderr)
        return 2
    rows, scores = asyncio.run(_measured(collections, options.reranker, options.reranker_model))
    if options.json:
        lines: Sequence[Row | ScoreRow] = [*rows, *scores]
        print("\n".join(json.dumps(asdict(line)) for line in lines))
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        console.print(_table(rows))
        console.print(_score_table(scores))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.retrieval", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="with docs, queries and qrels.xml")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each figure instead of the table")
    parser.add_argument("--reranker", metavar="URL", help="a server with /v1/rerank; its key in OPENAI_API_KEY")
    parser.add_argument("--reranker-model", metavar="NAME", default="reranker")
    return parser


async def _measured(collections: Sequence[Collection], url: str | None, model: str) -> tuple[list[Row], list[ScoreRow]]:
    import httpx

    embedder = EmbeddedMiniLm(cache_dir(os.environ))
    secret = os.environ.get("OPENAI_API_KEY")
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    async with httpx.AsyncClient(base_url=url or "", headers=headers) as client:
        reranker = ModelReranker(client, model) if url else None
        rows, scores = list[Row](), list[ScoreRow]()
        try:
            for each in collections:
                others = [query for other in collections if other is not each for query in other.queries.values()]
                more_rows, more_scores = await _rows(each, others, embedder, reranker)
                rows += more_rows
                scores += more_scores
        finally:
            await embedder.aclose()
    return rows, scores


async def _rows(
    collection: Collection, unanswered: Sequence[str], embedder: EmbeddedMiniLm, reranker: Reranker | None
) -> tuple[list[Row], list[ScoreRow]]:
    with tempfile.TemporaryDirectory() as name:
        index = DiskIndex(Path(name) / "index", embedder.dimension)
        started = time.monotonic()
        await _fill(index, collection, embedder, Path(name) / "document.txt")
        _say(f"{collection.name}: {len(collection.documents)} documents in {time.monotonic() - started:.0f} s")
        rankings = await _rankings(index, collection, embedder, reranker)
        scores = await _scores(index, collection, unanswered, embedder)
        index.close()
    return [_row(collection, run, found) for run, found in rankings.items()], scores


async def _fill(index: Index, collection: Collection, embedder: EmbeddedMiniLm, path: Path) -> None:
    """Ingest all documents, each of which has its place in the collection as its entry."""
    await embedder.prepare()
    assert embedder.tokenizer_path
    offsets = tokenizer_offsets(embedder.tokenizer_path)
    batch: list[Indexed] = []
    for entry, text in enumerate(collection.documents.values()):
        passages = await asyncio.to_thread(_passages, text, path, offsets, embedder.piece_tokens_max)
        batch.append(await _indexed(entry, passages, embedder))
        if len(batch) == BATCH_DOCUMENTS:
            index.add(batch)
            batch = []
    index.add(batch)


def _passages(text: str, path: Path, offsets: Offsets, piece_tokens_max: int) -> Passages:
    """As an upload is read, but within this process."""
    path.write_text(text)
    document = formats.read(formats.recognise(path, path.name, "text/plain"), path, "text/plain")
    chunks = chunk(document.blocks, Chunking(), offsets, piece_tokens_max=piece_tokens_max, locate=document.locate)
    return Passages(chunks=tuple(chunks), title=document.title)


async def _indexed(entry: int, passages: Passages, embedder: Embedder) -> Indexed:
    cut = pieces(passages)
    vectors = await embedder.embed(cut.texts, wait=True)
    return Indexed(
        entry=entry, title=passages.title, chunks=passages.chunks, owners=cut.owners, vectors=vectors[list(cut.places)]
    )


async def _rankings(
    index: Index, collection: Collection, embedder: Embedder, reranker: Reranker | None
) -> dict[str, dict[str, list[str]]]:
    """For each way of searching, the documents that each query finds, best first."""
    ids = list(collection.documents)
    found: dict[str, dict[str, list[str]]] = {"BM25": {}, "vectors": {}, "fused": {}}
    spent_s = 0.0
    for id, query in collection.queries.items():
        started = time.monotonic()
        vector = (await embedder.embed([query], wait=False))[0]
        words = index.words(query, allowed=None, limit=DEPTH_MIN)
        near = index.nearest(vector, allowed=None, limit=DEPTH_MIN)
        fused = fuse(words, near)
        spent_s += time.monotonic() - started
        keys = [(one.entry, one.chunk) for one in fused]
        found["BM25"][id] = _documents(ids, _keys(words))
        found["vectors"][id] = _documents(ids, _keys(near))
        found["fused"][id] = _documents(ids, keys)
        if reranker is not None:
            reranked = await _reranked(index, reranker, query, keys[:RERANKED_MAX])
            found.setdefault("fused + reranker", {})[id] = _documents(ids, reranked + keys[RERANKED_MAX:])
    _say(f"{collection.name}: {1000 * spent_s / len(collection.queries):.0f} ms a query")
    return found


async def _scores(
    index: Index, collection: Collection, unanswered: Sequence[str], embedder: Embedder
) -> list[ScoreRow]:
    """What scores say of the collection's own queries, of those that it does not answer, and of nonsense."""
    ids = list(collection.documents)
    floor = floor_of(await embedder.embed(UNRELATED, wait=False))
    _say(f"{collection.name}: unrelated texts have a cosine of at most {floor:.3f}")

    async def of(queries: Mapping[str, Members[str]], *, by_vectors: bool) -> Scores:
        found = []
        for query, relevant in queries.items():
            vector = (await embedder.embed([query], wait=False))[0] if by_vectors else None
            words = index.words(query, allowed=None, limit=DEPTH_MIN)
            near = [] if vector is None else index.nearest(vector, allowed=None, limit=DEPTH_MIN)
            fused = fuse(words, near)[:JUDGED_MIN]
            flags = [ids[one.entry] in relevant for one in fused]
            found.append((scored(index, query, vector, floor, fused), flags))
        return together(found)

    own = {query: collection.relevant[id] for id, query in collection.queries.items()}
    kinds: dict[str, Mapping[str, Members[str]]] = {
        "its own": own,
        "of others": dict.fromkeys(unanswered, ()),
        "nonsense": dict.fromkeys(NONSENSE, ()),
    }
    return [
        score_row(collection.name, f"{kind}{way}", await of(queries, by_vectors=not way))
        for way in ("", ", words alone")
        for kind, queries in kinds.items()
        if queries
    ]


async def _reranked(
    index: Index, reranker: Reranker, query: str, keys: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    texts = [chunk.text if chunk else "" for chunk in index.chunks(keys)]
    for _ in range(WAITS_MAX):
        try:
            scores = await reranker.scores(query, texts)
            break
        except EmbedderUnavailable as error:
            await asyncio.sleep(error.retry_after_s)
    else:
        raise SystemExit("the reranker does not answer")
    return [key for _, key in sorted(zip(scores, keys, strict=True), key=lambda pair: -pair[0])]


def _keys(hits: Sequence[Hit]) -> list[tuple[int, int]]:
    return [(hit.entry, hit.chunk) for hit in hits]


def _documents(ids: Sequence[str], keys: Sequence[tuple[int, int]]) -> list[str]:
    """A document stands where its best chunk does."""
    return list(dict.fromkeys(ids[entry] for entry, _ in keys))


def _row(collection: Collection, run: str, found: Mapping[str, list[str]]) -> Row:
    pairs = [(ranking, collection.relevant[id]) for id, ranking in found.items()]
    return Row(
        collection=collection.name,
        run=run,
        ndcg=sum(ndcg(*pair) for pair in pairs) / len(pairs),
        recall=sum(recall(*pair) for pair in pairs) / len(pairs),
    )


def _table(rows: Sequence[Row]) -> Table:
    table = Table("collection", "run")
    table.add_column("nDCG@10", justify="right")
    table.add_column("recall@10", justify="right")
    for row in rows:
        table.add_row(row.collection, row.run, f"{row.ndcg:.3f}", f"{row.recall:.3f}")
    return table


def _score_table(rows: Sequence[ScoreRow]) -> Table:
    table = Table("collection", "queries", title=f"scores; thresholds {THRESHOLDS}")
    for title in ("relevant", "others", "best, p95", "area", "kept", "precision"):
        table.add_column(title, justify="right")
    for row in rows:
        kept, precision = (" ".join(map(_figure, by.values())) for by in (row.kept, row.precision))
        figures = map(_figure, (row.relevant, row.others, row.first_95, row.area))
        table.add_row(row.collection, row.queries, *figures, kept, precision)
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
