"""What requests to vector stores may say, checked. Pure: each function raises `ApiError` 400 that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.documents.checks import bad, known
from orchestrator.documents.filters import Filter, parse_filter
from orchestrator.documents.model import (
    CHUNK_TOKENS_DEFAULT,
    CHUNK_TOKENS_MAX,
    CHUNK_TOKENS_MIN,
    OVERLAP_TOKENS_DEFAULT,
    Attributes,
    Chunking,
)

PAIRS_MAX = 16
KEY_CHARS_MAX = 64
VALUE_CHARS_MAX = 512
"""Of metadata and attributes: https://platform.openai.com/docs/api-reference/vector-stores/create."""
NAME_CHARS_MAX = 256
DESCRIPTION_CHARS_MAX = 2000
EXPIRY_DAYS_MAX = 365
FILES_MAX = 500
"""Files of one call."""
QUERIES_MAX = 16
QUERY_CHARS_MAX = 10_000
RESULTS_DEFAULT = 10
RESULTS_MAX = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A file that is to join a store."""

    file: str
    attributes: Attributes
    chunking: Chunking


@dataclass(frozen=True, kw_only=True, slots=True)
class NewStore:
    """A vector store that is to be made."""

    name: str = ""
    description: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    expires_after_days: int | None = None
    files: tuple[Wanted, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """How the legs of a search count."""

    text_weight: float = 1.0
    embedding_weight: float = 1.0
    score_threshold: float = 0.0
    rerank: bool = True
    """Whether a reranker may be asked, where there is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A search."""

    queries: tuple[str, ...]
    filter: Filter | None = None
    limit: int = RESULTS_DEFAULT
    ranking: Ranking = Ranking()
    ranks: bool = False
    rewrite: bool = False


def new_store(body: Mapping[str, Any]) -> NewStore:
    """All that is said of it."""
    known(body, ("name", "description", "metadata", "expires_after", "file_ids", "chunking_strategy"))
    strategy = chunking(body)
    return NewStore(
        name=text(body, "name", NAME_CHARS_MAX) or "",
        description=text(body, "description", DESCRIPTION_CHARS_MAX),
        metadata=metadata(body),
        expires_after_days=expires_after_days(body),
        files=tuple(Wanted(file=id, attributes={}, chunking=strategy) for id in file_ids(body)),
    )


def text(body: Mapping[str, Any], name: str, chars_max: int) -> str | None:
    """A string, or nothing."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > chars_max:
        raise bad(name, f"{name} is a string of at most {chars_max} characters")
    return value


def metadata(body: Mapping[str, Any]) -> dict[str, str]:
    """Pairs of strings."""
    pairs = _pairs(body, "metadata")
    for key, value in pairs.items():
        if not isinstance(value, str) or len(value) > VALUE_CHARS_MAX:
            raise bad("metadata", f"metadata[{key!r}] is a string of at most {VALUE_CHARS_MAX} characters")
    return pairs


def attributes(body: Mapping[str, Any]) -> Attributes:
    """Pairs of a name and a string, number or boolean."""
    pairs = _pairs(body, "attributes")
    for key, value in pairs.items():
        if not isinstance(value, str | int | float | bool):
            raise bad("attributes", f"attributes[{key!r}] is a string, a number or a boolean")
        if isinstance(value, str) and len(value) > VALUE_CHARS_MAX:
            raise bad("attributes", f"attributes[{key!r}] has more than {VALUE_CHARS_MAX} characters")
    return pairs


def expires_after_days(body: Mapping[str, Any]) -> int | None:
    """Days after the last use, or nothing."""
    value = body.get("expires_after")
    if value is None:
        return None
    days = value.get("days") if isinstance(value, dict) else None
    if not isinstance(value, dict) or value.get("anchor") != "last_active_at" or not _is_int(days, 1, EXPIRY_DAYS_MAX):
        shape = '{"anchor": "last_active_at", "days": N}'
        raise bad("expires_after", f"expires_after is {shape}, 1 to {EXPIRY_DAYS_MAX} days")
    return int(value["days"])


