"""Forms, in pieces of any size: what comes through, what is refused, and that nothing is kept of it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from orchestrator.documents import form as limits
from orchestrator.documents.form import Form, bytes_told, read_form
from orchestrator.documents.spool import BUFFER_BYTES, Spool
from orchestrator.errors import ApiError

FILE_BYTES_MAX = 2_000_000
BOUNDARY = b"x-boundary"


def read(
    pieces: Sequence[bytes], content_type: bytes = b"multipart/form-data; boundary=x-boundary"
) -> tuple[Form, bytes]:
    """The form, and the content of its file; the spool must be empty behind it."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    left: list[Message] = [*messages, {"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        return left.pop(0)

    async def run(folder: Path) -> tuple[Form, bytes]:
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type)]}
        spool = Spool(folder, files_max=1, free_bytes_min=0)
        async with spool.file() as file:
            found = await read_form(Request(scope, receive), file, file_field="file", file_bytes_max=FILE_BYTES_MAX)
            content = file.path.read_bytes()
            assert file.bytes == len(content)
        return found, content

    with tempfile.TemporaryDirectory() as folder:
        try:
            return asyncio.run(run(Path(folder)))
        finally:
            assert not list(Path(folder).iterdir())


def part(name: str, content: bytes, *, filename: str | None = None, more: bytes = b"") -> bytes:
    """One part, as httpx writes it."""
    named = "" if filename is None else '; filename="' + filename.replace("\\", "\\\\").replace('"', "%22") + '"'
    head = f'content-disposition: form-data; name="{name}"{named}\r\n'.encode()
    return b"--%b\r\n%b%b\r\n%b\r\n" % (BOUNDARY, head, more, content)


END = b"--%b--\r\n" % BOUNDARY
SMALL = part("file", b"x", filename="a")


CONTENT = st.binary(max_size=3000) | st.lists(st.sampled_from([b"\r\n--x-boundar", b"\r\n", b"-", b"x"])).map(b"".join)


@settings(deadline=None, max_examples=150)
@given(
    content=CONTENT.filter(lambda content: BOUNDARY not in content),
    purpose=st.text(max_size=50),
    cuts=st.lists(st.integers(0, 4000), max_size=8),
)
def test_any_content_in_any_pieces_comes_through(content: bytes, purpose: str, cuts: list[int]) -> None:
    body = part("purpose", purpose.encode()) + part("file", content, filename="a") + END
    ends = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    form, found = read([body[start:end] for start, end in pairwise(ends)])
    assert found == content
    assert form.fields == {"purpose": purpose}
    assert form.has_file


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=60))
def test_any_name_comes_through(filename: str) -> None:
    """But for `%22`, which is how a quote is written; and Windows' folders, which some browsers add."""
    form, _ = read([part("file", b"x", filename=filename) + END])
    if filename[1:3] != ":\\" and not filename.startswith("\\\\"):
        assert form.filename == filename.replace("%22", '"')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        SMALL,
        SMALL + b"--x-boundary",
        END[2:],
        b"--x-boundary\r\nno colon\r\n\r\nx\r\n" + END,
        b"--x-boundary\r\n\r\nx\r\n" + END,
        b"--x-boundary\r\ncontent-disposition: attachment; name=file\r\n\r\nx\r\n" + END,
        part("", b"x") + END,
        part("n" * (limits.NAME_BYTES_MAX + 1), b"x") + END,
        part("a", b"x" * (limits.FIELD_BYTES_MAX + 1)) + END,
        part("a", b"\xff") + END,
        part("a", b"1") + part("a", b"2") + END,
        SMALL + SMALL + END,
        b"".join(part(f"a{n}", b"x") for n in range(limits.PARTS_MAX + 1)) + END,
        part("file", b"x", filename="a" * 100_000) + END,
        part("file", b"x", filename="a", more=b"".join(b"x-%d: y\r\n" % n for n in range(10_000))) + END,
        SMALL + END + b"y" * (limits.FORM_BYTES_MAX + 1),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_form_is_400(body: bytes) -> None:
    for size in (len(body) or 1, 7 if len(body) < 10_000 else 60_000):
        with pytest.raises(ApiError) as caught:
            read([body[at : at + size] for at in range(0, len(body), size)])
        assert (caught.value.status, caught.value.code) == (400, "invalid_form")


@pytest.mark.parametrize(
    "content_type", [b"", b"text/plain", b"multipart/form-data", b"multipart/form-data; boundary=" + b"b" * 300]
)
def test_other_types_are_400(content_type: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read([SMALL + END], content_type)
    assert (caught.value.status, caught.value.code) == (400, "invalid_form")


def test_content_beyond_the_buffer_is_written_in_order() -> None:
    content = bytes(range(256)) * 4096
    assert len(content) > 3 * BUFFER_BYTES
    form, found = read([part("file", content, filename="a", more=b"content-type: a/b\r\n") + END])
    assert found == content
    assert form.content_type == "a/b"


def test_a_file_beyond_its_limit_is_413() -> None:
    with pytest.raises(ApiError) as caught:
        read([part("file", b"x" * (FILE_BYTES_MAX + 1), filename="a") + END])
    assert caught.value.status == 413


def test_the_length_is_looked_at_first() -> None:
    def told(length: int) -> int:
        headers = [(b"content-length", str(length).encode())]
        return bytes_told(Request({"type": "http", "headers": headers}), 1000)

    assert told(1000 + limits.FORM_BYTES_MAX) == 1000 + limits.FORM_BYTES_MAX
    with pytest.raises(ApiError) as caught:
        told(1001 + limits.FORM_BYTES_MAX)
    assert caught.value.status == 413
