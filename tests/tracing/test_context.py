"""W3C Trace Context: what is taken from a client, and what is passed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.tracing.context import Context, parent_of, passed_on, start_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("told", "sampled"),
    [(GOOD, True), (f"00-{TRACE}-{SPAN}-00", False), (f" {GOOD} ", True), (f"01-{TRACE}-{SPAN}-03-more", True)],
)
def test_a_parent_is_taken(told: str, sampled: bool) -> None:
    parent = parent_of([(b"accept", b"*/*"), (b"traceparent", told.encode())])
    assert parent == Context(int(TRACE, 16), int(SPAN, 16), sampled)


@pytest.mark.parametrize(
    "told",
    [
        *("", "00", GOOD.upper(), GOOD[:-1], GOOD + "-more", f"ff-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01more"),
        *(f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{SPAN}-0g"),
    ],
)
def test_what_is_wrong_begins_a_new_trace(told: str) -> None:
    assert parent_of([(b"traceparent", told.encode())]) is None


def test_two_parents_are_none() -> None:
    assert parent_of([(b"traceparent", GOOD.encode())] * 2) is None
    assert parent_of([]) is None


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_written_is_read(trace_id: int, span_id: int, sampled: bool) -> None:
    context = Context(trace_id, span_id, sampled)
    assert parent_of(passed_on([], context, continued=True)) == context


@given(st.binary(max_size=80))
def test_any_bytes_are_read(told: bytes) -> None:
    parent = parent_of([(b"traceparent", told)])
    assert parent is None or (parent.trace_id and parent.span_id)


@pytest.mark.parametrize("continued", [True, False])
def test_a_state_goes_with_its_own_trace_only(continued: bool) -> None:
    headers = [(b"traceparent", b"x"), (b"accept", b"*/*"), (b"tracestate", b"vendor=1")]
    found = passed_on(headers, Context(1, 2), continued=continued)
    assert [name for name, _ in found] == [b"accept", *([b"tracestate"] if continued else []), b"traceparent"]


def test_starts_have_spans_of_their_own() -> None:
    starts = [("a", "m", 1.0), ("b", "m", 1.0), ("a", "n", 1.0), ("a", "m", 2.0)]
    assert len({start_context(*start) for start in starts}) == 4
    assert start_context(*starts[0]) == start_context(*starts[0])
