"""The GPUs of a host elsewhere, as a small container there reports them: ``nvidia-smi`` in a loop, read from its log.

NVIDIA's container toolkit puts ``nvidia-smi`` into every container that has GPUs, whatever its image. There is one
probe a host and orchestrator: it goes when the orchestrator ends in good order, and is found again after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import docker
from docker.errors import APIError
from docker.errors import NotFound as NoSuchThing

from orchestrator.errors import RuntimeUnavailable
from orchestrator.gpu import Gpu
from runtimes.docker import container
from runtimes.docker.container import Options
from runtimes.docker.host import DockerHost
from runtimes.gpu_watch import LOOK_WAIT_S, LocalGpus

LOOP_S = 5
TAIL_LINES = 64
FRESH_S = 5.0
ABSENT_S = 60.0
"""A host that can't give GPUs to containers is asked this often."""
REMOVE_S = 5.0
NO_DRIVER = "could not select device driver"
FIELDS = "uuid,index,name,memory.total,memory.free,mig.mode.current"
ROLE = "gpu-probe"
_MIB = 2**20


class ProbedGpus:
    """Keeps one probe container on the host, and reads what it last said. `image` is any that is there already."""

    def __init__(self, host: DockerHost, options: Options, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._options = options
        self._now = monotonic
        self._due_at = 0.0
        self._name = f"orchestrator-{ROLE}-{options.instance}"
        self.image = ""
        self.known: tuple[Gpu, ...] = ()
        self.ready = False

    async def gpus(self) -> tuple[Gpu, ...]:
        """As of some seconds ago; none before an engine's image is on the host. Never raises."""
        if not self.image or self._now() < self._due_at:
            return self.known
        self._due_at = self._now() + FRESH_S
        with contextlib.suppress(RuntimeUnavailable, APIError):
            said = await self._host.call(self._look)
            if said is None:
                self._due_at, self.ready = self._now() + ABSENT_S, True
            elif found := read(said):
                self.known, self.ready = found, True
        return self.known

    def _look(self, client: docker.APIClient) -> str | None:
        """The end of the probe's log; None when it can't run there. Starts it where it does not run. Blocks."""
        try:
            state = client.inspect_container(self._name)["State"]
        except NoSuchThing:
            client.create_container_from_config(creation(self.image, self._options), self._name)
            state = {"Running": False, "ExitCode": 0}
        if not state["Running"]:
            try:
                client.start(self._name)
            except APIError as error:
                self._remove(client)
                if NO_DRIVER in str(error):
                    return None
                raise
            if state["ExitCode"]:  # it did not run for long the last time: no driver, or no nvidia-smi
                return None
        return bytes(client.logs(self._name, tail=TAIL_LINES)).decode("utf-8", "replace")

    def _remove(self, client: docker.APIClient) -> None:
        with contextlib.suppress(APIError):
            client.remove_container(self._name, force=True, v=True)

    def close(self) -> None:
        """Remove the probe. Blocks for `REMOVE_S` at most."""
        if self.image and not self._host.fault:
            self._host.call_now(self._remove, REMOVE_S)


class HostGpus:
    """The GPUs of one host: read here where it is near and we can, else probed."""

    def __init__(self, host: DockerHost, local: LocalGpus, options: Options) -> None:
        self._host = host
        self._local = local
        self._probed = ProbedGpus(host, options)
        self._look: asyncio.Future[None] | None = None
        self.probes = False

    @property
    def known(self) -> tuple[Gpu, ...]:
        """As of the last look."""
        return self._probed.known if self.probes else self._local.known

    @property
    def ready(self) -> bool:
        """Whether a look has succeeded. A near host without a driver, where no probe is wanted, has none."""
        return self._probed.ready if self.probes else self._local.ready

    async def gpus(self) -> tuple[Gpu, ...]:
        """As of some seconds ago at most. Never raises; waits `LOOK_WAIT_S` at most, and for no silent host."""
        if not self._host.fault:
            if self._look is None:
                self._look = asyncio.ensure_future(self._ask())
            if (await asyncio.wait((self._look,), timeout=LOOK_WAIT_S))[0]:
                self._look = None
        return self.known

    async def _ask(self) -> None:
        with contextlib.suppress(RuntimeUnavailable, APIError):
            self.probes = not await self._host.near()
            await (self._probed if self.probes else self._local).gpus()

    def probe_with(self, image: str) -> None:
        """An image that is on the host."""
        self._probed.image = image

    def close(self) -> None:
        """Leave nothing on the host."""
        if self.probes:
            self._probed.close()


def creation(image: str, options: Options) -> dict[str, Any]:
    """The body of ``POST /containers/create`` for the probe. It sees all GPUs, and can do nothing with them."""
    return {
        "Image": image,
        "Entrypoint": ["nvidia-smi"],
        "Cmd": [f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", f"--loop={LOOP_S}"],
        "Env": ["NVIDIA_DRIVER_CAPABILITIES=utility"],
        "User": options.user,
        "Labels": {container.INSTANCE: options.instance, container.ROLE: ROLE},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            **container.confinement(options),
            "NetworkMode": "none",
            "DeviceRequests": [{"Driver": "", "Count": -1, "Capabilities": [["gpu", "utility"]], "Options": {}}],
        },
    }


def read(log: str) -> tuple[Gpu, ...]:
    """The newest line of each GPU, by index. A line that makes no sense is passed over; a GPU in MIG mode counts as
    unfit, since its slices can't be told from here."""
    found: dict[str, Gpu] = {}
    for line in log.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 6 and cells[0].startswith("GPU-") and cells[1].isdigit() and cells[3].isdigit():
            found[cells[0]] = _gpu(dict(zip(FIELDS.split(","), cells, strict=True)))
    return tuple(sorted(found.values(), key=lambda gpu: gpu.index))


def _gpu(cells: Mapping[str, str]) -> Gpu:
    mig = cells["mig.mode.current"] == "Enabled"
    free = cells["memory.free"]
    return Gpu(
        uuid=cells["uuid"],
        index=int(cells["index"]),
        name=cells["name"],
        memory_bytes=int(cells["memory.total"]) * _MIB,
        free_bytes=int(free) * _MIB if free.isdigit() else 0,
        healthy=not mig,
        fault="its MIG slices can only be used on the orchestrator's own machine" if mig else "",
    )
