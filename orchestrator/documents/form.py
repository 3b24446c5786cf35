"""Reads a multipart/form-data request as it comes: its one file into the spool, its fields into memory, all bounded.

RFC 7578, by python-multipart's push parser. What is not right is a 400.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from orchestrator.documents.spool import Piece, SpoolFile
from orchestrator.errors import ApiError

PARTS_MAX = 16
NAME_BYTES_MAX = 100
FIELD_BYTES_MAX = 4096
HEAD_BYTES_MAX = 8192
"""Of one part's head. A name of 255 characters takes at most 1,020."""
FORM_BYTES_MAX = 256 * 2**10
"""All of a form but its file: heads, fields, and what stands before, between and after."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A form that was read. The content of its file is in the spool."""

    fields: Mapping[str, str]
    has_file: bool
    filename: str | None
    """As given; None when the file's part has no name."""
    content_type: str
    """What the file's part says; empty when nothing."""


def bytes_told(request: Request, file_bytes_max: int) -> int:
    """How long the body will be, at most; 0 when nothing tells. Raises `ApiError` 413 when the file can't fit."""
    told = int(request.headers.get("content-length", "0"))  # the server has seen that it is a number
    if told > file_bytes_max + FORM_BYTES_MAX:
        raise _too_large(file_bytes_max)
    return told


async def read_form(request: Request, file: SpoolFile, *, file_field: str, file_bytes_max: int) -> Form:
    """Read all of it; the content of the part named `file_field` goes to `file`, which is finished then.

    Raises `ApiError` 400 for what is no such form, 413 as soon as the file is too large, 503 when the disk refuses;
    starlette's `ClientDisconnect`.
    """
    parts = _Parts(_boundary(request), file_field)
    read_bytes = 0
    async for data in request.stream():
        read_bytes += len(data)
        await file.write(*parts.feed(data))
        if file.bytes > file_bytes_max:
            raise _too_large(file_bytes_max)
        if read_bytes - file.bytes > FORM_BYTES_MAX:
            raise _bad(f"a form has at most {FORM_BYTES_MAX} bytes beside its file")
    form = parts.form()
    await file.finish()
    return form


class _Parts:
    """Takes a form apart, as far as it has come."""

    def __init__(self, boundary: bytes, file_field: str) -> None:
        self._file_field = file_field.encode()
        self._count = 0
        self._head: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._name: bytes | None = None
        """Of the field that is being read; None while it is the file."""
        self._fields: dict[bytes, bytes] = {}
        self._file_head: tuple[bytes | None, bytes] | None = None
        """Its file name and content type, once it began."""
        self._pieces: list[Piece] = []
        self._ended = False
        with _refusing():
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_begin": self._on_header_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
            )

    def feed(self, data: bytes) -> list[Piece]:
        """The bytes of the file among these. Raises `ApiError` 400."""
        self._pieces = []
        with _refusing():
            self._parser.write(data)
        return self._pieces

    def form(self) -> Form:
        """What was read. Raises `ApiError` 400 when the end has not come, or text is not UTF-8."""
        if not self._ended:
            raise _bad("the form breaks off before its end")
        filename, content_type = self._file_head or (None, b"")
        with _refusing():
            return Form(
                fields={name.decode(): value.decode() for name, value in self._fields.items()},
                has_file=self._file_head is not None,
                filename=None if filename is None else _unescaped(filename.decode()),
                content_type=content_type.decode("latin-1"),
            )

    # --- parser callbacks ---

    def _on_part_begin(self) -> None:
        self._count += 1
        if self._count > PARTS_MAX:
            raise _bad(f"a form has at most {PARTS_MAX} parts")
        self._head, self._head_bytes = [], 0

    def _on_header_begin(self) -> None:
        self._head.append((b"", b""))

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        name, value = self._head[-1]
        self._head[-1] = (name + data[start:end], value)
        self._grow_head(end - start)

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        name, value = self._head[-1]
        self._head[-1] = (name, value + data[start:end])
        self._grow_head(end - start)

    def _grow_head(self, more_bytes: int) -> None:
        self._head_bytes += more_bytes
        if self._head_bytes > HEAD_BYTES_MAX:
            raise _bad(f"the head of a part has at most {HEAD_BYTES_MAX} bytes")

    def _on_headers_finished(self) -> None:
        head = {name.lower(): value for name, value in self._head}
        kind, options = parse_options_header(head.get(b"content-disposition", b""))
        name = options.get(b"name", b"")
        if kind != b"form-data" or not 0 < len(name) <= NAME_BYTES_MAX:
            raise _bad("each part has a Content-Disposition: form-data with a name")
        if name in self._fields or (name == self._file_field and self._file_head is not None):
            raise _bad(f"the form has {name.decode('utf-8', 'replace')!r} twice")
        if name == self._file_field:
            self._name = None
            self._file_head = (options.get(b"filename"), head.get(b"content-type", b""))
        else:
            self._name = name
            self._fields[name] = b""

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            self._pieces.append(memoryview(data)[start:end])
            return
        self._fields[self._name] += data[start:end]
        if len(self._fields[self._name]) > FIELD_BYTES_MAX:
            raise _bad(f"{self._name.decode('utf-8', 'replace')!r} is longer than {FIELD_BYTES_MAX} bytes")

    def _on_end(self) -> None:
        self._ended = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise _bad("this path takes multipart/form-data")
    return boundary


def _unescaped(filename: str) -> str:
    """Browsers and Python's clients write a quote so (https://html.spec.whatwg.org/#multipart-form-data)."""
    return filename.replace("%22", '"')


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (FormParserError, UnicodeDecodeError) as error:
        raise _bad(f"the form can't be read: {error}") from None


def _bad(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_form")


def _too_large(file_bytes_max: int) -> ApiError:
    message = f"the file is larger than {file_bytes_max} bytes"
    return ApiError(413, message, code="request_too_large", headers={"connection": "close"})
