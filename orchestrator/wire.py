"""Headers and answers at the edge: what passes to an engine, what passes back, and our own JSON."""

from __future__ import annotations

import re
from typing import Any, Protocol

import msgspec
from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from orchestrator.errors import ApiError, error_type
from orchestrator.servers.disguise import Disguise
from orchestrator.upstream import Connection, Headers

ERROR_BYTES_MAX = 2**20
"""How much of an engine's error answer is read; the rest is dropped."""

FORMS = frozenset({b"/v1/audio/transcriptions"})
"""The paths that take a form."""

_TO_ENGINE = frozenset({b"content-type", b"accept", b"accept-language", b"user-agent", b"traceparent", b"tracestate"})
_TO_ENGINE_PREFIXES = (b"openai-", b"anthropic-", b"x-stainless-")
# Hop-by-hop fields (RFC 9110, 7.6.1), and what we say ourselves.
_NOT_TO_CLIENT = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"server",
        b"date",
        b"x-request-id",
        b"set-cookie",
        b"strict-transport-security",
        b"alt-svc",
    }
)
_FIELD_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")


def request_head(
    path: bytes, query: bytes, authority: bytes, headers: Headers, request_id: bytes, size: int, end: bytes = b"\r\n"
) -> bytes:
    """The head of the request to an engine. `path` is from our own table; credentials stay here. `end`: the server's
    own fields, as lines, and the blank one."""
    target = path + b"?" + query if query else path
    lines = [
        b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\nx-request-id: %b"
        % (target, authority, size, request_id)
    ]
    lines += [
        b"%b: %b" % header for header in headers if header[0] in _TO_ENGINE or header[0].startswith(_TO_ENGINE_PREFIXES)
    ]
    lines.append(end)
    return b"\r\n".join(lines)


class RequestHead(Protocol):
    """`request_head`, or what stands in for it."""

    def __call__(
        self,
        path: bytes,
        query: bytes,
        authority: bytes,
        headers: Headers,
        request_id: bytes,
        size: int,
        end: bytes = b"\r\n",
        /,
    ) -> bytes:
        """See `request_head`."""


def disguised(
    disguise: Disguise,
    make_head: RequestHead,
    path: bytes,
    query: bytes,
    authority: bytes,
    headers: Headers,
    request_id: bytes,
    body: bytes,
) -> tuple[bytes, bytes]:
    """Head and body of a request to a server that wants them otherwise."""
    body = disguise.body(body, form_type(path, headers))
    path = disguise.base + path
    return make_head(path, query, authority, headers, request_id, len(body), disguise.end), body


def form_type(path: bytes, headers: Headers) -> bytes:
    """The content type of a request whose path takes a form; empty: it takes JSON, whatever the client calls it."""
    return header(headers, b"content-type") or b"" if path in FORMS else b""


def response_headers(headers: Headers, ours: Headers) -> Headers:
    """The engine's header fields that a client may see, and `ours` after them."""
    kept = [h for h in headers if h[0] not in _NOT_TO_CLIENT and _FIELD_VALUE.fullmatch(h[1])]
    return kept + ours


def response_head(connection: Connection, ours: Headers) -> bytes:
    """The status line and fields of an answer that is sent whole; see `guard.GuardedProtocol.answer`."""
    fields = response_headers(connection.headers, ours)
    return STATUS_LINE[connection.status] + b"".join([b"%b: %b\r\n" % field for field in fields])


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first field of that (lower case) name."""
    for key, value in headers:
        if key == name:
            return value
    return None


def normal_error(status: int, body: bytes) -> dict[str, Any]:
    """An engine's error in OpenAI's shape: message, type, param, code, with `code` a string or null.

    vLLM sends ``{"error": {…, "code": 404}}``, older ones ``{"object": "error", "message": …}``, FastAPI
    ``{"detail": …}``, others text.
    """
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        found = body[:2000].decode("utf-8", "replace").strip()
    if isinstance(found, dict) and found.get("error"):
        found = found["error"]
    fields = found if isinstance(found, dict) else {"message": found}
    message = fields.get("message") or fields.get("detail") or f"the engine answered {status}"
    code, kind = fields.get("code"), fields.get("type")
    return {
        "error": {
            "message": message if isinstance(message, str) else msgspec.json.encode(message).decode(),
            "type": kind if isinstance(kind, str) and kind else error_type(status),
            "param": fields.get("param") if isinstance(fields.get("param"), str) else None,
            "code": code if isinstance(code, str) else None,
        }
    }


def passed_error(status: int, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and content of an engine's error for the client. That an engine does not know the key is none of the
    client's faults, whose key it never sees: 502."""
    if status == 401:
        return 502, ApiError(502, "the engine refuses the key that it was sent", code="engine_refuses_key").body()
    return status, normal_error(status, body)


def retry_after(status: int, headers: Headers) -> Headers:
    """Retry-After for an engine's 429 or 503: its own, or a second where it says nothing (vLLM's queue limit)."""
    said = header(headers, b"retry-after")
    if said is None and status not in (429, 503):
        return []
    return [(b"retry-after", said or b"1")]


def json_answer(status: int, content: Any, ours: Headers) -> tuple[bytes, bytes]:
    """Head and body of a whole JSON answer; see `guard.GuardedProtocol.answer`."""
    body = msgspec.json.encode(content)
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *ours]
    return STATUS_LINE[status] + b"".join([b"%b: %b\r\n" % field for field in fields]), body


async def send_json(send: Send, status: int, content: Any, headers: Headers) -> None:
    """One whole JSON answer."""
    body = msgspec.json.encode(content)
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError, request_id: bytes, ours: Headers | None = None) -> None:
    """An `ApiError` as an answer."""
    headers = [(key.encode(), value.encode()) for key, value in error.headers.items()]
    await send_json(send, error.status, error.body(), [*headers, (b"x-request-id", request_id), *(ours or [])])


def sse_event(content: dict[str, Any]) -> bytes:
    """An SSE ``error`` event that ends a stream which could not go on."""
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(content)


def sse_error(error: ApiError) -> bytes:
    """An `ApiError` as an SSE ``error`` event."""
    return sse_event(error.body())
