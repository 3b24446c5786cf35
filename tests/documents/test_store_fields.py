"""What requests to vector stores may say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.documents import store_fields as fields
from orchestrator.documents.model import Chunking
from orchestrator.errors import ApiError


def static(**given: Any) -> dict[str, Any]:
    return {"chunking_strategy": {"type": "static", "static": given}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, Chunking()),
        ({"chunking_strategy": {"type": "auto"}}, Chunking()),
        (static(), Chunking(auto=False)),
        (
            static(max_chunk_size_tokens=100, chunk_overlap_tokens=50),
            Chunking(chunk_tokens_max=100, overlap_tokens=50, auto=False),
        ),
        (static(max_chunk_size_tokens=300), Chunking(chunk_tokens_max=300, overlap_tokens=150, auto=False)),
        (
            static(max_chunk_size_tokens=4096, chunk_overlap_tokens=0),
            Chunking(chunk_tokens_max=4096, overlap_tokens=0, auto=False),
        ),
    ],
)
def test_chunking(body: dict[str, Any], expected: Chunking) -> None:
    assert fields.chunking(body) == expected


@pytest.mark.parametrize(
    ("parse", "body", "param"),
    [
        (fields.chunking, {"chunking_strategy": "auto"}, "chunking_strategy"),
        (fields.chunking, {"chunking_strategy": {"type": "static"}}, "chunking_strategy.static"),
        (
            fields.chunking,
            static(max_chunk_size_tokens=99),
            "chunking_strategy.static.max_chunk_size_tokens",
        ),
        (
            fields.chunking,
            static(max_chunk_size_tokens=True),
            "chunking_strategy.static.max_chunk_size_tokens",
        ),
        (
            fields.chunking,
            static(max_chunk_size_tokens=200, chunk_overlap_tokens=101),
            "chunking_strategy.static.chunk_overlap_tokens",
        ),
        (fields.metadata, {"metadata": {"k": 1}}, "metadata"),
        (fields.metadata, {"metadata": {"k": "x" * 513}}, "metadata"),
        (fields.metadata, {"metadata": {"": "x"}}, "metadata"),
        (fields.metadata, {"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        (fields.attributes, {"attributes": {"k": None}}, "attributes"),
        (fields.attributes, {"attributes": {"k": ["x"]}}, "attributes"),
        (fields.expires_after_days, {"expires_after": {"anchor": "created_at", "days": 1}}, "expires_after"),
        (fields.expires_after_days, {"expires_after": {"anchor": "last_active_at", "days": 0}}, "expires_after"),
        (fields.expires_after_days, {"expires_after": 7}, "expires_after"),
        (fields.wanted_file, {}, "file_id"),
        (fields.wanted_files, {}, "file_ids"),
        (fields.wanted_files, {"file_ids": ["a"], "files": []}, "file_ids"),
        (fields.wanted_files, {"file_ids": []}, "file_ids"),
        (fields.wanted_files, {"file_ids": [1]}, "file_ids"),
        (fields.wanted_files, {"files": ["a"]}, "files"),
        (fields.wanted_files, {"file_ids": ["a"] * (fields.FILES_MAX + 1)}, "file_ids"),
        (fields.asked, {}, "query"),
        (fields.asked, {"query": ""}, "query"),
        (fields.asked, {"query": []}, "query"),
        (fields.asked, {"query": ["a", 1]}, "query"),
        (fields.asked, {"query": "x" * (fields.QUERY_CHARS_MAX + 1)}, "query"),
        (fields.asked, {"query": "a", "max_num_results": 0}, "max_num_results"),
        (fields.asked, {"query": "a", "max_num_results": 51}, "max_num_results"),
        (fields.asked, {"query": "a", "rewrite_query": "yes"}, "rewrite_query"),
        (fields.asked, {"query": "a", "include": ["everything"]}, "include"),
        (fields.asked, {"query": "a", "include": [{}]}, "include"),
        (fields.asked, {"query": "a", "filters": "x"}, "filters"),
        (fields.asked, {"query": "a", "ranking_options": 1}, "ranking_options"),
        (fields.asked, {"query": "a", "ranking_options": {"ranker": "best"}}, "ranking_options.ranker"),
        (
            fields.asked,
            {"query": "a", "ranking_options": {"score_threshold": 1.1}},
            "ranking_options.score_threshold",
        ),
        (
            fields.asked,
            {"query": "a", "ranking_options": {"hybrid_search": {"text_weight": 0, "embedding_weight": 0}}},
            "ranking_options.hybrid_search",
        ),
    ],
)
def test_what_is_refused_names_its_field(
    parse: Callable[[dict[str, Any]], object], body: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        parse(body)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_search_with_everything() -> None:
    asked = fields.asked(
        {
            "query": ["one", "two", "one"],
            "filters": {"type": "eq", "key": "k", "value": 1},
            "max_num_results": 50,
            "rewrite_query": True,
            "include": ["ranks"],
            "ranking_options": {
                "ranker": "none",
                "score_threshold": 0.25,
                "hybrid_search": {"text_weight": 0, "embedding_weight": 2},
            },
        }
    )
    assert (asked.queries, asked.limit, asked.rewrite, asked.ranks) == (("one", "two"), 50, True, True)
    assert asked.ranking == fields.Ranking(text_weight=0.0, embedding_weight=2.0, score_threshold=0.25, rerank=False)
    assert asked.filter is not None and asked.filter({"k": 1})


def test_a_batch_names_each_file_once() -> None:
    both = [{"file_id": "a"}, {"file_id": "a", "attributes": {"k": 1}}, {"file_id": "b"}]
    assert [(w.file, w.attributes) for w in fields.wanted_files({"files": both})] == [("a", {"k": 1}), ("b", {})]
    assert [w.file for w in fields.wanted_files({"file_ids": ["b", "a", "b"]})] == ["b", "a"]


NAMES = ("query", "filters", "ranking_options", "include", "max_num_results", "files")
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(NAMES), json))
def test_any_json_is_taken_or_refused(body: dict[str, Any]) -> None:
    for parse in (fields.asked, fields.wanted_files, fields.attributes, fields.chunking):
        try:
            parse(body)
        except ApiError as error:
            assert error.status == 400
