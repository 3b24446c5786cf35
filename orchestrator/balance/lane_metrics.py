"""What Prometheus reads of each replica of each model."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.activator import Activator
from orchestrator.balance.breaker import State
from orchestrator.balance.lane import Lane

LABELS = ["model", "replica"]


class LaneGauges(Collector):
    """Read at each scrape. Of what an engine does not tell, there is no sample."""

    def __init__(self, activator: Activator) -> None:
        self._activator = activator

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        gauges = {name: GaugeMetricFamily(f"orchestrator_replica_{name}", text, labels=LABELS) for name, text in _HELP}
        failures = CounterMetricFamily(
            "orchestrator_replica_failures", "Requests that failed before their first byte, and 5xx.", labels=LABELS
        )
        for model, route in self._activator.routes.items():
            for lane in (*route.lanes, *route.out):
                labels = [model, lane.replica]
                for name, value in _values(lane, rotating=lane in route.lanes).items():
                    gauges[name].add_metric(labels, value)
                if lane.breaker is not None:
                    failures.add_metric(labels, lane.breaker.failed)
        retries = CounterMetricFamily(
            "orchestrator_retries", "Requests that went on to another replica.", labels=["model"]
        )
        for model, balancer in self._activator.balancers.items():
            retries.add_metric([model], balancer.budget.taken)
        return (*gauges.values(), failures, retries)


_HELP = (
    ("in_flight_requests", "Requests at it that came by us."),
    ("running_requests", "Requests that it says it works on."),
    ("waiting_requests", "Requests that it says wait at it."),
    ("kv_cache_use", "The part of its KV cache in use, 0 … 1, as it says."),
    ("load", "(running * 3 + waiting) / capacity."),
    ("capacity", "Requests that it takes at once, as far as known."),
    ("in_rotation", "1 where it gets new requests."),
    ("breaker_open", "1 where its circuit breaker is open."),
)


def _values(lane: Lane, *, rotating: bool) -> dict[str, float]:
    values = {
        "in_flight_requests": float(lane.taken),
        "load": lane.loaded,
        "capacity": float(lane.takes),
        "in_rotation": float(rotating),
        "breaker_open": float(lane.breaker is not None and lane.breaker.state is State.OPEN),
    }
    if lane.load is not None:
        values |= {"running_requests": float(lane.load.running), "waiting_requests": float(lane.load.waiting)}
        if lane.load.kv_use is not None:
            values["kv_cache_use"] = lane.load.kv_use
    return values
