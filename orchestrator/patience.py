"""How long a request may be held while its model starts, by its header fields. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.upstream import Headers

RETRY_HOLD_DEFAULT_S = 60.0
"""How long a client's retry is held when the client does not say what it stands."""
CLIENT_TIMEOUT_SHARE = 0.9
"""A retry is held for this share of the client's own timeout, so that our answer comes before it gives up."""

_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?$", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """What a request stands."""

    hold_s: float = 0.0
    applied: bytes | None = None
    """The value of ``Preference-Applied`` (RFC 7240), where a preference counted."""
    progress: bool = False
    """Whether a stream may open early and carry progress as comments."""


def patience(headers: Headers, hold_max_s: float) -> Patience:
    """What a request stands.

    1. ``Prefer: wait=N[, progress]``: N seconds. 2. A stock SDK's retry: within its own timeout. 3. Nothing.
    """
    fields: dict[bytes, str] = {}
    for name, value in headers:
        if name == b"prefer" or name.startswith(b"x-stainless-"):
            text = value.decode("latin-1")
            fields[name] = f"{fields[name]},{text}" if name in fields else text
    if not fields:
        return Patience()
    preferences = [part.strip().lower() for part in fields.get(b"prefer", "").replace(";", ",").split(",")]
    waits = [int(match[1]) for part in preferences if (match := _WAIT.match(part))]
    if waits:
        hold_s = min(waits[0], hold_max_s)
        return Patience(hold_s=hold_s, applied=b"wait=%d" % hold_s, progress="progress" in preferences)
    if (_number(fields.get(b"x-stainless-retry-count")) or 0) < 1:
        return Patience()
    timeout_s = _number(fields.get(b"x-stainless-read-timeout")) or _number(fields.get(b"x-stainless-timeout"))
    stands_s = RETRY_HOLD_DEFAULT_S if timeout_s is None else timeout_s * CLIENT_TIMEOUT_SHARE
    return Patience(hold_s=min(stands_s, hold_max_s))


def _number(text: str | None) -> float | None:
    if text is None or not re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text.strip(), re.ASCII):
        return None
    return float(text)
