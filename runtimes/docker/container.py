"""What an engine's container is made of, and what a listed container tells. Pure.

Nothing of a request reaches this: a container follows from the deployment and the runtime's options alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.model import Instance, InstanceState
from orchestrator.ports import LaunchSpec
from runtimes.kept_logs import is_name

INSTANCE, MODEL, REPLICA, SPEC = (f"orchestrator.{name}" for name in ("instance", "model", "replica", "spec"))
GPUS, GPU_BYTES, ROLE = "orchestrator.gpus", "orchestrator.gpu_bytes", "orchestrator.role"
PORT = 8000
"""Inside the container, whose network is its own."""
HOST = "0.0.0.0"
TMP = "/tmp"
TMP_BYTES_MAX = 4 * 2**30
PIDS_MAX = 8192
LOG_FILES = 2
_EXITED = re.compile(r"Exited \((\d+)\)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mount:
    """One thing of the host's that the container sees, at the same path as we do."""

    kind: str
    """``bind`` or ``volume``."""
    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How containers are made: the operator's choices, from the settings table."""

    instance: str
    user: str
    read_only: bool
    shm_bytes: int
    memory_bytes_max: int
    log_bytes_max: int
    network: str
    """The private network to start on; empty: the default one, with the port published on `address`."""
    address: str = "127.0.0.1"


def name_of(replica: str) -> str:
    """The container's name. Docker keeps names unique, which makes a launch idempotent."""
    return f"orchestrator-{replica}"


def creation(spec: LaunchSpec, options: Options, mounts: Sequence[Mount], caches: str) -> dict[str, Any]:
    """The body of ``POST /containers/create`` (https://docs.docker.com/reference/api/engine/).

    No privileges, no socket, no secret, no restart policy: when it ends, what follows is ours to decide. `caches` is
    the one folder that it may write to besides its temporary one.
    """
    argv = [part.replace("{host}", HOST).replace("{port}", str(PORT)) for part in spec.argv]
    env = {**_home(caches), **_no_gpus(spec), **dict(spec.env)}
    labels = {
        INSTANCE: options.instance,
        MODEL: spec.model,
        REPLICA: spec.id,
        SPEC: spec.spec,
        GPUS: ",".join(spec.gpus),
        GPU_BYTES: str(spec.gpu_bytes),
    }
    return {
        "Image": spec.image,
        "Entrypoint": argv[:1],
        "Cmd": argv[1:],
        "Env": [f"{key}={value}" for key, value in env.items()],
        "User": options.user,
        "Labels": labels,
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "ExposedPorts": {f"{PORT}/tcp": {}},
        "HostConfig": {**confinement(options), **_network(options), **_resources(spec, options, mounts)},
    }


def confinement(options: Options) -> dict[str, Any]:
    """What keeps a container from doing more than it must."""
    return {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": options.read_only,
        "Privileged": False,
        "Tmpfs": {TMP: f"rw,nosuid,nodev,exec,mode=1777,size={TMP_BYTES_MAX}"},
        "PidsLimit": PIDS_MAX,
        "RestartPolicy": {"Name": "no"},
        # As PID 1 an engine would ignore SIGTERM until it has set a handler, which takes most of its start.
        "Init": True,
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(options.log_bytes_max // LOG_FILES), "max-file": str(LOG_FILES)},
        },
    }


def is_ours(found: Mapping[str, Any], instance: str) -> bool:
    """Whether a listed container is an engine of this instance. This decides, whatever the listing was asked for."""
    labels = found.get("Labels") or {}
    return labels.get(INSTANCE) == instance and is_name(labels.get(REPLICA, ""))


def instance_of(found: Mapping[str, Any], host: str, *, launching: bool, stopping: bool) -> Instance:
    """A container of ours, as ``GET /containers/json`` shows it."""
    labels = found["Labels"]
    state = _state(found["State"], launching=launching, stopping=stopping)
    exited = _EXITED.match(found.get("Status", ""))
    return Instance(
        id=labels[REPLICA],
        model=labels.get(MODEL, ""),
        spec=labels.get(SPEC, ""),
        state=state,
        endpoint=endpoint_of(found),
        host=host,
        gpus=tuple(gpu for gpu in labels.get(GPUS, "").split(",") if gpu),
        gpu_bytes=int(number) if (number := labels.get(GPU_BYTES, "")).isdigit() else 0,
        exit_code=int(exited[1]) if exited else None,
        reason="it was created, but never started" if state is InstanceState.EXITED and not exited else "",
    )


def endpoint_of(found: Mapping[str, Any]) -> str | None:
    """Where the engine is reached: its published port, else its address on the private network."""
    for port in found.get("Ports") or ():
        if port.get("PrivatePort") == PORT and port.get("PublicPort"):
            return f"http://{port['IP']}:{port['PublicPort']}"
    for name, network in (found.get("NetworkSettings") or {}).get("Networks", {}).items():
        if name != "bridge" and network.get("IPAddress"):
            return f"http://{network['IPAddress']}:{PORT}"
    return None


def _state(docker: str, *, launching: bool, stopping: bool) -> InstanceState:
    if stopping or docker == "removing":
        return InstanceState.STOPPING
    if docker in ("running", "paused", "restarting") or launching:
        return InstanceState.RUNNING
    return InstanceState.EXITED


def _network(options: Options) -> dict[str, Any]:
    if options.network:
        return {"NetworkMode": options.network}
    return {"PortBindings": {f"{PORT}/tcp": [{"HostIp": options.address, "HostPort": ""}]}}


def _resources(spec: LaunchSpec, options: Options, mounts: Sequence[Mount]) -> dict[str, Any]:
    return {
        "Mounts": [{"Type": m.kind, "Source": m.source, "Target": m.target, "ReadOnly": m.read_only} for m in mounts],
        "IpcMode": "private",
        # The workers of a tensor-parallel engine talk through shared memory; Docker's 64 MB make NCCL fail.
        "ShmSize": options.shm_bytes,
        "Memory": options.memory_bytes_max,
        "DeviceRequests": [
            {"Driver": "", "Count": 0, "DeviceIDs": list(spec.gpus), "Capabilities": [["gpu"]], "Options": {}}
        ]
        if spec.gpus
        else [],
    }


def _home(caches: str) -> dict[str, str]:
    """An engine's compiled kernels and graphs outlive it, in a folder that no other model writes to."""
    return {
        "HOME": caches,
        "USER": "engine",  # torch asks for a name, which a bare uid has not
        "XDG_CACHE_HOME": caches,
        "VLLM_CACHE_ROOT": f"{caches}/vllm",
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
        "TRITON_CACHE_DIR": f"{caches}/triton",
    }


def _no_gpus(spec: LaunchSpec) -> dict[str, str]:
    """CUDA images ask for all GPUs by themselves where NVIDIA's runtime is the default one."""
    return {} if spec.gpus else {"NVIDIA_VISIBLE_DEVICES": "void"}