def chunking(body: Mapping[str, Any]) -> Chunking:
    """The strategy, with OpenAI's bounds."""
    value = body.get("chunking_strategy")
    if value is None:
        return Chunking()
    if not isinstance(value, dict) or value.get("type") not in ("auto", "static"):
        raise bad("chunking_strategy", 'chunking_strategy.type is "auto" or "static"')
    if value["type"] == "auto":
        return Chunking()
    static = value.get("static")
    if not isinstance(static, dict):
        raise bad("chunking_strategy.static", "a static strategy has an object `static`")
    size = static.get("max_chunk_size_tokens", CHUNK_TOKENS_DEFAULT)
    if not _is_int(size, CHUNK_TOKENS_MIN, CHUNK_TOKENS_MAX):
        raise bad(
            "chunking_strategy.static.max_chunk_size_tokens",
            f"max_chunk_size_tokens is a whole number from {CHUNK_TOKENS_MIN} to {CHUNK_TOKENS_MAX}",
        )
    overlap = static.get("chunk_overlap_tokens", min(OVERLAP_TOKENS_DEFAULT, size // 2))
    if not _is_int(overlap, 0, size // 2):
        raise bad(
            "chunking_strategy.static.chunk_overlap_tokens",
            "chunk_overlap_tokens is a whole number, at most half of max_chunk_size_tokens",
        )
    return Chunking(chunk_tokens_max=size, overlap_tokens=overlap, auto=False)


def wanted_file(body: Mapping[str, Any]) -> Wanted:
    """One file that is to join."""
    file = body.get("file_id")
    if not isinstance(file, str) or not file:
        raise bad("file_id", "file_id is the id of a file")
    return Wanted(file=file, attributes=attributes(body), chunking=chunking(body))


def wanted_files(body: Mapping[str, Any]) -> tuple[Wanted, ...]:
    """The files of a batch: ``file_ids`` that share everything, or ``files`` each with its own."""
    ids, files = body.get("file_ids"), body.get("files")
    if (ids is None) is (files is None):
        raise bad("file_ids", "give either file_ids or files")
    if ids is not None:
        shared = wanted_file({**body, "file_id": "shared"})
        return tuple(
            Wanted(file=id, attributes=shared.attributes, chunking=shared.chunking) for id in file_ids(body, least=1)
        )
    if not isinstance(files, list) or not 1 <= len(files) <= FILES_MAX:
        raise bad("files", f"files is a list of 1 to {FILES_MAX}")
    if not all(isinstance(one, dict) for one in files):
        raise bad("files", "each of files is an object with a file_id")
    given = [wanted_file(one) for one in files]
    return tuple({one.file: one for one in given}.values())


def file_ids(body: Mapping[str, Any], *, least: int = 0) -> tuple[str, ...]:
    """Ids, each once."""
    ids = body.get("file_ids")
    if ids is None and not least:
        return ()
    if not isinstance(ids, list) or not least <= len(ids) <= FILES_MAX:
        raise bad("file_ids", f"file_ids is a list of {least} to {FILES_MAX} ids")
    if not all(isinstance(id, str) for id in ids):
        raise bad("file_ids", "each of file_ids is a string")
    return tuple(dict.fromkeys(ids))


def asked(body: Mapping[str, Any]) -> Asked:
    """A search. ``null`` is what is not given."""
    body = {name: value for name, value in body.items() if value is not None}
    include = body.get("include") or []
    if not isinstance(include, list) or any(one != "ranks" for one in include):
        raise bad("include", 'include is a list that may hold "ranks"')
    limit = body.get("max_num_results", RESULTS_DEFAULT)
    if not _is_int(limit, 1, RESULTS_MAX):
        raise bad("max_num_results", f"max_num_results is a whole number from 1 to {RESULTS_MAX}")
    rewrite = body.get("rewrite_query", False)
    if not isinstance(rewrite, bool):
        raise bad("rewrite_query", "rewrite_query is true or false")
    return Asked(
        queries=_queries(body.get("query")),
        filter=parse_filter(body.get("filters")),
        limit=limit,
        ranking=_ranking(body.get("ranking_options")),
        ranks="ranks" in include,
        rewrite=rewrite,
    )


def _queries(value: object) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not 1 <= len(given) <= QUERIES_MAX:
        raise bad("query", f"query is a string, or a list of 1 to {QUERIES_MAX}")
    for query in given:
        if not isinstance(query, str) or not query.strip() or len(query) > QUERY_CHARS_MAX:
            raise bad("query", f"a query is a string of 1 to {QUERY_CHARS_MAX} characters")
    return tuple(dict.fromkeys(given))


def _ranking(value: object) -> Ranking:
    if value is None:
        return Ranking()
    if not isinstance(value, dict):
        raise bad("ranking_options", "ranking_options is an object")
    ranker = value.get("ranker", "auto")
    if ranker not in ("auto", "default-2024-11-15", "none"):
        raise bad("ranking_options.ranker", 'ranker is "auto", "default-2024-11-15" or "none"')
    hybrid = value.get("hybrid_search") or {}
    if not isinstance(hybrid, dict):
        raise bad("ranking_options.hybrid_search", "hybrid_search is an object")
    where = "ranking_options.hybrid_search"
    text_weight = _weight(hybrid, where, "text_weight")
    embedding_weight = _weight(hybrid, where, "embedding_weight")
    if not text_weight + embedding_weight:
        raise bad(where, "one of text_weight and embedding_weight is above zero")
    return Ranking(
        text_weight=text_weight,
        embedding_weight=embedding_weight,
        score_threshold=_number(value, "ranking_options", "score_threshold", 0.0, 1.0),
        rerank=ranker != "none",
    )


def _weight(body: Mapping[str, Any], where: str, name: str) -> float:
    return _number({name: 1.0, **body}, where, name, 0.0, 1e6)


def _number(body: Mapping[str, Any], where: str, name: str, low: float, high: float) -> float:
    value = body.get(name, low)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise bad(f"{where}.{name}", f"{name} is a number from {low:g} to {high:g}")
    return float(value)


def _pairs(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > PAIRS_MAX:
        raise bad(name, f"{name} is an object of at most {PAIRS_MAX} pairs")
    for key in value:
        if not 1 <= len(key) <= KEY_CHARS_MAX:
            raise bad(name, f"a key of {name} has 1 to {KEY_CHARS_MAX} characters")
    return value


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
