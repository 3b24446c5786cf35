"""Filters: what each comparison lets through, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.documents.filters import CONDITIONS_MAX, parse_filter
from orchestrator.documents.model import Attributes
from orchestrator.errors import ApiError

PAPER: Attributes = {"year": 2024, "kind": "paper", "draft": False, "score": 0.5}


def passes(given: Any, attributes: Attributes = PAPER) -> bool:
    test = parse_filter(given)
    assert test is not None
    return test(attributes)


def compare(kind: str, key: str, value: Any) -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value}


@pytest.mark.parametrize(
    ("kind", "key", "value", "expected"),
    [
        ("eq", "kind", "paper", True),
        ("eq", "kind", "Paper", False),
        ("eq", "year", 2024.0, True),
        ("eq", "year", "2024", False),
        ("eq", "draft", False, True),
        ("eq", "draft", 0, False),
        ("eq", "none", "x", False),
        ("ne", "kind", "paper", False),
        ("ne", "kind", "book", True),
        ("ne", "none", "x", True),
        ("gt", "year", 2023, True),
        ("gt", "year", 2024, False),
        ("gte", "year", 2024, True),
        ("lt", "score", 1, True),
        ("lte", "score", 0.5, True),
        ("gt", "kind", "book", True),
        ("gt", "kind", 1, False),
        ("lt", "draft", 1, False),
        ("gt", "none", 0, False),
        ("in", "year", [2023, 2024], True),
        ("in", "year", ["2024"], False),
        ("in", "none", ["x"], False),
        ("nin", "year", [2023], True),
        ("nin", "year", [2024], False),
        ("nin", "none", ["x"], True),
    ],
)
def test_comparison(kind: str, key: str, value: Any, expected: bool) -> None:
    assert passes(compare(kind, key, value)) is expected


def test_groups_nest() -> None:
    young = {"type": "and", "filters": [compare("gte", "year", 2020), compare("lt", "year", 2025)]}
    assert passes({"type": "or", "filters": [compare("eq", "kind", "book"), young]})
    assert not passes({"type": "and", "filters": [compare("eq", "kind", "book"), young]})


def test_no_filter_is_no_test() -> None:
    assert parse_filter(None) is None


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = compare("eq", "a", 1)
    for _ in range(depth):
        inner = {"type": "and", "filters": [inner]}
    return inner


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([], "filters"),
        ("kind = 'paper'", "filters"),
        ({}, "filters.key"),
        (compare("like", "kind", "x"), "filters.type"),
        (compare("eq", "kind", None), "filters.value"),
        (compare("in", "kind", "x"), "filters.value"),
        (compare("gt", "kind", True), "filters.value"),
        ({"type": "and", "filters": []}, "filters.filters"),
        ({"type": "or", "filters": [compare("eq", "a", 1), 7]}, "filters.filters[1]"),
        ({"type": "and", "filters": [compare("eq", "a", 1)] * CONDITIONS_MAX}, "filters.filters[255]"),
    ],
)
def test_bad_filters_name_the_place(given: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_filter(given)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_deep_filter_is_refused() -> None:
    with pytest.raises(ApiError, match="deep"):
        parse_filter(nested(100_000))


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "key", "value", "filters"]), inner),
)


@given(json, st.dictionaries(st.text(max_size=3), st.text() | st.booleans() | st.floats()))
def test_any_json_is_a_filter_or_a_refusal(given: Any, attributes: Attributes) -> None:
    try:
        test = parse_filter(given)
    except ApiError as error:
        assert error.status == 400
    else:
        assert test is None or test(attributes) in (True, False)
