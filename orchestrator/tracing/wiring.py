"""What the service is made of where requests are traced, and where they are not."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry

from orchestrator import wire
from orchestrator.access.auth import Admission
from orchestrator.activator import Route
from orchestrator.errors import ConfigError
from orchestrator.metering.meter import Bill, MakeBill
from orchestrator.model import StartRecord
from orchestrator.ports import Clock, History
from orchestrator.settings import TracingSettings
from orchestrator.tracing.bill import Sink, TimedAdmission, TracedBill, new_id, request_head
from orchestrator.tracing.context import start_context
from orchestrator.tracing.spans import start_spans

REMEDY = "pip install 'orchestrator[otel]'"

Routes = Callable[[], Mapping[str, Route]]


async def _nothing() -> None:
    """There is nothing to end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracing:
    """The parts that differ. By default nothing is traced, and nothing is done for it."""

    keys: Admission
    history: History
    bill: MakeBill = Bill
    request_head: wire.RequestHead = wire.request_head
    aclose: Callable[[], Awaitable[None]] = _nothing


def tracing(
    settings: TracingSettings,
    *,
    keys: Admission,
    history: History,
    routes: Routes,
    clock: Clock,
    registry: CollectorRegistry,
    instance: str,
) -> Tracing:
    """The parts that `settings` ask for. Raises `ConfigError` where what they need is not installed, or an
    ``OTEL_*`` variable can't be used."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"  # as everywhere
    if not settings.enabled or off:
        return Tracing(keys=keys, history=history)
    try:
        from orchestrator.tracing.otlp import Traces
    except ModuleNotFoundError as error:
        raise ConfigError(f"tracing.enabled needs {error.name}, which is not installed: {REMEDY}") from None
    traces = Traces(instance=instance, version=importlib.metadata.version("orchestrator"), clock=clock)
    registry.register(traces)
    return Tracing(
        keys=TimedAdmission(keys, clock.monotonic),
        history=TracedHistory(history, traces, routes, clock.monotonic),
        bill=partial(TracedBill, sink=traces, routes=routes),
        request_head=request_head,
        aclose=traces.aclose,
    )


class TracedHistory:
    """Remembers starts as another does, and traces them. Implements `ports.History`."""

    def __init__(self, history: History, sink: Sink, routes: Routes, monotonic: Callable[[], float]) -> None:
        """`routes`: as they were published before the start ended."""
        self._history = history
        self._sink = sink
        self._routes = routes
        self._now = monotonic

    def record(self, start: StartRecord) -> None:
        """See `History.record`."""
        self._history.record(start)
        route = self._routes().get(start.model)
        if route is None or route.track.start_at is None:
            return
        context = start_context(self._sink.boot, start.model, route.track.start_at)
        if self._sink.samples(context.trace_id, None):
            self._sink.export(start_spans(start, route.track, self._now(), context, new_id))

    async def starts(
        self, *, model: str | None = None, wake: bool | None = None, limit: int = 100
    ) -> tuple[StartRecord, ...]:
        """See `History.starts`."""
        return await self._history.starts(model=model, wake=wake, limit=limit)
