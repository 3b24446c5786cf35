"""The dashboard as a client of the HTTP API, without a socket between: who may see what is decided in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlencode

import msgspec
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from orchestrator.errors import ApiError
from ui.ports import Json

ANSWER_BYTES_MAX = 32 * 2**20
"""More than any answer that a page asks for; logs are asked for by their end."""
_CREDENTIALS = (b"authorization", b"x-api-key", b"cookie")
_OF_THE_ROUTE = frozenset({"path_params", "endpoint", "router", "route"})


async def call(
    request: Request, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Json | None = None
) -> Json:
    """The JSON of an answer of our own API, asked with the request's own credentials. Raises `ApiError` as it refused.

    `path` is put into the address as it is: names in it are quoted by the caller (`at`).
    """
    content = b"" if body is None else msgspec.json.encode(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    found: Json = msgspec.json.decode(await _ask(request, method, path, query, headers, _once(content, request)))
    return found


async def text(request: Request, path: str, *, query: Mapping[str, str] | None = None) -> str:
    """The text of an answer."""
    return (await _ask(request, "GET", path, query, [], _once(b"", request))).decode("utf-8", "replace")


async def forward(request: Request, path: str) -> Json:
    """POST the request's own body to another path, as it comes."""
    kept = [field for field in request.scope["headers"] if field[0] in (b"content-type", b"content-length")]
    found: Json = msgspec.json.decode(await _ask(request, "POST", path, None, kept, request.receive))
    return found


def at(template: str, **names: str) -> str:
    """A path with names filled in, so that none can mean another path."""
    return template.format(**{key: quote(name, safe="") for key, name in names.items()})


async def _ask(
    request: Request,
    method: str,
    path: str,
    query: Mapping[str, str] | None,
    headers: list[tuple[bytes, bytes]],
    receive: Receive,
) -> bytes:
    credentials = [field for field in request.scope["headers"] if field[0] in _CREDENTIALS]
    scope: Scope = {
        **{name: value for name, value in request.scope.items() if name not in _OF_THE_ROUTE},
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": urlencode(query or {}).encode("ascii"),
        "headers": [*credentials, *headers],
    }
    status, content = 0, bytearray()

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            content.extend(message.get("body", b""))
            if len(content) > ANSWER_BYTES_MAX:
                raise ApiError(502, "the answer is too large for a page", code="answer_too_large")

    await request.app(scope, receive, send)
    if status >= 400:
        raise _refusal(status, bytes(content))
    return bytes(content)


def _once(content: bytes, request: Request) -> Receive:
    """The body, and then what the visitor's own connection tells: that it has gone."""
    told = False

    async def receive() -> Message:
        nonlocal told
        if told:
            return await request.receive()
        told = True
        return {"type": "http.request", "body": content, "more_body": False}

    return receive


def _refusal(status: int, content: bytes) -> ApiError:
    try:
        error: dict[str, Any] = msgspec.json.decode(content)["error"]
        return ApiError(status, str(error["message"]), code=error.get("code"), param=error.get("param"))
    except (msgspec.DecodeError, KeyError, TypeError):
        return ApiError(status, f"it answered {status}")
