"""Feedback from passages: what it adds to a query, and how much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.lexical_feedback import SHARE, TERMS, expanded

RARITY = {"panel": 5.0, "flutter": 4.0, "wing": 1.0, "nothing": 0.0}


def test_without_passages_the_query_stays_as_it_is() -> None:
    assert expanded({"a": 1, "b": 3}, [], lambda term: 1.0) == {"a": 0.25, "b": 0.75}
    assert expanded({"a": 1}, [(1.0, {"nothing": 4})], RARITY.__getitem__) == {"a": 1.0}


def test_what_passages_say_often_and_others_seldom_is_added() -> None:
    weights = expanded({"flutter": 1}, [(2.0, {"flutter": 1, "panel": 1, "wing": 2})], RARITY.__getitem__)
    heard = {"flutter": 4.0 * 2 / 4, "panel": 5.0 * 2 / 4, "wing": 1.0 * 2 * 2 / 4}
    shares = {term: SHARE * weight / sum(heard.values()) for term, weight in heard.items()}
    assert weights == pytest.approx({**shares, "flutter": 1 - SHARE + shares["flutter"]})


terms = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(1, 50), min_size=1, max_size=30)


@given(said=terms, passages=st.lists(st.tuples(st.floats(0.01, 100.0), terms), max_size=3))
def test_of_any_passages(said: dict[str, int], passages: list[tuple[float, dict[str, int]]]) -> None:
    weights = expanded(said, passages, lambda term: 1.0 + len(term))
    assert sum(weights.values()) == pytest.approx(1.0)
    assert said.keys() <= weights.keys()
    assert len(weights.keys() - said.keys()) <= TERMS
    assert sum(weights[term] for term in said) >= 1 - SHARE - 1e-9
