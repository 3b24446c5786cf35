"""Which runtime, stores and engines a configuration asks for. With `app` the only module that names them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config import cache_dir
from orchestrator.model import EngineKind
from orchestrator.ports import Engine, Images, Runtime, WeightsStore
from orchestrator.settings import RuntimeSettings, Settings
from orchestrator.stock import Stock
from runtimes.engines import container_engines, engines
from runtimes.gpu_watch import PATIENCE_S, LocalGpus
from runtimes.gpus import GpuReader
from runtimes.process import ProcessRuntime
from storage.weights import HubWeights

NOBODY = "65534:65534"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What differs from one kind of runtime to the next."""

    runtime: Runtime
    engines: Mapping[EngineKind, Engine]
    weights: HubWeights
    stock: WeightsStore
    """All that must be on the disk before a start."""
    images: Images | None = None
    gpu_reader: GpuReader


def build(settings: Settings, data: Path, instance: str) -> Parts:
    """The parts for `settings.runtime.kind`. Starts nothing."""
    reader = GpuReader(environ=os.environ, patience_s=PATIENCE_S)
    weights = HubWeights(pulls_max=settings.runtime.pulls_max)
    if settings.runtime.kind == "docker":
        return _docker(settings.runtime, data, instance, reader, weights)
    runtime = ProcessRuntime(
        folder=data / "replicas",
        instance=instance,
        log_bytes_max=settings.runtime.log_bytes_max,
        environ=os.environ,
        gpus=LocalGpus(reader),
    )
    adapters = engines(cache_dir(os.environ))
    return Parts(runtime=runtime, engines=adapters, weights=weights, stock=weights, gpu_reader=reader)


def _docker(settings: RuntimeSettings, data: Path, instance: str, reader: GpuReader, weights: HubWeights) -> Parts:
    from runtimes.docker.container import Options  # docker's own imports take long, and only this kind needs them
    from runtimes.docker.host import Address
    from runtimes.docker.images import Images as DockerImages
    from runtimes.docker.runtime import DockerRuntime

    hosts = [
        Address(name=h.name, url=h.url, engines_at=h.address, tls_ca=h.tls_ca, tls_cert=h.tls_cert, tls_key=h.tls_key)
        for h in settings.hosts
    ]
    runtime = DockerRuntime(
        hosts=hosts or [Address()],
        options=Options(
            instance=instance,
            user=settings.user or (NOBODY if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"),
            read_only=settings.read_only,
            shm_bytes=settings.shm_bytes,
            memory_bytes_max=settings.memory_bytes_max,
            log_bytes_max=settings.log_bytes_max,
            network=settings.network,
        ),
        folder=data / "replicas",
        caches=(settings.caches_dir or data / "engine-caches").resolve(),
        local_gpus=LocalGpus(reader),
    )
    images = DockerImages(runtime.hosts.values(), on_present=runtime.probe_with)
    runtime.on_missing_image = images.forget
    return Parts(
        runtime=runtime,
        engines=container_engines(),
        weights=weights,
        stock=Stock((weights, images)),
        images=images,
        gpu_reader=reader,
    )
