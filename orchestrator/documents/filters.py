"""Filters of a search: parsed once, then asked of each file's attributes. Pure.

Shape: https://platform.openai.com/docs/api-reference/vector-stores/search, `ComparisonFilter` and `CompoundFilter`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.documents.model import Attributes, AttributeValue
from orchestrator.errors import ApiError

DEPTH_MAX = 16
CONDITIONS_MAX = 256
"""Comparisons and groups in all."""
VALUES_MAX = 1000
"""Of one ``in`` or ``nin``."""

Filter = Callable[[Attributes], bool]

_ORDERED: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def parse_filter(given: object) -> Filter | None:
    """The test that `given` asks for; None where nothing is asked. Raises `ApiError` 400 that names the place."""
    if given is None:
        return None
    return _Parser().parse(given, "filters", 1)


class _Parser:
    """Counts as it goes, so that a filter's cost has a bound."""

    def __init__(self) -> None:
        self._conditions = 0

    def parse(self, given: object, where: str, depth: int) -> Filter:
        self._conditions += 1
        if self._conditions > CONDITIONS_MAX or depth > DEPTH_MAX:
            raise _bad(f"a filter has at most {CONDITIONS_MAX} conditions, {DEPTH_MAX} deep", where)
        if not isinstance(given, dict):
            raise _bad("a filter is an object", where)
        kind = given.get("type")
        if kind in ("and", "or"):
            return self._group(kind, given.get("filters"), where, depth)
        key, value = given.get("key"), given.get("value")
        if not isinstance(key, str):
            raise _bad("a comparison names its attribute by key", f"{where}.key")
        return _comparison(kind, key, value, where)

    def _group(self, kind: str, given: object, where: str, depth: int) -> Filter:
        if not isinstance(given, list) or not given:
            raise _bad(f"{kind} takes a list of filters", f"{where}.filters")
        inner = [self.parse(one, f"{where}.filters[{place}]", depth + 1) for place, one in enumerate(given)]
        if kind == "and":
            return lambda attributes: all(test(attributes) for test in inner)
        return lambda attributes: any(test(attributes) for test in inner)


def _comparison(kind: object, key: str, value: object, where: str) -> Filter:
    if kind in ("in", "nin"):
        if not isinstance(value, list) or len(value) > VALUES_MAX or not all(_is_value(one) for one in value):
            raise _bad(f"{kind} takes a list of at most {VALUES_MAX} strings, numbers or booleans", f"{where}.value")
        wanted = frozenset(map(_typed, value))
        if kind == "in":
            return lambda attributes: key in attributes and _typed(attributes[key]) in wanted
        return lambda attributes: key not in attributes or _typed(attributes[key]) not in wanted
    if not _is_value(value):
        raise _bad("a value is a string, a number or a boolean", f"{where}.value")
    if kind in ("eq", "ne"):
        one, negated = _typed(value), kind == "ne"
        return lambda attributes: (key in attributes and _typed(attributes[key]) == one) is not negated
    if not isinstance(kind, str) or kind not in _ORDERED:
        raise _bad("type is one of eq, ne, gt, gte, lt, lte, in, nin, and, or", f"{where}.type")
    if isinstance(value, bool):
        raise _bad(f"{kind} compares numbers or strings", f"{where}.value")
    compare = _ORDERED[kind]
    return lambda attributes: _comparable(attributes.get(key), value) and compare(attributes[key], value)


def _is_value(value: object) -> bool:
    return isinstance(value, str | bool | int | float)


def _typed(value: object) -> tuple[str, object]:
    """Equality as JSON has it: ``true`` is not 1, yet 1 is 1.0."""
    if isinstance(value, bool):
        return "boolean", value
    return ("string" if isinstance(value, str) else "number"), value


def _comparable(value: AttributeValue | None, with_: object) -> bool:
    if value is None or isinstance(value, bool):
        return False
    return isinstance(value, str) is isinstance(with_, str)


def _bad(message: str, param: str) -> ApiError:
    return ApiError(400, message, code="invalid_filter", param=param)
