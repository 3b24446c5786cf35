"""Fields of files and uploads, as values: names, types, ranges; and 1,000 hostile names. PROMISES S10."""

from __future__ import annotations

import json
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.documents.fields import FILENAME_CHARS_MAX, byte_range, completion, new_file, new_upload
from orchestrator.documents.model import StoredFile
from orchestrator.documents.views import content_headers, file_view
from orchestrator.errors import ApiError

PATHS = ("../", "..\\", "/etc/passwd", "C:\\", "%00", "%2e%2e", " ", ".")
HEADS = ("\0", "\r\n", "\n", "\x7f", "\x85", '"', "'", ";", "filename=", "*=UTF-8''", "<script>")
LETTERS = ("\u202e", "\u2028", "\u200d", "\ufeff", "\u00e9", "e\u0301", "\U0001f680", "\ud800")
HOSTILE = st.lists(st.sampled_from(PATHS + HEADS + LETTERS) | st.characters(), min_size=1, max_size=40).map("".join)


@settings(max_examples=1000, deadline=None)
@given(HOSTILE)
@example("..")
@example("CON")
@example("a" * FILENAME_CHARS_MAX)
def test_a_hostile_name_round_trips_or_is_400(name: str) -> None:
    """In JSON as it is; in the head as ASCII that can end neither the field nor the quotes."""
    try:
        new = new_file({"purpose": "batch"}, name, "")
    except ApiError as error:
        assert (error.status, error.param) == (400, "file")
        assert len(name) > FILENAME_CHARS_MAX or not name.isprintable()
        return
    file = StoredFile(
        id="file-x",
        tenant="t",
        filename=new.filename,
        purpose="batch",
        bytes=0,
        content_type=new.content_type,
        sha256="",
        created_unix=0,
    )
    assert json.loads(json.dumps(file_view(file)))["filename"] == name
    head = content_headers(file)["content-disposition"]
    start, _, encoded = head.partition("''")
    assert start == "attachment; filename*=UTF-8"
    assert unquote(encoded, errors="strict") == name
    assert set(encoded) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789%-._~")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("text/plain", "text/plain"),
        ("text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ('a/b; c="d e"', 'a/b; c="d e"'),
        ("application/vnd.ms-excel+x", "application/vnd.ms-excel+x"),
        ("", "application/octet-stream"),
        ("pdf", "application/octet-stream"),
        ("a/b\r\nx: y", "application/octet-stream"),
        ("a/b\n", "application/octet-stream"),
        ("a/" + "b" * 300, "application/octet-stream"),
        ("a/é", "application/octet-stream"),
        ('a/b; c="', "application/octet-stream"),
    ],
)
def test_content_types(given: str, kept: str) -> None:
    assert new_file({"purpose": "batch"}, "a", given).content_type == kept


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_ranges_are_python_s(size: int, first: int, last: int) -> None:
    """A slice of the same bounds has the same bytes, where it has any."""
    data = bytes(range(size))
    for header, wanted in (
        (f"bytes={first}-{last}", data[first : last + 1]),
        (f"bytes={first}-", data[first:]),
        (f"bytes=-{last}", data[-last:] if last else b""),
    ):
        try:
            found = byte_range(header, size)
        except ApiError as error:
            assert (error.status, error.headers["content-range"], wanted) == (416, f"bytes */{size}", b"")
        else:
            assert (data[slice(*found)] == wanted) if found else last < first


@given(st.text(max_size=30) | st.text("bytes=-0123456789, ", max_size=30), st.integers(0, 2**40))
def test_any_range_field_is_whole_or_part_or_416(header: str, size: int) -> None:
    try:
        found = byte_range(header, size)
    except ApiError as error:
        assert error.status == 416
    else:
        assert found is None or 0 <= found[0] < found[1] <= size


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["bytes", "filename", "mime_type", "purpose", "expires_after", "part_ids", "md5", "x"])


@given(st.dictionaries(NAMES, JSON | st.just("batch") | st.just({"anchor": "created_at", "seconds": 3600})))
def test_any_json_is_taken_or_400(body: dict[str, object]) -> None:
    for parse in (lambda: new_upload(body, 1000), lambda: completion(body)):
        try:
            parse()
        except ApiError as error:
            assert error.status == 400
            assert error.param in {*body, "bytes", "filename", "mime_type", "purpose", "expires_after", "part_ids"}
