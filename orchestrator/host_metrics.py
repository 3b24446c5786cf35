"""The service's own health at ``/metrics``: the room on its disks, and each check of ``GET /health``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric


class HostGauges:
    """`folders` by what they hold; those that there are not yet are left out. `checks` as ``GET /health`` answers."""

    def __init__(self, folders: Mapping[str, Path], checks: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        self._folders = folders
        self._checks = checks

    def collect(self) -> Iterable[Metric]:
        """As `prometheus_client` asks."""
        free = GaugeMetricFamily("orchestrator_disk_free_bytes", "Free on a folder's disk.", labels=["folder"])
        size = GaugeMetricFamily("orchestrator_disk_bytes", "The size of a folder's disk.", labels=["folder"])
        fine = GaugeMetricFamily("orchestrator_check_ok", "1 for what GET /health finds in order.", labels=["check"])
        for name, folder in self._folders.items():
            try:
                disk = shutil.disk_usage(folder)
            except OSError:
                continue
            free.add_metric([name], disk.free)
            size.add_metric([name], disk.total)
        for name, check in self._checks().items():
            fine.add_metric([name], float(check["ok"]))
        return (free, size, fine)
