"""Which runtime, stores and engines a configuration asks for. Part of the wiring, see `app`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config import cache_dir
from orchestrator.model import EngineKind
from orchestrator.ports import Engine, Images, Prime, Runtime, WeightsStore
from orchestrator.settings import RuntimeSettings, Settings
from orchestrator.stock import Stock
from runtimes.engines import container_engines, engines
from runtimes.gpu_watch import PATIENCE_S, LocalGpus
from runtimes.gpus import GpuReader
from runtimes.process import ProcessRuntime
from storage.disk_room import DiskRoom
from storage.hub import cache_folder
from storage.page_cache import prime
from storage.weights import HubWeights

if TYPE_CHECKING:
    from runtimes.docker.host import Address

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
    room: DiskRoom
    prime: Prime | None


def build(settings: Settings, data: Path, instance: str) -> Parts:
    """The parts for `settings.runtime.kind`. Starts nothing."""
    reader = GpuReader(environ=os.environ, patience_s=PATIENCE_S)
    room = DiskRoom(cache_folder(os.environ), free_bytes_min=settings.storage.weights_free_bytes_min)
    weights = HubWeights(pulls_max=settings.runtime.pulls_max, make_room=room.make)
    shared = _Shared(reader=reader, weights=weights, room=room, prime=_prime if settings.runtime.prime else None)
    if settings.runtime.kind == "docker":
        return _docker(settings.runtime, data, instance, shared)
    runtime = ProcessRuntime(
        folder=data / "replicas",
        instance=instance,
        log_bytes_max=settings.runtime.log_bytes_max,
        environ=os.environ,
        gpus=LocalGpus(reader),
    )
    adapters = engines(cache_dir(os.environ))
    return Parts(
        runtime=runtime,
        engines=adapters,
        weights=weights,
        stock=weights,
        gpu_reader=reader,
        room=room,
        prime=shared.prime,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shared:
    """What every kind has."""

    reader: GpuReader
    weights: HubWeights
    room: DiskRoom
    prime: Prime | None


def _prime(folder: str, on_bytes: Callable[[int], None], cancelled: Callable[[], bool]) -> str:
    primed = prime(Path(folder), on_bytes=on_bytes, cancelled=cancelled)
    return primed.reason or f"all in memory after {primed.seconds:.1f} s"


def addresses(settings: RuntimeSettings) -> Sequence[Address]:
    """The Docker hosts; without any, the one that the environment names."""
    from runtimes.docker.host import Address

    hosts = [
        Address(name=h.name, url=h.url, engines_at=h.address, tls_ca=h.tls_ca, tls_cert=h.tls_cert, tls_key=h.tls_key)
        for h in settings.hosts
    ]
    return hosts or [Address()]


def _docker(settings: RuntimeSettings, data: Path, instance: str, shared: _Shared) -> Parts:
    from runtimes.docker.container import Options  # docker's own imports take long, and only this kind needs them
    from runtimes.docker.images import Images as DockerImages
    from runtimes.docker.runtime import DockerRuntime

    runtime = DockerRuntime(
        hosts=addresses(settings),
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
        local_gpus=LocalGpus(shared.reader),
    )
    images = DockerImages(runtime.hosts.values(), on_present=runtime.probe_with)
    runtime.on_missing_image = images.forget
    return Parts(
        runtime=runtime,
        engines=container_engines(),
        weights=shared.weights,
        stock=Stock((shared.weights, images)),
        images=images,
        gpu_reader=shared.reader,
        room=shared.room,
        prime=shared.prime,
    )
