"""Spans to OpenTelemetry's SDK, which sends them by OTLP over HTTP. The only module that needs the extra ``otel``.

Where, how often and which traces are sent, is said by the standard environment variables: ``OTEL_EXPORTER_OTLP_*``,
``OTEL_BSP_*``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Iterable, Sequence

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_MAX_QUEUE_SIZE,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace.status import Status, StatusCode
from prometheus_client.core import CounterMetricFamily, Metric

from orchestrator.errors import ConfigError
from orchestrator.ports import Clock
from orchestrator.tracing.context import Context
from orchestrator.tracing.spans import Kind, Span

FLUSH_S = 3.0
"""How long the end of the service waits for the last spans to be sent."""
PROTOCOL = "http/protobuf"
SPANS_MAX_DEFAULT = 2048
"""Spans that wait to be sent, beyond which traces are dropped: the SDK's own default of OTEL_BSP_MAX_QUEUE_SIZE."""

_KINDS = {
    Kind.SERVER: trace.SpanKind.SERVER,
    Kind.CLIENT: trace.SpanKind.CLIENT,
    Kind.INTERNAL: trace.SpanKind.INTERNAL,
}
_FINE = Status(StatusCode.UNSET)

log = structlog.get_logger()


class _Watched(SpanExporter):
    """An exporter's counts, and one line in the log when the collector goes away, one when it is back. Its batches
    come on the SDK's own thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._away = False
        self.taken = 0
        """Spans that wait no more: their sending has begun."""
        self.sent = self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Blocks until they are sent, or OTEL_EXPORTER_OTLP_TIMEOUT has passed."""
        self.taken += len(spans)
        result = self._exporter.export(spans)
        away = result is not SpanExportResult.SUCCESS
        if away:
            self.failed += len(spans)
        else:
            self.sent += len(spans)
        if away is not self._away:
            self._away = away
            if away:
                log.warning("traces_not_sent", remedy="is the collector of OTEL_EXPORTER_OTLP_ENDPOINT up?")
            else:
                log.info("traces_sent_again")
        return result

    def shutdown(self) -> None:
        """No more comes."""
        self._exporter.shutdown()


class Traces:
    """Implements `bill.Sink`. All but its sending is on the event loop; also a collector of its counts for Prometheus.

    Raises `ConfigError` where an ``OTEL_*`` variable can't be used.
    """

    def __init__(self, *, instance: str, version: str, clock: Clock) -> None:
        self.boot = secrets.token_hex(8)
        self._clock = clock
        _check_protocol()
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # `_Watched` says it once
        provider = TracerProvider(shutdown_on_exit=False)  # the SDK's reading of the environment
        self._sampler = provider.sampler
        self._resource = _named(provider.resource, instance, version)
        self._scope = InstrumentationScope("orchestrator", version)
        try:
            self._spans_max = int(os.environ.get(OTEL_BSP_MAX_QUEUE_SIZE) or SPANS_MAX_DEFAULT)
            self._exporter = _Watched(OTLPSpanExporter())
            self._processor = BatchSpanProcessor(self._exporter, max_queue_size=self._spans_max)
        except (ValueError, OSError) as error:
            raise ConfigError(f"tracing: an OTEL_* variable can't be used: {error}") from None
        self._handed = 0
        self._dropped = 0

    def samples(self, trace_id: int, parent: Context | None) -> bool:
        """See `bill.Sink.samples`."""
        around = None
        if parent is not None:
            around = trace.set_span_in_context(trace.NonRecordingSpan(_context(parent, remote=True)))
        found = self._sampler.should_sample(around, trace_id, "request", trace.SpanKind.SERVER)
        return found.decision is Decision.RECORD_AND_SAMPLE

    def export(self, spans: tuple[Span, ...]) -> None:
        """See `bill.Sink.export`. All of a call's are dropped, or none."""
        if self._handed - self._exporter.taken + len(spans) > self._spans_max:
            self._dropped += len(spans)
            return
        self._handed += len(spans)
        offset_s = self._clock.unix() - self._clock.monotonic()
        for span in spans:
            self._processor.on_end(self._readable(span, offset_s))

    def collect(self) -> Iterable[Metric]:
        """As `prometheus_client` asks."""
        spans = CounterMetricFamily("orchestrator_trace_spans", "Spans, by what became of them.", labels=["outcome"])
        spans.add_metric(["sent"], self._exporter.sent)
        spans.add_metric(["failed"], self._exporter.failed)
        spans.add_metric(["dropped"], self._dropped)
        return (spans,)

    async def aclose(self) -> None:
        """Send what waits, for at most `FLUSH_S`; a collector that does not answer is left behind."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK's
            with contextlib.suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=end, name="traces-end", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await ended.wait()
        except TimeoutError:
            log.warning("traces_left_behind", spans=self._handed - self._exporter.sent - self._exporter.failed)

    def _readable(self, span: Span, offset_s: float) -> ReadableSpan:
        """The SDK would have spans begin and end as they happen, under ids of its own choice. Ours are known at its
        end, when one of their ids has long been told to the engine."""
        link = () if span.link is None else (trace.Link(_context(span.link)),)
        return ReadableSpan(
            name=span.name,
            context=_context(span.context),
            parent=None if span.parent is None else _context(span.parent, remote=span.remote),
            resource=self._resource,
            attributes=span.attributes,
            links=link,
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.fault) if span.fault else _FINE,
            start_time=int((span.began_at + offset_s) * 1e9),
            end_time=int((span.ended_at + offset_s) * 1e9),
            instrumentation_scope=self._scope,
        )


def _check_protocol() -> None:
    for name in (OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, OTEL_EXPORTER_OTLP_PROTOCOL):
        if told := os.environ.get(name, "").strip():
            if told != PROTOCOL:
                raise ConfigError(f"tracing: {name} is {told}, but only {PROTOCOL} is spoken here (port 4318, mostly)")
            return


def _context(context: Context, *, remote: bool = False) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if context.sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(context.trace_id, context.span_id, is_remote=remote, trace_flags=flags)


def _named(resource: Resource, instance: str, version: str) -> Resource:
    """What the environment says of this service comes before what we say."""
    ours = {SERVICE_NAME: "orchestrator", "service.version": version, "service.instance.id": instance}
    told = {name: value for name, value in resource.attributes.items() if not str(value).startswith("unknown_service")}
    return resource.merge(Resource({**ours, **told}))
