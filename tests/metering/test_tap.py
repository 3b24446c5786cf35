"""Usage as it passes by: every shape an engine reports it in, wherever the bytes are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.metering.tap import LOOK_BYTES, Tap, Tokens

CHAT = {"choices": [{"message": {"content": 'a "usage": {"prompt_tokens": 99} b'}}]}
CASES: list[tuple[dict[str, object], Tokens | None]] = [
    (
        {**CHAT, "usage": {"prompt_tokens": 9, "total_tokens": 69, "completion_tokens": 60}},
        Tokens(prompt=9, completion=60),
    ),
    (
        {"usage": {"prompt_tokens": 9, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 4}}, **CHAT},
        Tokens(prompt=9, completion=6, cached=4),
    ),
    ({"usage": {"prompt_tokens": 7, "total_tokens": 7}, "data": [0.5] * 9000}, Tokens(prompt=7)),
    (
        {"usage": {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 2}, "output_tokens": 8}},
        Tokens(prompt=5, completion=8, cached=2),
    ),
    (
        {"usage": {"input_tokens": 5, "cache_read_input_tokens": 1, "output_tokens": 8}},
        Tokens(prompt=5, completion=8, cached=1),
    ),
    ({"results": []}, None),
    ({"usage": None}, None),
]


@pytest.mark.parametrize(("answer", "tokens"), CASES)
@pytest.mark.parametrize("indent", [None, 2])
def test_whole_answers(answer: dict[str, object], tokens: Tokens | None, indent: int | None) -> None:
    tap = Tap(streamed=False)
    tap.feed(json.dumps(answer, indent=indent).encode())
    assert tap.reported() == tokens


def event(**content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


STREAM = b"".join(event(choices=[{"delta": {"content": f"w{n}"}}]) for n in range(200))
END = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 200}) + b"data: [DONE]\n\n"


@given(st.lists(st.integers(1, len(STREAM + END) - 1), max_size=40))
def test_streams_cut_anywhere(cuts: list[int]) -> None:
    whole, tap, at = STREAM + END, Tap(), 0
    for cut in [*sorted(cuts), len(whole)]:
        tap.feed(whole[at:cut])
        at = max(at, cut)
    assert tap.reported() == Tokens(prompt=3, completion=200)
    assert not tap.broken


@pytest.mark.parametrize("size", [1, 7, 100, 1000, LOOK_BYTES + 1])
def test_events_are_counted_once_where_no_usage_comes(size: int) -> None:
    tap = Tap()
    for at in range(0, len(STREAM), size):
        tap.feed(STREAM[at : at + size])
    assert tap.reported() is None
    assert tap.reported() is None
    assert tap.events == 200


def test_the_last_of_many_reports_counts() -> None:
    tap = Tap()
    for number in range(1, 5000):
        tap.feed(event(choices=[{"delta": {}}], usage={"prompt_tokens": 3, "completion_tokens": number}))
    assert tap.reported() == Tokens(prompt=3, completion=4999)
    assert tap.events == 0


def test_anthropics_prompt_comes_first_and_the_answer_last() -> None:
    tap = Tap()
    tap.feed(event(type="message_start", message={"usage": {"input_tokens": 25, "output_tokens": 1}}))
    tap.feed(STREAM)
    tap.feed(event(type="message_delta", usage={"output_tokens": 15}))
    assert tap.reported() == Tokens(prompt=25, completion=15)


def test_a_stream_that_ends_with_an_error() -> None:
    tap = Tap()
    tap.feed(STREAM + b'data: {"error": {"message": "EngineDeadError", "code": 500}}\n\ndata: [DONE]\n\n')
    tap.reported()
    assert tap.broken
