"""Vector stores as OpenAI's API shows them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.documents.model import (
    Chunk,
    Chunking,
    FileBatch,
    FileCounts,
    IngestStatus,
    Place,
    StoreFile,
    VectorStore,
)
from orchestrator.documents.search import Found, Result
from orchestrator.documents.stores import expired

Json = dict[str, Any]


def store_view(store: VectorStore, counts: FileCounts, usage_bytes: int, now_unix: int) -> Json:
    """A `vector_store`; beyond OpenAI's fields, the model and dimension of its vectors."""
    days = store.expires_after_days
    return {
        "id": store.id,
        "object": "vector_store",
        "created_at": store.created_unix,
        "name": store.name,
        "description": store.description,
        "usage_bytes": usage_bytes,
        "file_counts": counts_view(counts),
        "status": _store_status(store, counts, now_unix),
        "expires_after": None if days is None else {"anchor": "last_active_at", "days": days},
        "expires_at": store.expires_unix,
        "last_active_at": store.last_active_unix,
        "metadata": dict(store.metadata),
        "embedding": {"model": store.embedder, "dimension": store.dimension} if store.embedder else None,
    }


def counts_view(counts: FileCounts) -> Json:
    """`file_counts`."""
    return {
        "in_progress": counts.in_progress,
        "completed": counts.completed,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "total": counts.total,
    }


def file_view(file: StoreFile, progress: float | None = None) -> Json:
    """A `vector_store.file`; beyond OpenAI's fields, its name, its chunks, and how far its reading is."""
    error = file.last_error
    return {
        "id": file.file,
        "object": "vector_store.file",
        "created_at": file.created_unix,
        "vector_store_id": file.store,
        "status": file.status,
        "last_error": None if error is None else {"code": error.code, "message": error.message},
        "usage_bytes": file.usage_bytes,
        "attributes": dict(file.attributes),
        "chunking_strategy": chunking_view(file.chunking),
        "filename": file.filename,
        "chunks": file.chunks,
        "progress": 1.0 if file.status is IngestStatus.COMPLETED else progress or 0.0,
    }


def chunking_view(chunking: Chunking) -> Json:
    """`chunking_strategy`: what `auto` came to."""
    static = {"max_chunk_size_tokens": chunking.chunk_tokens_max, "chunk_overlap_tokens": chunking.overlap_tokens}
    return {"type": "static", "static": static}


def batch_view(batch: FileBatch, counts: FileCounts) -> Json:
    """A `vector_store.files_batch`."""
    return {
        "id": batch.id,
        "object": "vector_store.files_batch",
        "created_at": batch.created_unix,
        "vector_store_id": batch.store,
        "status": _batch_status(batch, counts),
        "file_counts": counts_view(counts),
    }


def content_view(chunks: Sequence[Chunk]) -> Json:
    """A page of parsed content."""
    data = [{"type": "text", "text": chunk.text, "place": place_view(chunk.place)} for chunk in chunks]
    return {"object": "vector_store.file_content.page", "data": data, "has_more": False, "next_page": None}


def place_view(place: Place) -> Json:
    """Where a passage stands in its source. The bytes of a search result are those of the piece that answers best."""
    return {
        "page": place.page,
        "page_end": place.page_end,
        "headings": list(place.headings),
        "start_byte": place.start_byte,
        "end_byte": place.end_byte,
    }


def found_view(found: Found, *, ranks: bool) -> Json:
    """A page of search results; beyond OpenAI's fields, what the search had to do without."""
    notice = {"message": found.notice, "retry_after_s": found.retry_after_s} if found.notice else None
    return {
        "object": "vector_store.search_results.page",
        "search_query": list(found.queries),
        "data": [_result_view(one, ranks=ranks) for one in found.results],
        "has_more": False,
        "next_page": None,
        "notice": notice,
    }


def _result_view(result: Result, *, ranks: bool) -> Json:
    view: Json = {
        "file_id": result.file.file,
        "filename": result.file.filename,
        "score": result.score,
        "attributes": dict(result.file.attributes),
        "content": [{"type": "text", "text": result.chunk.text}],
        "place": place_view(result.place),
    }
    if ranks:
        view["ranks"] = {"text": result.word_rank, "embedding": result.vector_rank}
    return view


def _store_status(store: VectorStore, counts: FileCounts, now_unix: int) -> str:
    if expired(store, now_unix):
        return "expired"
    return "in_progress" if counts.in_progress else "completed"


def _batch_status(batch: FileBatch, counts: FileCounts) -> str:
    """`failed` only when nothing of it came through, as OpenAI's."""
    if batch.cancelled:
        return "cancelled"
    if counts.in_progress:
        return "in_progress"
    return "failed" if counts.failed and not counts.completed else "completed"
