"""What is judged of a request's head, and answered, before any app sees it. Pure."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.errors import ApiError
from orchestrator.wire import json_answer

Fields = list[tuple[bytes, bytes]]
BodyLimit = Callable[[bytes], int]
"""The most bytes that a body may have, by the request's target as it was sent. Pure; asked only of bodies beyond
``server.body_bytes_max``."""


def judge(method: bytes, version: str, target: bytes, fields: Fields) -> tuple[str, int | None]:
    """What is wrong with a head that parsed (empty: nothing), and the body's length where it is told."""
    if method == b"CONNECT" or not target.startswith((b"/", b"http://", b"https://")):
        return "the request target is not a path", None
    if b"#" in target:
        return "the request target has a fragment", None
    hosts, body_bytes = 0, None
    for name, value in fields:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            body_bytes = int(value)  # the parser has seen that it is a number, and only one
    if hosts != 1 and (hosts > 1 or version == "1.1"):
        return "a request has exactly one Host field", None
    return "", body_bytes


def size(target: bytes, fields: Fields) -> int:
    """The bytes of a head, near enough."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in fields)


def without_upgrade(method: bytes, version: str, target: bytes, fields: Fields) -> bytes:
    """The head as it would be had the client not wished to upgrade."""
    kept = [field for field in fields if field[0] not in (b"connection", b"upgrade")]
    if any(name == b"connection" and b"close" in value.lower() for name, value in fields):
        kept.append((b"connection", b"close"))
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode()), *(b"%b: %b" % field for field in kept)]
    return b"\r\n".join([*lines, b"", b""])


def path_of(target: bytes) -> bytes:
    """The path of a target as most send it, still encoded; of other forms the whole."""
    return target.partition(b"?")[0]


def head_too_large() -> ApiError:
    """The refusal of a head beyond its limits."""
    return ApiError(431, "the request head is too large", code="headers_too_large")


def body_too_large(bytes_max: int) -> ApiError:
    """The refusal of a body beyond its limit."""
    return ApiError(413, f"the body is larger than {bytes_max} bytes", code="request_too_large")


def early_answer(error: ApiError, request_id: bytes) -> bytes:
    """A whole answer after which the connection ends."""
    fields = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    fields += [(b"connection", b"close"), (b"x-request-id", request_id)]
    head, body = json_answer(error.status, error.body(), fields)
    return head + b"\r\n" + body
