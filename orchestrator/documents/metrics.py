"""What Prometheus is told of documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.documents.ingest import Progress


class DocumentGauges(Collector):
    """Read at each scrape."""

    def __init__(self, progress: Callable[[], Progress], ready: Callable[[], bool]) -> None:
        self._progress = progress
        self._ready = ready

    def collect(self) -> Iterable[Metric]:
        """The gauges of the moment."""
        files = GaugeMetricFamily("orchestrator_ingest_files", "Files that vector stores read.", labels=["state"])
        progress = self._progress()
        files.add_metric(["running"], progress.running)
        files.add_metric(["waiting"], progress.waiting)
        up = "1 when files can be stored and read."
        return (files, GaugeMetricFamily("orchestrator_documents_ready", up, value=float(self._ready())))
