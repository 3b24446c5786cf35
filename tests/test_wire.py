"""Headers and errors at the edge, and the strict reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ApiError
from orchestrator.reader import Peek, peek, peek_multipart, with_stream_default
from orchestrator.wire import normal_error, request_head, response_headers

RAW = ("stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens", "n")
"""What is read of a body and not judged."""


@pytest.mark.parametrize(
    ("status", "body", "message", "kind", "code"),
    [
        (
            404,
            b'{"error":{"message":"no","type":"NotFoundError","param":null,"code":404}}',
            "no",
            "NotFoundError",
            None,
        ),
        (
            400,
            b'{"object":"error","message":"bad","type":"BadRequestError","code":400}',
            "bad",
            "BadRequestError",
            None,
        ),
        (400, b'{"error":{"message":"x","code":"context_length"}}', "x", "invalid_request_error", "context_length"),
        (422, b'{"detail":[{"loc":["body"]}]}', '[{"loc":["body"]}]', "invalid_request_error", None),
        (500, b"Internal Server Error", "Internal Server Error", "server_error", None),
        (500, b"", "the engine answered 500", "server_error", None),
        (500, b"\xff\xfe", "\ufffd\ufffd", "server_error", None),
        (503, b'{"error":"busy"}', "busy", "service_unavailable", None),
        (500, b"[" * 100_000, "[" * 2000, "server_error", None),
    ],
)
def test_engine_errors_get_openai_shape(status: int, body: bytes, message: str, kind: str, code: str | None) -> None:
    error = normal_error(status, body)["error"]
    assert error == {"message": message, "type": kind, "param": None, "code": code}


def test_only_known_fields_reach_the_engine() -> None:
    headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer s"), (b"cookie", b"c")]
    headers += [
        (b"openai-beta", b"x"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close"),
        (b"host", b"evil"),
    ]
    head = request_head(b"/v1/completions", b"a=b", b"127.0.0.1:9", headers, b"req-1", 5)
    assert head.startswith(b"POST /v1/completions?a=b HTTP/1.1\r\nhost: 127.0.0.1:9\r\ncontent-length: 5\r\n")
    assert b"openai-beta: x" in head and head.endswith(b"\r\n\r\n")
    for word in (b"Bearer", b"cookie", b"chunked", b"close", b"evil"):
        assert word not in head


def test_hop_by_hop_fields_and_splits_stay_behind() -> None:
    headers = [(b"content-type", b"a"), (b"connection", b"x"), (b"x-evil", b"a\r\nset-cookie: b"), (b"server", b"s")]
    assert response_headers(headers, [(b"x-request-id", b"1")]) == [(b"content-type", b"a"), (b"x-request-id", b"1")]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        assert peek(body).model
    except ApiError as error:
        assert error.status == 400


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=5), st.text(min_size=1))
def test_whatever_json_reads_we_read(extra: dict[str, object], model: str) -> None:
    body = json.dumps({**extra, "stream": True, "model": model}).encode()
    found = peek(body)
    assert (found.model, found.stream) == (model, True)
    for name in set(extra) & set(RAW):
        assert json.loads(bytes(getattr(found, name))) == extra[name]


@pytest.mark.parametrize("name", RAW)
def test_what_is_left_to_the_engine_stands_as_it_came(name: str) -> None:
    assert bytes(getattr(peek(json.dumps({"model": "a", name: None}).encode()), name)) == b"null"
    assert bytes(getattr(peek(b'{"model": "a"}'), name)) == b""


def test_stream_default_is_put_in_without_touching_the_rest() -> None:
    body = b' { "model" : "a" }'
    assert json.loads(with_stream_default(body, peek(body))) == {"stream": True, "model": "a"}
    said = b'{"model":"a","stream":false}'
    assert with_stream_default(said, peek(said)) == said


def multipart(*parts: bytes) -> tuple[bytes, bytes]:
    body = b"".join(b"--B\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--B--\r\n"
    return b"multipart/form-data; boundary=B", body


def test_forms_tell_their_model() -> None:
    kind, body = multipart(
        b'name="file"; filename="model"\r\n\r\nmodel', b'name="model"\r\n\r\na/b', b'name="stream"\r\n\r\ntrue'
    )
    assert peek_multipart(kind, body) == Peek(model="a/b", stream=True)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"application/json", b"{}"),
        (b"multipart/form-data", b""),
        multipart(b'name="file"\r\n\r\nx'),
        multipart(*[b'name="x"\r\n\r\n1'] * 100),
        (b"multipart/form-data; boundary=B", b"--B\r\nbroken"),
        (b"multipart/form-data; boundary=B", b"\x00" * 100),
        multipart(b'name="model"\r\n\r\n\xff\xfe'),
    ],
)
def test_bad_forms_are_400(kind: bytes, body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        peek_multipart(kind, body)
    assert caught.value.status == 400
