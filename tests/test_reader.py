"""The strict reader against Python's own JSON, against slow inputs, and against hostile forms."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Scope

from orchestrator.errors import ApiError
from orchestrator.reader import DIGITS_MAX, ClientGone, Peek, peek, peek_multipart, read_body, with_stream_default

LONG = b"9" * (DIGITS_MAX + 1)


def refused(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        peek(body)
    assert caught.value.status == 400
    return caught.value


def strict(body: bytes) -> bool:
    """Whether Python, which is an engine's reader, takes the body for strict JSON."""

    def no_constants(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(body.decode("utf-8"), parse_constant=no_constants)
    except (ValueError, RecursionError):
        return False
    return True


@pytest.mark.parametrize(
    ("value", "fine"),
    [
        (LONG, False),
        (b"-" + LONG, False),
        (b"[1," + LONG + b"]", False),
        (b'["a\\\\",' + LONG + b"]", False),
        (b'["\\"",' + LONG + b"]", False),
        (b"9" * DIGITS_MAX, True),
        (b'"' + LONG + b'"', True),
        (b'"\\"' + LONG + b'"', True),
        (b'"\\\\\\"' + LONG + b'"', True),
        (LONG + b".5", True),
        (LONG + b"e1", True),
        (b"0." + LONG, True),
        (b"1e-" + LONG, True),
        (b"1E+" + LONG, True),
        (b'"\\ud800"', True),
        (b'"cut \\ud83d"', True),
        (b'"\\ude00\\ud83d\\u0041"', True),
        (b'"\\\\ud800"', True),
        (b'"\\ud80"', False),
        (b'"\\ud800', False),
        (b"NaN", False),
        (b"-Infinity", False),
        (b"01", False),
        (b"1.", False),
        (b'"\\x"', False),
        (b'"\n"', False),
        (b'"\xed\xa0\x80"', False),
        (b'"\xff"', False),
        (b"[1,]", False),
        (b"[" * 100_000 + b"]" * 100_000, False),
    ],
    ids=repr,
)
def test_the_part_that_is_skipped_is_as_strict_as_an_engine(value: bytes, fine: bool) -> None:
    body = b'{"model":"a","x":%b,"y":1}' % value
    assert strict(body) == fine
    if fine:
        assert peek(body).model == "a"
    else:
        assert refused(body).code == "invalid_json"


@given(st.text(alphabet='{}[]",:\\ud8901e+-.tfn model"a', max_size=60))
def test_what_we_take_an_engine_can_read(tail: str) -> None:
    body = ('{"model":"a","x":' + tail).encode()
    try:
        peek(body)
    except ApiError as error:
        assert error.status == 400
    else:
        assert strict(body)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"null", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'\xef\xbb\xbf{"model":"a"}', "invalid_json", None),
        (b'{"model":"a"} {}', "invalid_json", None),
        (b"{}", "missing_required_parameter", "model"),
        (b'{"model":""}', "missing_required_parameter", "model"),
        (b'{"model":null}', "invalid_type", "model"),
        (b'{"model":"a","model":7}', "invalid_type", "model"),
        (b'{"model":"a","stream":"yes"}', "invalid_type", "stream"),
        (b'{"model":"a","stream":1}', "invalid_type", "stream"),
    ],
)
def test_errors_name_the_field(body: bytes, code: str, param: str | None) -> None:
    error = refused(body)
    assert (error.code, error.param) == (code, param)


def test_of_a_key_given_twice_the_last_counts() -> None:
    assert peek(b'{"model":"a","stream":true,"model":"b","stream":false}') == Peek(model="b", stream=False)


def test_a_lone_surrogate_can_not_make_a_model_of_another_name() -> None:
    assert peek(b'{"model":"\\ud800"}').model == "\ufffd"


@pytest.mark.parametrize(
    "content",
    [
        (b"9" * DIGITS_MAX + b"a") * 900,
        b"1" * 4_000_000,
        b"12 " * 1_300_000,
        b"\\\\" * 2_000_000,
        b"\xc3\xa9" * 2_000_000,
    ],
    ids=["runs just short", "one run", "short runs", "backslashes", "not ASCII"],
)
def test_four_megabytes_are_read_in_a_moment(content: bytes) -> None:
    """The loop stands still meanwhile. A search that went back over each run took seconds."""
    body = b'{"model":"a","x":"' + content + b'"}'
    began = time.perf_counter()
    assert peek(body).model == "a"
    assert time.perf_counter() - began < 0.5


