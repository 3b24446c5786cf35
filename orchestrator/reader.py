"""Reads requests strictly: bounded, whole, and only what routing needs. What is not right is a 400."""

from __future__ import annotations

import json
import re
from itertools import islice

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Message, Receive, Scope

from orchestrator.errors import ApiError, OrchestratorError

PARTS_MAX = 64
FIELD_BYTES_MAX = 1000
DIGITS_MAX = 4300
"""Python's own limit for integers from text (sys.int_info.default_max_str_digits); engines have it too."""

_DIGITS_TO_ZERO = bytes(ord("0") if chr(byte).isascii() and chr(byte).isdigit() else 32 for byte in range(256))
_LONG_RUN = b"0" * (DIGITS_MAX + 1)
# An integer has neither fraction nor exponent. Every run of digits is entered at its start only, so this is linear.
_LONG_INTEGER = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{%d,}+(?![.eE])" % (DIGITS_MAX + 1))
_MODEL = re.compile(rb'"model"\s*:\s*("[^"\\]*")')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class ClientGone(OrchestratorError):
    """The client left before its request was whole."""


_ABSENT = msgspec.Raw()


class Peek(msgspec.Struct):
    """What routing and limits read of a request. Of a key that is given twice, the last counts, as in `json`.
    What stands raw is the engine's to judge."""

    model: str
    stream: bool | None = None
    stream_options: msgspec.Raw = _ABSENT
    max_tokens: msgspec.Raw = _ABSENT
    max_completion_tokens: msgspec.Raw = _ABSENT
    max_output_tokens: msgspec.Raw = _ABSENT
    n: msgspec.Raw = _ABSENT


_DECODER = msgspec.json.Decoder(Peek)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


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
    while size <= body_bytes_max and message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client left")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
    if size > body_bytes_max:
        raise _too_large(body_bytes_max)
    return b"".join(chunks)


def again(body: bytes | None, receive: Receive) -> Receive:
    """`receive` for who has the request next: with the body that was read of it, if it was."""
    if body is None:
        return receive
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return left.pop() if left else await receive()

    return receive_again


def peek(body: bytes) -> Peek:
    """`model` and `stream` of a JSON body. Raises `ApiError` 400 for whatever is not strict JSON.

    The decoder checks the syntax of all of it but decodes only two fields; the rest is looked at for what it
    skips: bad UTF-8 and integers too long for an engine to read. Linear in the size of the body.
    """
    try:
        found = _decode(body)
        if not body.isascii():
            str(body, "utf-8")
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    if len(body) > DIGITS_MAX and _LONG_RUN in body.translate(_DIGITS_TO_ZERO) and _has_long_integer(body):
        raise ApiError(400, "the body holds a number too long to read", code="invalid_json")
    if not found.model:
        raise _wrong_type("Object missing required field `model`")
    return found


def peek_multipart(content_type: bytes, body: bytes) -> Peek:
    """`model` and `stream` of a multipart form, at most `PARTS_MAX` parts. Raises `ApiError` 400."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(400, "this path takes multipart/form-data", code="invalid_form")
    try:
        fields = _form(boundary, body).fields
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


def with_model(body: bytes, name: str, form_type: bytes = b"") -> bytes:
    """The body with another model's name in it, the rest as it was: JSON that `peek` has read, or, where `form_type`
    is its content type, a form that `peek_multipart` has. Of JSON with several such members, spaces may go."""
    if form_type:
        return _form_with_model(form_type, body, name)
    value = msgspec.json.encode(name)
    places = list(islice(_MODEL.finditer(body), 2))
    if len(places) == 1:  # `peek` has found it at the top, so it is this one
        return body[: places[0].start(1)] + value + body[places[0].end(1) :]
    try:
        fields = _OBJECT.decode(body)
    except msgspec.DecodeError:  # lone surrogates; see `_decode`
        return json.dumps({**json.loads(body), "model": name}).encode()
    return msgspec.json.encode({**fields, "model": msgspec.Raw(value)})


class _Form:
    """Collects the small fields of a form by python-multipart's callbacks. Of a field given twice the last counts."""

    def __init__(self) -> None:
        self.fields: dict[str, bytes] = {}
        self.spans: dict[str, tuple[int, int]] = {}
        """Where in the body each field's text is."""
        self._parts = 0
        self._header_name = self._header_value = b""
        self._name = ""

    def on_part_begin(self) -> None:
        self._parts += 1
        self._name = ""
        if self._parts > PARTS_MAX:
            raise ApiError(400, f"a form has at most {PARTS_MAX} parts", code="invalid_form")

    def on_header_begin(self) -> None:
        self._header_name = self._header_value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() != b"content-disposition":
            return
        kind, options = parse_options_header(self._header_value)
        name = options.get(b"name", b"")
        if kind == b"form-data" and b"filename" not in options and name in (b"model", b"stream"):
            self._name = name.decode()
            self.fields[self._name] = b""
            self.spans.pop(self._name, None)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name:
            self.spans[self._name] = (self.spans.get(self._name, (start, end))[0], end)
            self.fields[self._name] = (self.fields[self._name] + data[start:end])[:FIELD_BYTES_MAX]


def _form_with_model(content_type: bytes, body: bytes, name: str) -> bytes:
    start, end = _form(parse_options_header(content_type)[1][b"boundary"], body).spans["model"]
    return body[:start] + name.encode() + body[end:]


def _form(boundary: bytes, body: bytes) -> _Form:
    form = _Form()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": form.on_part_begin,
            "on_header_begin": form.on_header_begin,
            "on_header_field": form.on_header_field,
            "on_header_value": form.on_header_value,
            "on_header_end": form.on_header_end,
            "on_part_data": form.on_part_data,
        },
    )
    parser.write(body)
    parser.finalize()
    return form


def _decode(body: bytes) -> Peek:
    """The decoder's reading; it refuses lone surrogates, which JSON allows (RFC 8259, 8.2) and which clients that
    cut a text in the middle of an emoji send."""
    try:
        return _DECODER.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if not _SURROGATE.search(body):
            raise
    return _DECODER.decode(_SURROGATE.sub(rb"\\ufffd", body))


def _has_long_integer(body: bytes) -> bool:
    """Whether a run of digits that is too long stands outside of strings. `body` must be valid JSON."""
    text = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # every quote that is left begins or ends a string
    quotes = at = 0
    for run in _LONG_INTEGER.finditer(text):
        quotes += text.count(b'"', at, run.start())
        at = run.start()
        if quotes % 2 == 0:
            return True
    return False


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
