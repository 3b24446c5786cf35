"""``python -m bench.retrieval FOLDER...``: how well search finds, on test collections (see `bench.collection`).

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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.collection import Collection, CollectionError, ndcg, read, recall
from orchestrator.config import cache_dir
from orchestrator.documents.asking import ModelReranker
from orchestrator.documents.fusion import fuse
from orchestrator.documents.model import Chunking, Hit, Passages
from orchestrator.documents.pieces import pieces
from orchestrator.documents.ports import Embedder, Index, Indexed
from orchestrator.documents.search import DEPTH_MIN, RERANKED_MAX, Reranker
from orchestrator.errors import EmbedderUnavailable
from storage.embed.minilm import EmbeddedMiniLm
from storage.extract import formats
from storage.extract.chunking import chunk
from storage.extract.tokens import Offsets, tokenizer_offsets
from storage.shelves import DiskIndex

BATCH_DOCUMENTS = 200
WIDTH = 100
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
    rows = asyncio.run(_measured(collections, options.reranker, options.reranker_model))
    if options.json:
        print("\n".join(json.dumps(asdict(row)) for row in rows))
    else:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(_table(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.retrieval", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="with docs, queries and qrels.xml")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each figure instead of the table")
    parser.add_argument("--reranker", metavar="URL", help="a server with /v1/rerank; its key in OPENAI_API_KEY")
    parser.add_argument("--reranker-model", metavar="NAME", default="reranker")
    return parser


async def _measured(collections: Sequence[Collection], url: str | None, model: str) -> list[Row]:
    import httpx

    embedder = EmbeddedMiniLm(cache_dir(os.environ))
    secret = os.environ.get("OPENAI_API_KEY")
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    async with httpx.AsyncClient(base_url=url or "", headers=headers) as client:
        reranker = ModelReranker(client, model) if url else None
        try:
            return [row for each in collections for row in await _rows(each, embedder, reranker)]
        finally:
            await embedder.aclose()


async def _rows(collection: Collection, embedder: EmbeddedMiniLm, reranker: Reranker | None) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        index = DiskIndex(Path(name) / "index", embedder.dimension)
        started = time.monotonic()
        await _fill(index, collection, embedder, Path(name) / "document.txt")
        _say(f"{collection.name}: {len(collection.documents)} documents in {time.monotonic() - started:.0f} s")
        rankings = await _rankings(index, collection, embedder, reranker)
        index.close()
    return [_row(collection, run, found) for run, found in rankings.items()]


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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
