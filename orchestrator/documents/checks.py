"""How a request for documents is refused. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import ApiError

SHOWN_CHARS_MAX = 200
"""Of what a client sent, in a message to it."""


def bad(param: str, message: str) -> ApiError:
    """A refusal that names the field."""
    return ApiError(400, message, code="invalid_value", param=param)


def known(body: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse fields that mean nothing here, so that a misspelt one is not taken for a default."""
    for name in body:
        if name not in names:
            shown = name[:SHOWN_CHARS_MAX]
            raise ApiError(400, f"unknown field {shown!r}", code="unknown_parameter", param=shown)


def unknown(what: str, id: str, param: str, *, code: str = "not_found") -> ApiError:
    """What the tenant has not, whether another has it or nobody."""
    return ApiError(404, f"No such {what}: {id[:SHOWN_CHARS_MAX]}", code=code, param=param)
