"""Another name for the model in a request's body; nothing else of it changes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.reader import peek_multipart, with_model

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("model"), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.booleans(), st.booleans())
def test_only_the_model_changes(more: dict[str, object], ascii_only: bool, first: bool) -> None:
    rest = {key: value for key, value in more.items() if key != "model"}
    asked = {"model": "a", **rest} if first else {**rest, "model": "a"}
    body = json.dumps(asked, ensure_ascii=ascii_only).encode("utf-8")
    assert json.loads(with_model(body, "org/b")) == {**asked, "model": "org/b"}


@pytest.mark.parametrize(
    ("body", "renamed"),
    [
        (b'{ "model" : "a", "x": 1.50e3 }', b'{ "model" : "b", "x": 1.50e3 }'),
        (b'{"tools":[{"model":"z"}],"model":"a"}', b'{"tools":[{"model":"z"}],"model":"b"}'),
        (b'{"model":"x","model":"a"}', b'{"model":"b"}'),
        (rb'{"x":"\ud83d\ude00 \ud83d","model":"a"}', rb'{"x":"\ud83d\ude00 \ud83d","model":"b"}'),
        (rb'{"x":"\"model\":\"a\"","model":"a"}', rb'{"x":"\"model\":\"a\"","model":"b"}'),
        (rb'{"mod\u0065l":"a"}', b'{"model":"b"}'),
    ],
)
def test_bytes_stay_where_there_is_one_name(body: bytes, renamed: bytes) -> None:
    assert with_model(body, "b") == renamed


def test_lone_surrogates_beside_another_model() -> None:
    body = rb'{"x":"\ud83d","y":{"model":"z"},"model":"a"}'
    assert json.loads(with_model(body, "b")) == {"x": "\ud83d", "y": {"model": "z"}, "model": "b"}


def test_a_form() -> None:
    kind = b"multipart/form-data; boundary=XX"
    file = b'--XX\r\ncontent-disposition: form-data; name="file"; filename="model"\r\n\r\n"model"\r\n\x00\r\n-\r\n'
    form = b'%b--XX\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n--XX--\r\n'
    body = form % (file, b"acme/long-name")
    assert peek_multipart(kind, body).model == "acme/long-name"
    assert with_model(body, "b", kind) == form % (file, b"b")
