"""Engines as containers. What runs is what the daemons list: by our label, after a restart too.

A host that does not answer is unknown, not empty: its engines are listed as they were last seen, in state UNKNOWN,
and nothing of it is stopped, or started anew elsewhere, on the strength of its silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError
from docker.errors import NotFound as NoSuchThing

from orchestrator.crash import crash_point
from orchestrator.errors import LaunchFailed, NotFound, RuntimeUnavailable
from orchestrator.gpu import Gpu
from orchestrator.model import Instance, InstanceState
from orchestrator.ports import LaunchSpec
from orchestrator.slug import slug
from runtimes.docker import container, paths
from runtimes.docker.container import Mount, Options, name_of
from runtimes.docker.host import Address, DockerHost
from runtimes.docker.log import follow as follow_log
from runtimes.docker.log import tail_of
from runtimes.docker.probe import HostGpus
from runtimes.docker.said import NOT_RUN, not_run, said
from runtimes.gpu_watch import LocalGpus
from runtimes.kept_logs import KeptLogs, is_name

LOG_KEPT_BYTES = 2**20
KILL_WAIT_S = 10.0
POLL_S = 0.05
LINE_BYTES = 100
"""Docker counts a log's tail in lines; about so long are those of an engine."""
INSPECTS_MAX = 8
"""In one listing; the rest are asked in the next ones."""
CONFLICT, GONE = 409, 404
UNSEEN_S_MAX = 60.0
"""After our start nothing is launched for this long while a host has not answered once: it may run what we miss."""


