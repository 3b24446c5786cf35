"""Scores: what they are made of, which piece is cited, and that they fall."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.documents.relevance import FLOOR_MAX, UNRELATED, best_piece, descending, floor_of, relevance

UNIT = st.floats(0.0, 1.0)


def vectors(common: float, seed: int = 1, dimension: int = 384) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Of unrelated texts, by an embedder whose vectors have a direction in common."""
    rows = np.random.default_rng(seed).standard_normal((len(UNRELATED), dimension)) / dimension**0.5
    rows[:, 0] += common
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def test_the_floor_is_above_what_unrelated_texts_have() -> None:
    assert 0.1 < floor_of(vectors(0.0)) < 0.2
    for common in (1.0, 2.0, 4.0):
        cosine = common**2 / (1 + common**2)
        assert cosine < floor_of(vectors(common)) < cosine + 0.1
    assert floor_of(np.ones((5, 1), np.float32)) == FLOOR_MAX  # all its vectors are the same: they say nothing
    assert len(set(UNRELATED)) == len(UNRELATED)


@pytest.mark.parametrize("common", [0.0, 1.0, 2.0])
def test_scores_of_embedders_whose_vectors_lie_close_together_compare(common: float) -> None:
    floor = floor_of(vectors(common))
    rows = vectors(common, seed=2)
    query = np.asarray(0.8 * rows[0] + 0.6 * vectors(common, seed=3)[0])
    query /= np.linalg.norm(query)
    assert relevance(float(rows[1] @ query), 0.0, floor) < 0.1
    assert 0.5 < relevance(float(rows[0] @ query), 0.0, floor) < 0.9


@pytest.mark.parametrize(
    ("cosine", "share", "floor", "expected"),
    [
        (1.0, 0.0, 0.3, 1.0),
        (0.3, 0.0, 0.3, 0.0),
        (-1.0, 0.0, 0.3, 0.0),
        (0.65, 0.0, 0.3, 0.5),
        (0.65, 0.5, 0.3, 0.625),  # together they say more than each
        (None, 0.5, 0.3, 0.25),  # without vectors
        (None, 1.0, 0.0, 1.0),
        (0.1, 1.0, 0.3, 1.0),
        (None, 0.0, 0.0, 0.0),
        (1.001, 1.0001, 0.0, 1.0),
    ],
)
def test_relevance(cosine: float | None, share: float, floor: float, expected: float) -> None:
    assert relevance(cosine, share, floor) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("cosines", "shares", "expected"),
    [
        ([0.2, 0.6, 0.4], [0.0, 0.0, 0.0], 1),
        ([0.4, 0.3], [0.0, 1.0], 1),  # a code that only words tell
        ([], [0.3, 0.9, 0.9], 1),
        ([0.3, 0.5], [], 1),
        ([], [], 0),
        ([0.0, 0.0], [0.0, 0.0], 0),
    ],
)
def test_the_best_piece_is_cited(cosines: list[float], shares: list[float], expected: int) -> None:
    assert best_piece(cosines, shares, 0.2)[0] == expected


@given(st.lists(UNIT, max_size=30))
def test_scores_fall_and_no_result_loses_any_of_its_own(scores: list[float]) -> None:
    found = descending(scores)
    assert found == sorted(found, reverse=True)
    assert all(shown >= own for shown, own in zip(found, scores, strict=True))
    assert set(found) <= set(scores)
    assert descending(sorted(scores, reverse=True)) == sorted(scores, reverse=True)


def test_one_before_a_better_one_gets_its_score() -> None:
    assert descending([0.9, 0.4, 0.6, 0.1]) == [0.9, 0.6, 0.6, 0.1]
    assert descending([0.0, 0.55, 0.1, 0.0]) == [0.55, 0.55, 0.1, 0.0]
    assert descending([]) == []
