"""What becomes of a request, or of a start, as the spans of a trace. Pure.

Attributes are those of OpenTelemetry's conventions for HTTP and for generative AI where there are such
(https://opentelemetry.io/docs/specs/semconv/gen-ai/); ours begin with ``orchestrator.``. Nothing of a body, and no
header field, is among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.eta import ORDER
from orchestrator.metering.tap import Tokens
from orchestrator.model import Phase, StartRecord, Track
from orchestrator.tracing.context import Context, start_context

HOLD_S_MIN = 0.001
"""Less is the time to say no, not a wait."""
OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""``gen_ai.operation.name`` by path."""

NewId = Callable[[], int]
"""Makes span ids: 64 bits, not 0."""
Attribute = str | int | float | bool


class Kind(StrEnum):
    """Which side of a call a span is."""

    SERVER = "server"
    CLIENT = "client"
    INTERNAL = "internal"


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One span. Times are the monotonic clock's."""

    name: str
    context: Context
    began_at: float
    ended_at: float
    parent: Context | None = None
    remote: bool = False
    """Whether its parent is the client's."""
    kind: Kind = Kind.INTERNAL
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    link: Context | None = None
    """A span of another trace that it waited for."""
    fault: str = ""
    """Why it went wrong; empty: it did not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """The request waited."""

    began_at: float
    ended_at: float
    track: Track | None
    """Its model's, at the end of the wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """The request was at an engine."""

    replica: str
    began_at: float
    ended_at: float
    first_byte_at: float | None
    """When the head of its answer came."""
    status: int = 0
    """0: no answer came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A request that has ended."""

    root: Context
    parent: Context | None
    engine: Context
    """What the engine was told that its parent is."""
    path: str
    model: str
    provider: str
    """The engine's kind."""
    key: str
    """The key's name."""
    stream: bool
    cold: bool
    arrived_at: float
    admitted_at: float
    """It is known whose it is."""
    routed_at: float
    """Its body is read, its model known, its limits are kept."""
    ended_at: float
    holds: tuple[Hold, ...]
    visits: tuple[Visit, ...]
    outcome: str
    """See `meter.Outcome`."""
    tokens: Tokens


def request_spans(ended: Ended, boot: str, new_id: NewId) -> tuple[Span, ...]:
    """Its spans, parents first. `boot`: see `start_context`."""
    return tuple(_request_spans(ended, boot, new_id))


def _request_spans(ended: Ended, boot: str, new_id: NewId) -> Iterator[Span]:
    root = ended.root
    fault = ended.outcome if ended.outcome in ("error", "refused") else ""
    yield Span(
        name=f"POST {ended.path}",
        context=root,
        parent=ended.parent,
        remote=ended.parent is not None,
        kind=Kind.SERVER,
        began_at=ended.arrived_at,
        ended_at=ended.ended_at,
        attributes=_root_attributes(ended),
        fault=fault,
    )
    yield _inner("auth", root, new_id, ended.arrived_at, ended.admitted_at)
    yield _inner("route", root, new_id, ended.admitted_at, ended.routed_at)
    for hold in ended.holds:
        yield from _hold_spans(hold, ended, boot, new_id)
    for visit in ended.visits:
        last = visit is ended.visits[-1]
        yield from _visit_spans(visit, ended, new_id, fault if last else "unreachable", last=last)


def _root_attributes(ended: Ended) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {
        "http.request.method": "POST",
        "http.route": ended.path,
        "url.path": ended.path,
        "gen_ai.request.model": ended.model,
        "orchestrator.outcome": ended.outcome,
        "orchestrator.cold": ended.cold,
    }
    if ended.key:
        found["orchestrator.key"] = ended.key
    if ended.visits and ended.visits[-1].status:
        found["http.response.status_code"] = ended.visits[-1].status
    if ended.outcome != "ok":
        found["error.type"] = ended.outcome
    return found


