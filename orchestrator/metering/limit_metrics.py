"""Refusals at limits, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, Metric


class LimitCounters:
    """``orchestrator_limited_total``: at most four series for each key in the file, so no client can make more."""

    def __init__(self, refusals: Mapping[tuple[str, str], int]) -> None:
        """`refusals`: see `gate.Gate.refusals`."""
        self._refusals = refusals

    def collect(self) -> Iterable[Metric]:
        """Called at each scrape."""
        limited = CounterMetricFamily("orchestrator_limited", "429s, by key and limit.", labels=["key", "limit"])
        for labels, count in self._refusals.items():
            limited.add_metric(labels, count)
        return (limited,)
