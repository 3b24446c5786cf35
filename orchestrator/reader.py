"""Reads requests strictly: bounded, whole, and only what routing needs. What is not right is a 400."""

from __future__ import annotations

import json
import re

import msgspec
from starlette.types import Receive, Scope

from orchestrator.errors import ApiError, OrchestratorError

PARTS_MAX = 64
DIGITS_MAX = 4300
"""Python's own limit for integers from text (sys.int_info.default_max_str_digits); engines have it too."""

_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (DIGITS_MAX + 1))


class ClientGone(OrchestratorError):
    """The client left before its request was whole."""


class Peek(msgspec.Struct):
    """What routing reads of a request. Of a key that is given twice, the last counts, as in `json`."""

    model: str
    stream: bool | None = None


_DECODER = msgspec.json.Decoder(Peek)


async def read_body(scope: Scope, receive: Receive, *, body_bytes_max: int) -> bytes:
    """The whole body. Raises `ApiError` 413 before a byte is read where the length is told, else as soon as
    it is too long; `ClientGone` when the client leaves.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > body_bytes_max:
            raise _too_large(body_bytes_max)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone("the client left")
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > body_bytes_max:
            raise _too_large(body_bytes_max)
        return body
    chunks, size = [body], len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client left")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > body_bytes_max:
            raise _too_large(body_bytes_max)
    return b"".join(chunks)


def peek(body: bytes) -> Peek:
    """`model` and `stream` of a JSON body. Raises `ApiError` 400 for whatever is not strict JSON.

    The decoder checks the syntax of all of it but decodes only two fields; the rest is looked at for what it
    skips: bad UTF-8 and numbers too long for an engine to read.
    """
    try:
        found = _DECODER.decode(body)
        str(body, "utf-8")
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    if _LONG_NUMBER.search(body):
        _read_numbers(body)
    if not found.model:
        raise _wrong_type("Object missing required field `model`")
    return found


def peek_multipart(content_type: bytes, body: bytes) -> Peek:
    """`model` and `stream` of a multipart form, at most `PARTS_MAX` parts. Raises `ApiError` 400."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(400, "this path takes multipart/form-data", code="invalid_form")
    try:
        fields = _fields(boundary, body)
        model, stream = fields.get("model", b"").decode("utf-8"), fields.get("stream")
    except (FormParserError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the form can't be read: {error}", code="invalid_form") from None
    if not model:
        raise ApiError(400, "you must provide a model", param="model", code="missing_required_parameter")
    return Peek(model=model, stream=None if stream is None else stream.lower() in (b"true", b"1"))


def with_stream_default(body: bytes, asked: Peek) -> bytes:
    """The body with ``"stream": true`` where it says nothing of streaming; the rest as it was."""
    if asked.stream is not None:
        return body
    at = body.index(b"{") + 1
    return body[:at] + b'"stream":true,' + body[at:]


class _Form:
    """Collects the small fields of a form by python-multipart's callbacks."""

    def __init__(self) -> None:
        self.fields: dict[str, bytes] = {}
        self.parts = 0
        self._header = b""
        self._name: str | None = None

    def on_part_begin(self) -> None:
        self.parts += 1
        self._header, self._name = b"", None
        if self.parts > PARTS_MAX:
            raise ApiError(400, f"a form has at most {PARTS_MAX} parts", code="invalid_form")

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        if match := re.search(rb'form-data;.*?\bname="(model|stream)"', self._header):
            self._name = match[1].decode()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self.fields[self._name] = (self.fields.get(self._name, b"") + data[start:end])[:1000]


def _fields(boundary: bytes, body: bytes) -> dict[str, bytes]:
    from python_multipart.multipart import MultipartParser

    form = _Form()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": form.on_part_begin,
            "on_header_value": form.on_header_value,
            "on_part_data": form.on_part_data,
        },
    )
    parser.write(body)
    parser.finalize()
    return form.fields


def _read_numbers(body: bytes) -> None:
    """A long run of digits may stand in a string, where it is fine; a full reading tells."""
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body holds a number too long to read", code="invalid_json") from None


def _wrong_type(text: str) -> ApiError:
    """msgspec's words in OpenAI's: which field, and what it should be."""
    if "missing required field `model`" in text or not text:
        message = "you must provide a model parameter"
        return ApiError(400, message, param="model", code="missing_required_parameter")
    field = re.search(r"at `\$\.(\w+)`", text)
    if field is None:
        return ApiError(400, f"the body is not a JSON object: {text}", code="invalid_json")
    return ApiError(400, f"{field[1]}: {text.partition(' - at')[0]}", param=field[1], code="invalid_type")


def _too_large(body_bytes_max: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {body_bytes_max} bytes",
        code="request_too_large",
        headers={"connection": "close"},
    )