def _hold_spans(hold: Hold, ended: Ended, boot: str, new_id: NewId) -> Iterator[Span]:
    """The wait, and the phases of the start that fall into it."""
    phases = [
        (phase, max(began_at, hold.began_at), min(ended_at, hold.ended_at))
        for phase, began_at, ended_at in (phases_of(hold.track, hold.ended_at) if hold.track else ())
        if began_at < hold.ended_at and ended_at > hold.began_at
    ]
    link = None
    if phases and hold.track and hold.track.start_at is not None:
        link = start_context(boot, ended.model, hold.track.start_at)
    span = _inner("hold", ended.root, new_id, hold.began_at, hold.ended_at, link=link)
    yield span
    for phase, began_at, ended_at in phases:
        yield _inner(phase.value, span.context, new_id, began_at, ended_at)


def _visit_spans(visit: Visit, ended: Ended, new_id: NewId, fault: str, *, last: bool) -> Iterator[Span]:
    """The proxy's work, within it the engine's: until the first byte, and from then on."""
    proxy = _inner("proxy", ended.root, new_id, visit.began_at, ended.ended_at if last else visit.ended_at)
    yield proxy
    engine = Span(
        name="engine",
        context=ended.engine if last else _beside(ended.root, new_id),
        parent=proxy.context,
        kind=Kind.CLIENT,
        began_at=visit.began_at,
        ended_at=visit.ended_at,
        attributes=_engine_attributes(visit, ended, last=last),
        fault=fault,
    )
    yield engine
    if visit.first_byte_at is not None:
        yield _inner("first byte", engine.context, new_id, visit.began_at, visit.first_byte_at)
        yield _inner("stream", engine.context, new_id, visit.first_byte_at, visit.ended_at)


def _engine_attributes(visit: Visit, ended: Ended, *, last: bool) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {
        "gen_ai.provider.name": ended.provider,
        "gen_ai.request.model": ended.model,
        "gen_ai.request.stream": ended.stream,
        "orchestrator.replica": visit.replica,
    }
    if ended.path in OPERATIONS:
        found["gen_ai.operation.name"] = OPERATIONS[ended.path]
    if visit.status:
        found["http.response.status_code"] = visit.status
    if last:
        tokens = ended.tokens
        found["gen_ai.usage.input_tokens"] = tokens.prompt
        found["gen_ai.usage.output_tokens"] = tokens.completion
        found["gen_ai.usage.cache_read.input_tokens"] = tokens.cached
    if ended.stream and visit.first_byte_at is not None:
        found["gen_ai.response.time_to_first_chunk"] = visit.first_byte_at - visit.began_at
    return found


def start_spans(record: StartRecord, track: Track, now: float, context: Context, new_id: NewId) -> tuple[Span, ...]:
    """A start that has just ended: a trace of its own. `track`: its model's until now."""
    attributes: dict[str, Attribute] = {
        "gen_ai.request.model": record.model,
        "gen_ai.provider.name": record.engine,
        "orchestrator.replica": record.replica,
        "orchestrator.outcome": record.outcome,
        "orchestrator.pulled_bytes": record.pulled_bytes,
    }
    root = Span(
        name="wake" if record.wake else "start",
        context=context,
        began_at=now if track.start_at is None else track.start_at,
        ended_at=now,
        attributes=attributes,
        fault=record.error if record.outcome == "failed" else "",
    )
    return (
        root,
        *(_inner(phase.value, context, new_id, began, ended) for phase, began, ended in phases_of(track, now)),
    )


def phases_of(track: Track, now: float) -> Iterator[tuple[Phase, float, float]]:
    """The phases of the start that a model is in, or was last in: each with its begin and end; the running one's is
    `now`."""
    if track.start_at is None:
        return
    at = track.start_at
    for phase, seconds in track.seconds:
        yield phase, at, at + seconds
        at += seconds
    if track.phase in ORDER:
        yield track.phase, track.phase_at, now


def _inner(
    name: str, parent: Context, new_id: NewId, began_at: float, ended_at: float, link: Context | None = None
) -> Span:
    context = _beside(parent, new_id)
    return Span(name=name, context=context, parent=parent, began_at=began_at, ended_at=ended_at, link=link)


def _beside(context: Context, new_id: NewId) -> Context:
    return Context(context.trace_id, new_id(), context.sampled)
