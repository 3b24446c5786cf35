"""W3C Trace Context: which trace a request belongs to. Pure. https://www.w3.org/TR/trace-context/"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from orchestrator.upstream import Headers

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_OURS = (b"traceparent", b"tracestate")


@dataclass(frozen=True, slots=True)
class Context:
    """A span's place: its trace, itself, and whether the trace is kept."""

    trace_id: int
    """128 bits, not 0."""
    span_id: int
    """64 bits, not 0."""
    sampled: bool = True

    def traceparent(self) -> bytes:
        """As a header field's value, of version 00."""
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, self.sampled)


def parent_of(headers: Headers) -> Context | None:
    """The client's span; None: it told of none, or wrongly, and a new trace begins (section 4.3)."""
    told = [value for name, value in headers if name == b"traceparent"]
    match = _TRACEPARENT.fullmatch(told[0].strip()) if len(told) == 1 else None
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5]):
        return None
    context = Context(int(match[2], 16), int(match[3], 16), bool(int(match[4], 16) & 1))
    return context if context.trace_id and context.span_id else None


def passed_on(headers: Headers, context: Context, *, continued: bool) -> Headers:
    """The header fields with `context` as the parent; `continued`: in the client's own trace, so that its
    ``tracestate`` still counts."""
    dropped = _OURS[:1] if continued else _OURS
    return [*(field for field in headers if field[0] not in dropped), (b"traceparent", context.traceparent())]


def start_context(boot: str, model: str, start_at: float) -> Context:
    """The span of a model's start: all who wait for it name it alike, before it has ended."""
    digest = hashlib.sha256(f"{boot}\0{model}\0{start_at!r}".encode()).digest()
    return Context(int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1)
