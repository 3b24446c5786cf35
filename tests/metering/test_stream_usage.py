"""Asking engines for usage, and what the client sees of it: nothing it did not ask for, and all else byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.metering.stream_usage import Veil, ask
from orchestrator.reader import peek

ASKED = {"include_usage": True, "continuous_usage_stats": True}


def asked(body: bytes) -> tuple[dict[str, Any], Veil | None]:
    sent, veil = ask(body, bytes(peek(body).stream_options))
    return json.loads(sent), veil


@pytest.mark.parametrize("body", [b'{"model":"m","stream":true}', b' {"model": "m", "stream": true, "big": 1e400}'])
def test_the_rest_of_the_body_stays_as_it_was(body: bytes) -> None:
    sent, veil = ask(body, b"")
    assert veil is not None
    assert sent.replace(b'"stream_options":{"include_usage":true,"continuous_usage_stats":true},', b"") == body
    assert json.loads(sent)["stream_options"] == ASKED


@pytest.mark.parametrize("options", ["null", "{}", '{"include_usage": false}', '{"include_usage": true, "x": [1.50]}'])
def test_options_are_completed(options: str) -> None:
    numbers = b'"temperature":1.10,"seed":12345678901234567890123'
    body = b'{"model":"m","stream":true,"stream_options":%b,%b}' % (options.encode(), numbers)
    sent, veil = ask(body, options.encode())
    given_options = json.loads(options) or {}
    assert json.loads(sent)["stream_options"] == {**given_options, **ASKED}
    assert b'"temperature":1.10' in sent
    assert b"12345678901234567890123" in sent
    assert veil is not None


@pytest.mark.parametrize("options", [ASKED, "yes", [1]])
def test_what_is_asked_already_or_nonsense_is_left_alone(options: Any) -> None:
    body = json.dumps({"model": "m", "stream": True, "stream_options": options}).encode()
    sent, veil = ask(body, json.dumps(options).encode())
    assert (sent, veil) == (body, None)


def event(compact: bool, **content: Any) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":") if compact else None).encode() + b"\n\n"


def stream(compact: bool, *, continuous: bool, final: bool) -> bytes:
    pieces = [b": a comment\n\n"]
    for number in range(12):
        choice = {"index": 0, "delta": {"content": f'w{number} ,"usage":{{1}} , "usage": {{}} "choices":[]'}}
        usage = {"prompt_tokens": 3, "total_tokens": 4 + number, "completion_tokens": number, "details": {"x": None}}
        pieces.append(event(compact, id="x", choices=[choice], **({"usage": usage} if continuous else {})))
    if final:
        details = {"cached_tokens": 1}
        usage = {"prompt_tokens": 3, "completion_tokens": 12, "prompt_tokens_details": details}
        pieces.append(event(compact, id="x", choices=[], usage=usage, system_fingerprint="f"))
    return b"".join([*pieces, b"data: [DONE]\n\n"])


def seen(veil: Veil, data: bytes, cuts: list[int]) -> bytes:
    found, at = b"", 0
    for cut in [*sorted(cuts), len(data)]:
        if cut > at:
            found += veil.through(data[at:cut])
            at = cut
    return found + veil.rest()


CUTS = st.lists(st.integers(1, 3000), max_size=30)


@given(CUTS, st.booleans(), st.booleans())
def test_who_did_not_ask_sees_none(cuts: list[int], compact: bool, continuous: bool) -> None:
    data = stream(compact, continuous=continuous, final=True)
    assert seen(Veil(wanted=False), data, cuts) == stream(compact, continuous=False, final=False)


@given(CUTS, st.booleans(), st.booleans())
def test_who_asked_for_the_end_sees_the_end(cuts: list[int], compact: bool, continuous: bool) -> None:
    data = stream(compact, continuous=continuous, final=True)
    assert seen(Veil(wanted=True), data, cuts) == stream(compact, continuous=False, final=True)


@given(CUTS, st.booleans())
def test_an_engine_that_ignores_the_wish_passes_untouched(cuts: list[int], wanted: bool) -> None:
    data = stream(True, continuous=False, final=False)
    assert seen(Veil(wanted=wanted), data, cuts) == data


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=20))
def test_what_is_no_stream_of_events_passes_untouched(pieces: list[bytes]) -> None:
    veil = Veil(wanted=False)
    assert b"".join(veil.through(piece) for piece in pieces) + veil.rest() == b"".join(pieces)


def test_only_an_unfinished_line_is_held_back() -> None:
    veil = Veil(wanted=False)
    first = event(True, choices=[{"delta": {"content": "a"}}])
    assert veil.through(first + b'data: {"cho') == first
    assert veil.rest() == b'data: {"cho'
