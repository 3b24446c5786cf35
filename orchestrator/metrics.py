"""What Prometheus reads at ``/metrics``: counters that requests and the loop turn, gauges read then."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from orchestrator.activator import Activator
from orchestrator.model import Phase, StartRecord

REQUEST_BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
START_BUCKETS_S = (0.25, 1, 2.5, 5, 10, 20, 40, 60, 90, 120, 180, 300, 600, 1200, 3600)


class ModelMetrics:
    """One model's children, looked up once so that a request only increments."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.ok = metrics.requests.labels(model, "ok")
        self.failed = metrics.requests.labels(model, "error")
        self.cancelled = metrics.requests.labels(model, "cancelled")
        self.seconds = metrics.request_seconds.labels(model)
        self.first_byte_seconds = metrics.first_byte_seconds.labels(model)
        self.refused = metrics.refused.labels(model)
        self.prompt_tokens = metrics.tokens.labels(model, "prompt")
        self.completion_tokens = metrics.tokens.labels(model, "completion")


class Metrics:
    """All metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: dict[str, ModelMetrics] = {}
        self.requests = Counter(
            "orchestrator_requests", "Proxied requests.", ["model", "outcome"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "orchestrator_request_seconds",
            "From the request to the last byte of its answer.",
            ["model"],
            buckets=REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self.first_byte_seconds = Histogram(
            "orchestrator_first_byte_seconds",
            "From the request to the head of its answer, time held included.",
            ["model"],
            buckets=REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self.refused = Counter(
            "orchestrator_cold_responses",
            "503 answers for want of an engine.",
            ["model"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "orchestrator_tokens", "Tokens that engines reported.", ["model", "kind"], registry=self.registry
        )
        self.starts = Counter(
            "orchestrator_starts", "Cold starts that ended.", ["model", "outcome"], registry=self.registry
        )
        self.start_seconds = Histogram(
            "orchestrator_start_seconds",
            "Seconds of cold starts, by phase.",
            ["model", "phase"],
            buckets=START_BUCKETS_S,
            registry=self.registry,
        )
        self.loop_passes = Counter("orchestrator_loop_passes", "Reconcile passes.", registry=self.registry)
        self.loop_errors = Counter(
            "orchestrator_effect_errors", "Effects that failed.", ["effect"], registry=self.registry
        )

    def of(self, model: str) -> ModelMetrics:
        """The children of a configured model. Never call it with a name a client made up."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = ModelMetrics(self, model)
        return found

    def started(self, record: StartRecord) -> None:
        """A cold start ended."""
        self.starts.labels(record.model, record.outcome).inc()
        for phase, seconds in record.seconds.items():
            self.start_seconds.labels(record.model, phase).observe(seconds)

    def watch(self, activator: Activator) -> None:
        """Read the gauges from `activator` at each scrape."""
        self.registry.register(_Gauges(activator))

    def page(self) -> bytes:
        """The text format of https://prometheus.io/docs/instrumenting/exposition_formats/."""
        return generate_latest(self.registry)


class _Gauges:
    def __init__(self, activator: Activator) -> None:
        self._activator = activator

    def collect(self) -> Iterable[Metric]:
        phase = GaugeMetricFamily("orchestrator_model_phase", "1 for the phase it is in.", labels=["model", "phase"])
        held = GaugeMetricFamily("orchestrator_held_requests", "Requests held.", labels=["model"])
        flight = GaugeMetricFamily("orchestrator_in_flight_requests", "Requests at engines.", labels=["model"])
        ready = GaugeMetricFamily("orchestrator_ready_replicas", "Ready replicas.", labels=["model"])
        for model, route in self._activator.routes.items():
            for each in Phase:
                phase.add_metric([model, each], float(route.track.phase is each))
            held.add_metric([model], self._activator.held_for(model))
            flight.add_metric([model], sum(lane.in_flight for lane in route.lanes))
            ready.add_metric([model], len(route.lanes))
        return (phase, held, flight, ready)