def test_stream_default_says_nothing_twice() -> None:
    body = b'\n{"model":"a","stream":null}'
    assert json.loads(with_stream_default(b'{"model":"a"}', Peek(model="a"))) == {"stream": True, "model": "a"}
    assert json.loads(with_stream_default(body, peek(body)))["stream"] is None, "the last one counts, as it was sent"


# --- forms ---


def form(*parts: bytes) -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + b"--B--\r\n"


KIND = b"multipart/form-data; boundary=B"
FIELD = b"Content-Disposition: form-data; name="


@pytest.mark.parametrize(
    ("parts", "model"),
    [
        ((FIELD + b'"model"\r\n\r\na/b',), "a/b"),
        ((FIELD + b"model\r\n\r\na/b",), "a/b"),
        ((b'content-disposition: Form-Data; NAME="model"\r\n\r\na/b',), "a/b"),
        ((FIELD + b'"model"\r\n\r\na', FIELD + b'"model"\r\n\r\nb'), "b"),
        ((b'X-A: form-data; name="model"\r\n' + FIELD + b'"file"\r\n\r\nevil', FIELD + b'"model"\r\n\r\na'), "a"),
        ((FIELD + b'"model"\r\n\r\na', FIELD + b'"model"; filename="x"\r\n\r\nevil'), "a"),
        ((FIELD + b'"file"; filename="; name=\\"model\\""\r\n\r\nevil', FIELD + b'"model"\r\n\r\na'), "a"),
    ],
)
def test_a_form_names_its_model_as_engines_read_it(parts: tuple[bytes, ...], model: str) -> None:
    assert peek_multipart(KIND, form(*parts)).model == model


@pytest.mark.parametrize(
    "body",
    [
        form(b'X-A: form-data; name="model"\r\n\r\nevil'),
        form(*[FIELD + b'"x"\r\n\r\n1'] * 1000),
        form(b"X-A: 1\r\n" * 20_000 + b"\r\nx"),
        form(b"X-A: " + b"form-data;" * 400_000 + b"\r\n\r\nx"),
        form(FIELD + b'"file"\r\n\r\n' + b"\r\n--A" * 400_000),
    ],
    ids=["another header", "parts", "headers", "long header", "near boundaries"],
)
def test_hostile_forms_are_400_in_a_moment(body: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises(ApiError) as caught:
        peek_multipart(KIND, body)
    assert caught.value.status == 400
    assert time.perf_counter() - began < 0.5


# --- bodies ---


def read(messages: Iterable[Message], *, limit: int, length: bytes | None = None) -> bytes:
    """`read_body` of these messages; to ask for more than there are is an error."""
    left = iter(messages)

    async def receive() -> Message:
        return next(left)

    scope: Scope = {"type": "http", "headers": [] if length is None else [(b"content-length", length)]}
    return asyncio.run(read_body(scope, receive, body_bytes_max=limit))


def piece(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_bodies_are_read_whole() -> None:
    one = b"whole"
    assert read([piece(one, more=False)], limit=5) is one, "one piece is not copied"
    assert read([piece(b"a", more=True), piece(b"", more=True), piece(b"b", more=False)], limit=2) == b"ab"
    assert read([{"type": "http.request"}], limit=1) == b""


@pytest.mark.parametrize(
    ("messages", "length"),
    [
        ([], b"6"),
        ([piece(b"123456", more=False)], None),
        ([piece(b"123456", more=True), piece(b"", more=True)], None),
        ([piece(b"123", more=True), piece(b"456", more=True)], None),
    ],
    ids=["told, unread", "one piece", "first piece", "by count"],
)
def test_too_long_is_413(messages: list[Message], length: bytes | None) -> None:
    with pytest.raises(ApiError) as caught:
        read(messages, limit=5, length=length)
    assert (caught.value.status, caught.value.code) == (413, "request_too_large")


@pytest.mark.parametrize("before", [[], [piece(b"a", more=True)]])
def test_a_client_that_leaves_is_no_answer(before: list[Message]) -> None:
    with pytest.raises(ClientGone):
        read([*before, {"type": "http.disconnect"}], limit=5)
