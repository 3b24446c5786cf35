"""What Prometheus reads at ``/metrics``: counters that requests and the loop turn, gauges read then."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from orchestrator.activator import Activator
from orchestrator.balance.lane_metrics import LaneGauges
from orchestrator.gpu_metrics import GpuGauges
from orchestrator.model import Fleet, Phase, StartRecord

REQUEST_BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_COUNTERS = ("ok", "failed", "cancelled", "refused", "prompt_tokens", "completion_tokens")
_TALLIES = ("seconds", "first_byte_seconds", "held_seconds")
_TALLY_LENGTH = len(REQUEST_BUCKETS_S) + 2
START_BUCKETS_S = (0.25, 1, 2.5, 5, 10, 20, 40, 60, 90, 120, 180, 300, 600, 1200, 3600)


class Tally:
    """A histogram as plain numbers: observing one is a look-up and two additions, a fifth of the library's cost."""

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._buckets, value)] += 1
        self._sum += value

    def numbers(self) -> list[float]:
        """All of them, to be added to another's."""
        return [*self._counts, self._sum]

    def add(self, numbers: Sequence[float]) -> None:
        """Count what another did."""
        for place, count in enumerate(numbers[:-1]):
            self._counts[place] += int(count)
        self._sum += numbers[-1]

    def exposed(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative buckets and their sum, as the text format wants them."""
        total, buckets = 0, []
        for bound, count in zip((*self._buckets, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        return buckets, self._sum


class ModelMetrics:
    """One model's numbers: requests turn them, a scrape reads them."""

    def __init__(self) -> None:
        self.ok = self.failed = self.cancelled = self.refused = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.seconds = Tally(REQUEST_BUCKETS_S)
        self.first_byte_seconds = Tally(REQUEST_BUCKETS_S)
        self.held_seconds = Tally(REQUEST_BUCKETS_S)

    def numbers(self) -> list[float]:
        """All of them in one order, to be added to another's."""
        counters = [float(getattr(self, name)) for name in _COUNTERS]
        return counters + [number for name in _TALLIES for number in getattr(self, name).numbers()]

    def add(self, numbers: Sequence[float]) -> None:
        """Count what another process did: its `numbers`. Raises ValueError where they are of another version's."""
        if len(numbers) != len(_COUNTERS) + len(_TALLIES) * _TALLY_LENGTH:
            raise ValueError(f"{len(numbers)} numbers are not those of a model")
        for name, count in zip(_COUNTERS, numbers, strict=False):
            setattr(self, name, getattr(self, name) + int(count))
        for place, name in enumerate(_TALLIES):
            start = len(_COUNTERS) + place * _TALLY_LENGTH
            getattr(self, name).add(numbers[start : start + _TALLY_LENGTH])

    def ended(self, outcome: str, seconds: float) -> None:
        """A request ended: ok, error, cancelled or refused."""
        if outcome == "ok":
            self.ok += 1
            self.seconds.observe(seconds)
        elif outcome == "refused":
            self.refused += 1
        elif outcome == "cancelled":
            self.cancelled += 1
        else:
            self.failed += 1
            self.seconds.observe(seconds)


class Metrics:
    """All metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: dict[str, ModelMetrics] = {}
        self._known: Callable[[], Iterable[str]] = tuple
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
        self.wake_seconds = Histogram(
            "orchestrator_wake_seconds",
            "Seconds that sleeping engines took to wake, or to fail to.",
            ["model", "outcome"],
            buckets=START_BUCKETS_S,
            registry=self.registry,
        )
        self.evictions = Counter(
            "orchestrator_evictions",
            "Replicas that were told to make room on their GPUs.",
            ["model"],
            registry=self.registry,
        )
        self.loop_passes = Counter("orchestrator_loop_passes", "Reconcile passes.", registry=self.registry)
        self.loop_errors = Counter(
            "orchestrator_effect_errors", "Effects that failed.", ["effect"], registry=self.registry
        )

    def of(self, model: str) -> ModelMetrics:
        """The numbers of a configured model. Never call it with a name a client made up."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = ModelMetrics()
        return found

    def by_model(self) -> Mapping[str, ModelMetrics]:
        """The numbers of all models that were ever asked for, to read."""
        return self._models

    def started(self, record: StartRecord) -> None:
        """A start ended."""
        if record.wake:
            self.wake_seconds.labels(record.model, record.outcome).observe(record.seconds.get(Phase.LOADING, 0.0))
            return
        self.starts.labels(record.model, record.outcome).inc()
        for phase, seconds in record.seconds.items():
            self.start_seconds.labels(record.model, phase).observe(seconds)

    def watch(self, activator: Activator, fleet: Callable[[], Fleet]) -> None:
        """Read the gauges from `activator` and the last `fleet`, and the requests' numbers, at each scrape."""
        self._known = lambda: activator.routes
        self.registry.register(_Gauges(activator))
        self.registry.register(LaneGauges(activator))
        self.registry.register(GpuGauges(fleet))
        self.registry.register(_Requests(self._models))

    def page(self) -> bytes:
        """The text format of https://prometheus.io/docs/instrumenting/exposition_formats/. Counters begin at 0, not
        with what they first count: that would be no increase."""
        for model in self._known():
            self.of(model)
            for outcome in ("ready", "failed"):
                self.starts.labels(model, outcome)
        return generate_latest(self.registry)


class _Requests:
    def __init__(self, models: Mapping[str, ModelMetrics]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily("orchestrator_requests", "Proxied requests.", labels=["model", "outcome"])
        refused = CounterMetricFamily("orchestrator_cold_responses", "503s for want of an engine.", labels=["model"])
        tokens = CounterMetricFamily("orchestrator_tokens", "Tokens that engines reported.", labels=["kind", "model"])
        seconds = HistogramMetricFamily(
            "orchestrator_request_seconds", "From the request to the last byte of its answer.", labels=["model"]
        )
        first = HistogramMetricFamily(
            "orchestrator_first_byte_seconds",
            "From the request to the head of its answer, time held included.",
            labels=["model"],
        )
        held = HistogramMetricFamily(
            "orchestrator_held_seconds",
            "How long requests stood that had to wait for an engine or a place at one, and got it.",
            labels=["model"],
        )
        for model, numbers in self._models.items():
            for outcome, count in (("ok", numbers.ok), ("error", numbers.failed), ("cancelled", numbers.cancelled)):
                requests.add_metric([model, outcome], count)
            refused.add_metric([model], numbers.refused)
            tokens.add_metric(["prompt", model], numbers.prompt_tokens)
            tokens.add_metric(["completion", model], numbers.completion_tokens)
            seconds.add_metric([model], *numbers.seconds.exposed())
            first.add_metric([model], *numbers.first_byte_seconds.exposed())
            held.add_metric([model], *numbers.held_seconds.exposed())
        return (requests, refused, tokens, seconds, first, held)


class _Gauges:
    def __init__(self, activator: Activator) -> None:
        self._activator = activator

    def collect(self) -> Iterable[Metric]:
        phase = GaugeMetricFamily("orchestrator_model_phase", "1 for the phase it is in.", labels=["model", "phase"])
        held = GaugeMetricFamily("orchestrator_held_requests", "Requests held.", labels=["model"])
        flight = GaugeMetricFamily("orchestrator_in_flight_requests", "Requests at engines.", labels=["model"])
        ready = GaugeMetricFamily("orchestrator_ready_replicas", "Ready replicas.", labels=["model"])
        failures = GaugeMetricFamily(
            "orchestrator_failures_in_a_row", "Engines that failed since one served for a while.", labels=["model"]
        )
        for model, route in self._activator.routes.items():
            failures.add_metric([model], route.backoff.failures if route.backoff else 0)
            for each in Phase:
                phase.add_metric([model, each], float(route.track.phase is each))
            held.add_metric([model], self._activator.held_for(model))
            flight.add_metric([model], sum(lane.taken for lane in (*route.lanes, *route.out)))
            ready.add_metric([model], len(route.lanes))
        return (phase, held, flight, ready, failures)
