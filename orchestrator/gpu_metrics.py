"""GPUs at ``/metrics``: what there is, who holds how much of it, and who waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric

from orchestrator.model import Fleet
from orchestrator.placement import lease_bytes

_GPU = ["gpu", "host", "index"]


class GpuGauges:
    """Reads the last known fleet at each scrape."""

    def __init__(self, fleet: Callable[[], Fleet]) -> None:
        self._fleet = fleet

    def collect(self) -> Iterable[Metric]:
        """As `prometheus_client` asks."""
        fleet = self._fleet()
        memory = GaugeMetricFamily("orchestrator_gpu_memory_bytes", "A GPU's memory.", labels=_GPU)
        free = GaugeMetricFamily("orchestrator_gpu_free_bytes", "What nobody uses of it.", labels=_GPU)
        healthy = GaugeMetricFamily("orchestrator_gpu_healthy", "1 when it is fit for use.", labels=_GPU)
        leased = GaugeMetricFamily("orchestrator_gpu_leased_bytes", "What replicas lease.", labels=[*_GPU, "model"])
        foreign = GaugeMetricFamily(
            "orchestrator_gpu_foreign_bytes",
            "In use, and no lease explains it: another program, or a leak.",
            labels=_GPU,
        )
        queue = GaugeMetricFamily("orchestrator_gpu_queue", "Models that wait for GPUs.")
        for gpu in fleet.gpus:
            labels = [gpu.uuid, gpu.host, str(gpu.index)]
            memory.add_metric(labels, gpu.memory_bytes)
            free.add_metric(labels, gpu.free_bytes)
            healthy.add_metric(labels, float(gpu.healthy))
            foreign.add_metric(labels, fleet.foreign.get(gpu.uuid, 0))
            held: dict[str, int] = {}
            for replica in fleet.replicas.values():
                if gpu.uuid in replica.gpus:
                    held[replica.model] = held.get(replica.model, 0) + lease_bytes(replica, gpu)
            for model, count in held.items():
                leased.add_metric([*labels, model], count)
        queue.add_metric([], len(fleet.waits))
        return (memory, free, healthy, leased, foreign, queue)