class DockerRuntime:
    """`ports.Runtime` over Docker hosts; `local_gpus` are those of this machine, if it is among them."""

    def __init__(
        self,
        *,
        hosts: Sequence[Address],
        options: Options,
        folder: Path,
        caches: Path,
        local_gpus: LocalGpus,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hosts = {address.name: DockerHost(address, options.instance) for address in hosts}
        self._options = options
        self._logs = KeptLogs(folder / "logs")
        self._caches = caches
        self.on_missing_image: Callable[[str, str], None] = lambda host, image: None
        """Told of a host, and an image that it turned out not to have."""
        self._gpus = {name: HostGpus(host, local_gpus, options) for name, host in self.hosts.items()}
        self._monotonic = monotonic
        self._began_at = monotonic()
        self._launching: set[str] = set()
        self._stopping: Counter[str] = Counter()
        self._ends: dict[str, tuple[int | None, str]] = {}

    # --- ports.Runtime ---

    async def launch(self, spec: LaunchSpec) -> None:
        """See `ports.Runtime.launch`. Creates the container and starts it."""
        host = self.hosts[spec.host]
        mounts, caches = await self._mounts(host, spec)
        body = container.creation(spec, self._options_of(host), mounts, caches)
        self._launching.add(spec.id)
        try:
            await self._launch(host, spec, body)
        finally:
            self._launching.discard(spec.id)

    async def list(self) -> tuple[Instance, ...]:
        """See `ports.Runtime.list`. Raises `RuntimeUnavailable` when no host answers, or, soon after our start, when
        one has not answered yet."""
        heard = dict(zip(self.hosts, await asyncio.gather(*(h.look() for h in self.hosts.values())), strict=True))
        silent = [host for name, host in self.hosts.items() if not heard[name]]
        if len(silent) == len(self.hosts) or (self._fresh and any(host.answered_at is None for host in silent)):
            raise RuntimeUnavailable("; ".join(host.fault for host in silent))
        found = [self._instance(each, host) for host in self.hosts.values() for each in host.listed]
        seen = [replace(i, state=InstanceState.UNKNOWN) if not heard[i.host] else i for i in found]
        await self._learn_ends(seen)
        return tuple(self._explained(instance) for instance in seen)

    @property
    def _fresh(self) -> bool:
        return self._monotonic() - self._began_at < UNSEEN_S_MAX

    async def stop(self, replica: str, *, grace_s: float) -> None:
        """See `ports.Runtime.stop`. The end of its log is kept. Looks on every host that answers."""
        if not is_name(replica):
            return
        self._stopping[replica] += 1
        try:
            await asyncio.gather(*(self._stop(host, replica, grace_s) for host in self._hosts_of(replica)))
        finally:
            self._stopping[replica] -= 1
            self._stopping += Counter()  # drops what has come down to zero
            self._ends.pop(replica, None)

    async def logs(self, replica: str, *, tail_bytes: int, follow: bool = False) -> AsyncIterator[bytes]:
        """See `ports.Runtime.logs`. Following ends when the engine has."""
        host = self._host_with(replica)
        if host is None:
            kept = await asyncio.to_thread(self._logs.found(replica).read_bytes)
            yield kept[-tail_bytes:]
            return
        name = name_of(replica)
        if not follow:
            yield (await host.call(partial(tail_of, name)))[-tail_bytes:]
            return
        async for chunk in follow_log(host, name, tail_lines=max(tail_bytes // LINE_BYTES, 1)):
            yield chunk

    async def log_tail(self, replica: str, *, tail_bytes: int) -> str:
        """See `ports.Runtime.log_tail`."""
        with contextlib.suppress(NotFound, OSError, RuntimeUnavailable, APIError):
            host = self._host_with(replica)
            if host is None:
                tail = await asyncio.to_thread(self._logs.found(replica).read_bytes)
            else:
                tail = await host.call(partial(tail_of, name_of(replica)))
            return tail[-tail_bytes:].decode("utf-8", "replace")
        return ""

    async def gpus(self) -> tuple[Gpu, ...] | None:
        """See `ports.Runtime.gpus`. Those of a silent host are not fit to be leased."""
        found = await asyncio.gather(*(source.gpus() for source in self._gpus.values()))
        unknown = [name for name, source in self._gpus.items() if not source.ready]
        if (self._fresh and unknown) or not all(self.hosts[name].fault for name in unknown):
            return None
        return tuple(
            replace(gpu, host=name, healthy=gpu.healthy and not host.fault, fault=gpu.fault or host.fault)
            for (name, host), gpus in zip(self.hosts.items(), found, strict=True)
            for gpu in gpus
        )

    def probe_with(self, host: str, image: str) -> None:
        """An image that the host has: its GPUs can be asked for now."""
        self._gpus[host].probe_with(image)

    def places(self) -> tuple[str, ...]:
        """See `ports.Runtime.places`."""
        return tuple(name for name, host in self.hosts.items() if name and not host.fault)

    def watch(self, changed: Callable[[], None]) -> None:
        """See `ports.Runtime.watch`."""
        for host in self.hosts.values():
            host.watch(asyncio.get_running_loop(), changed)

    def close(self) -> None:
        """Let go of the threads, and of what looked at GPUs. Engines run on. Blocks for some seconds at most."""
        for source in self._gpus.values():
            source.close()
        for host in self.hosts.values():
            host.close()

    # --- launching ---

    async def _launch(self, host: DockerHost, spec: LaunchSpec, body: Mapping[str, Any]) -> None:
        crash_point("launch.before_create")
        if not await host.call(partial(self._create, body, spec)):
            return
        crash_point("launch.after_create")
        try:
            await host.call(lambda client: client.start(name_of(spec.id)))
        except APIError as error:
            await self._remove(host, name_of(spec.id))
            raise LaunchFailed(f"the container can't be started: {said(error)}") from None
        crash_point("launch.after_start")

    def _create(self, body: Mapping[str, Any], spec: LaunchSpec, client: docker.APIClient) -> bool:
        """In a thread. False when the replica is there already."""
        try:
            client.create_container_from_config(dict(body), name_of(spec.id))
        except NoSuchThing as error:
            if "image" not in said(error).lower():
                raise LaunchFailed(f"the container can't be made: {said(error)}") from None
            self.on_missing_image(spec.host, spec.image)
            raise LaunchFailed(f"the image {spec.image} is gone from the host; it is pulled again") from None
        except APIError as error:
            if error.status_code != CONFLICT:
                raise LaunchFailed(f"the container can't be made: {said(error)}") from None
            return self._half_made(client, spec)
        return True

    def _half_made(self, client: docker.APIClient, spec: LaunchSpec) -> bool:
        """The name is taken: True when by a container of ours, for this replica, that was never started."""
        found = client.inspect_container(name_of(spec.id))
        if found["Config"]["Labels"].get(container.INSTANCE) != self._options.instance:
            raise LaunchFailed(f"another's container is called {name_of(spec.id)}")
        return bool(found["State"]["Status"] == "created")

    def _options_of(self, host: DockerHost) -> Options:
        return replace(self._options, address=host.address.engines_at)

    async def _mounts(self, host: DockerHost, spec: LaunchSpec) -> tuple[tuple[Mount, ...], str]:
        """What the container sees of its host, and where it keeps its caches. On a distant host, where we can make no
        folder that it may write to, they are not kept."""
        mounted = await host.own_mounts()
        weights = (paths.mount_of(paths.weights_folder(spec.weights), mounted),) if spec.weights else ()
        if not await host.near():
            return weights, container.TMP
        caches = self._cache_folder(spec)
        await asyncio.to_thread(_make_writable, caches, self._options.user)
        return (*weights, paths.mount_of(str(caches), mounted, read_only=False)), str(caches)

    def _cache_folder(self, spec: LaunchSpec) -> Path:
        """Compiled kernels fit one model on one kind of GPU in one version of the engine."""
        kind = sorted({gpu.name for source in self._gpus.values() for gpu in source.known if gpu.uuid in spec.gpus})
        digest = hashlib.sha256("\n".join((spec.model, spec.image, *kind)).encode()).hexdigest()[:12]
        return self._caches / f"{slug(spec.model)}-{digest}"

    # --- listing ---

    def _instance(self, found: Mapping[str, Any], host: DockerHost) -> Instance:
        replica = found["Labels"][container.REPLICA]
        return container.instance_of(
            found, host.name, launching=replica in self._launching, stopping=bool(self._stopping[replica])
        )

    async def _learn_ends(self, instances: Sequence[Instance]) -> None:
        """Ask once about each that has ended: a listing does not tell that memory ran out."""
        ended = [i for i in instances if i.state is InstanceState.EXITED and i.id not in self._ends]
        for instance in ended[:INSPECTS_MAX]:
            with contextlib.suppress(RuntimeUnavailable, APIError):
                host, name = self.hosts[instance.host], name_of(instance.id)
                state = (await host.call(_inspect(name)))["State"]
                reason = self._out_of_memory() if state.get("OOMKilled") else state.get("Error") or ""
                if not reason and state.get("ExitCode") in NOT_RUN:
                    reason = not_run((await host.call(partial(tail_of, name))).decode("utf-8", "replace"))
                self._ends[instance.id] = (state.get("ExitCode"), reason)

    def _out_of_memory(self) -> str:
        limit = self._options.memory_bytes_max
        remedy = f"raise runtime.memory_bytes_max, now {limit / 2**20:.0f} MiB" if limit else "its host has too little"
        return f"its container ran out of memory: {remedy}"

    def _explained(self, instance: Instance) -> Instance:
        if instance.state is not InstanceState.EXITED or instance.id not in self._ends:
            return instance
        code, reason = self._ends[instance.id]
        return replace(instance, exit_code=code, reason=reason or instance.reason)

    def _host_with(self, replica: str) -> DockerHost | None:
        holds = (h for h in self.hosts.values() if any(c["Labels"][container.REPLICA] == replica for c in h.listed))
        return next(holds, None)

    def _hosts_of(self, replica: str) -> tuple[DockerHost, ...]:
        """Where it is, or, when no listing has shown it, where it may be."""
        found = self._host_with(replica)
        return (found,) if found else tuple(host for host in self.hosts.values() if not host.fault)

    # --- stopping ---

    async def _stop(self, host: DockerHost, replica: str, grace_s: float) -> None:
        """What bears our labels and the replica's, whatever it is called by now."""
        for found in await host.call(host.containers):
            if found["Labels"][container.REPLICA] == replica:
                crash_point("stop.before_signal")
                await self._end(host, found["Id"], grace_s)
                crash_point("stop.after_signal")
                await self._keep_log(host, found["Id"], replica)
                crash_point("stop.before_clear")
                await self._remove(host, found["Id"])

    async def _end(self, host: DockerHost, name: str, grace_s: float) -> None:
        """SIGTERM, and SIGKILL for what is still there after the grace. No call to the daemon lasts that long."""
        with contextlib.suppress(APIError):  # it has ended meanwhile
            await host.call(lambda client: client.kill(name, "SIGTERM"))
            if not await self._ended(host, name, grace_s):
                await host.call(lambda client: client.kill(name, "SIGKILL"))
                if not await self._ended(host, name, KILL_WAIT_S):
                    raise RuntimeUnavailable(f"{name} was killed, but is still there")

    async def _ended(self, host: DockerHost, name: str, timeout_s: float) -> bool:
        ends_at = self._monotonic() + timeout_s
        while (await host.call(_inspect(name)))["State"]["Running"]:
            if self._monotonic() >= ends_at:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def _keep_log(self, host: DockerHost, name: str, replica: str) -> None:
        with contextlib.suppress(APIError, OSError):
            tail = await host.call(partial(tail_of, name))
            await asyncio.to_thread(self._logs.path(replica).write_bytes, tail[-LOG_KEPT_BYTES:])
            await asyncio.to_thread(self._logs.prune)

    async def _remove(self, host: DockerHost, name: str) -> None:
        """Its anonymous volumes too. Being gone, or about to be, is as good."""
        try:
            await host.call(lambda client: client.remove_container(name, force=True, v=True))
        except APIError as error:
            if error.status_code not in (GONE, CONFLICT):
                raise RuntimeUnavailable(f"{name} can't be removed: {said(error)}") from None


def _inspect(name: str) -> Callable[[docker.APIClient], dict[str, Any]]:
    return lambda client: client.inspect_container(name)


def _make_writable(folder: Path, user: str) -> None:
    """Only the engine's user may write there; that is ours, unless we are root."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0 and user:
        uid, _, gid = user.partition(":")
        os.chown(folder, int(uid), int(gid or uid))
