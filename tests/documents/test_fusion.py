"""Fusion: what order and which scores come of two rankings, by examples and over any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.documents.fusion import Fused, fuse, merge
from orchestrator.documents.model import Hit


def hits(*keys: int) -> list[Hit]:
    """Best first; a key is an entry of one chunk."""
    return [Hit(entry=key, chunk=0, score=1.0 / rank) for rank, key in enumerate(keys, 1)]


def order(ranking: list[Fused]) -> list[int]:
    return [found.entry for found in ranking]


@pytest.mark.parametrize(
    ("words", "vectors", "text_weight", "embedding_weight", "expected"),
    [
        ((), (), 1, 1, []),
        ((5, 3), (), 1, 1, [5, 3]),
        ((), (5, 3), 1, 1, [5, 3]),
        ((1, 2), (2, 1), 1, 1, [1, 2]),  # a tie: the older first
        ((1, 2, 3), (3, 4), 1, 1, [3, 1, 2, 4]),  # found by both is worth more
        ((1, 2), (2, 1), 1, 1.5, [2, 1]),
        ((1, 2), (2, 1), 1.5, 1, [1, 2]),
        ((1, 2), (3, 4), 1, 0, [1, 2]),  # no weight: as if it was not asked
        ((1, 2), (3, 4), 0, 1, [3, 4]),
        ((1, 2), (3, 4), 0.001, 1000, [3, 4, 1, 2]),
    ],
)
def test_order(
    words: tuple[int, ...],
    vectors: tuple[int, ...],
    text_weight: float,
    embedding_weight: float,
    expected: list[int],
) -> None:
    fused = fuse(hits(*words), hits(*vectors), text_weight=text_weight, embedding_weight=embedding_weight)
    assert order(fused) == expected


def test_scores_say_how_far_down_a_chunk_stands() -> None:
    both = fuse(hits(1, 2), hits(1, 3))
    assert [(found.entry, found.word_rank, found.vector_rank) for found in both] == [
        (1, 1, 1),
        (2, 2, None),
        (3, None, 2),
    ]
    assert [found.score for found in both] == pytest.approx([1.0, 11 / 24, 11 / 24])
    alone = fuse(hits(*range(12)), [])
    assert alone[0].score == 1.0
    assert alone[11].score == pytest.approx(0.5)


def test_weights_are_shares() -> None:
    for scale in (1, 100):
        fused = fuse(hits(1), hits(2), text_weight=0.3 * scale, embedding_weight=0.7 * scale)
        assert {found.entry: found.score for found in fused} == pytest.approx({1: 0.3, 2: 0.7})


rankings = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), unique=True, max_size=20).map(
    lambda keys: [Hit(entry=entry, chunk=chunk, score=0.5) for entry, chunk in keys]
)
weights = st.floats(0.0, 10.0)


@given(words=rankings, vectors=rankings, text_weight=weights, embedding_weight=weights)
def test_of_any_two_rankings(words: list[Hit], vectors: list[Hit], text_weight: float, embedding_weight: float) -> None:
    fused = fuse(words, vectors, text_weight=text_weight, embedding_weight=embedding_weight)
    keys = [(found.entry, found.chunk) for found in fused]
    used = (words if text_weight else []) + (vectors if embedding_weight else [])
    assert len(keys) == len(set(keys)) and set(keys) == {(hit.entry, hit.chunk) for hit in used}
    scores = [found.score for found in fused]
    assert scores == sorted(scores, reverse=True)
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert all(found.word_rank or found.vector_rank for found in fused)
    if words and vectors and words[0] == vectors[0] and text_weight and embedding_weight:
        assert scores[0] == 1.0


@given(words=rankings, more=rankings)
def test_several_queries_give_each_chunk_its_best_score(words: list[Hit], more: list[Hit]) -> None:
    one, other = fuse(words, []), fuse(more, [])
    merged = merge([one, other])
    best: dict[tuple[int, int], float] = {}
    for found in one + other:
        key = (found.entry, found.chunk)
        best[key] = max(best.get(key, 0.0), found.score)
    assert {(found.entry, found.chunk): found.score for found in merged} == best
    assert [found.score for found in merged] == sorted(best.values(), reverse=True)
    assert merge([one]) == one
