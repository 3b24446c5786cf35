"""What an engine's container may do, what it is told, and what of the machine it opens: promises S6, S8 and S9."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import httpx
import psutil
import pytest

from orchestrator.access.key_file import new_key
from orchestrator.model import Instance, InstanceState, Scope
from orchestrator.ports import LaunchSpec
from runtimes.docker.container import PORT, Options
from runtimes.docker.host import Address
from runtimes.docker.runtime import DockerRuntime
from runtimes.gpu_watch import LocalGpus
from runtimes.gpus import GpuReader
from tests.docker.daemon import IMAGE, Daemon
from tests.docker.engines import CHAT, HOLD, MODEL, PYTHON, DockerService, container_table, docker_service
from tests.stub import ask, until

pytestmark = pytest.mark.slow

CANARIES = {
    "HF_TOKEN": "hf_CANARYaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "AWS_SECRET_ACCESS_KEY": "CANARYbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "ORCHESTRATOR_API_KEY": "CANARYcccccccccccccccccccccccccccc",
}
WRITES = """
import json, os, sys
def may(folder):
    try:
        with open(os.path.join(folder, "x"), "w"): return True
    except OSError: return False
folders = [f for f, _, _ in os.walk("/", followlinks=False) if not f.startswith(("/proc/", "/sys/fs/cgroup/"))]
status = dict(line.rstrip().split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps({
    "writable": sorted(f for f in folders if may(f)), "uid": os.getuid(), "caps": status["CapEff"].strip(),
    "bounding": status["CapBnd"].strip(), "no_new_privs": status["NoNewPrivs"].strip(),
}))
"""
VARYING = ("HostnamePath", "HostsPath", "LogPath", "ResolvConfPath")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"\0" * 64)
    return folder


def ready(running: DockerService, model: str = MODEL, **headers: str) -> None:
    with running.client(**headers) as client:
        answer = client.post(CHAT, json=ask(model), headers=HOLD)
    assert answer.status_code == 200, answer.text


def run_inside(running: DockerService, *argv: str) -> str:
    """As the engine's own user, in its container."""
    with contextlib.closing(running.daemon.client()) as client:
        made = client.api.exec_create(running.ids()[0], list(argv))
        said: bytes = client.api.exec_start(made["Id"])
        assert client.api.exec_inspect(made["Id"])["ExitCode"] == 0, said
    return said.decode()


def test_the_container_as_it_was_made(tmp_path: Path, daemon: Daemon, weights: Path) -> None:
    table = container_table(source=str(weights))
    with docker_service(tmp_path, daemon, table) as running:
        ready(running)
        seen = running.inspect()
    host, config = seen["HostConfig"], seen["Config"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert not host["Privileged"]
    assert host["ReadonlyRootfs"]
    assert host["Init"]
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["NetworkMode"] in ("default", "bridge")
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"], host["IpcMode"]) == ("", "", "", "private")
    assert not host["Devices"]
    assert not host["DeviceRequests"]
    assert not host["Binds"]
    assert not host["VolumesFrom"]
    assert host["LogConfig"]["Type"] == "json-file"
    assert int(host["LogConfig"]["Config"]["max-size"]) * int(host["LogConfig"]["Config"]["max-file"]) == 16 * 2**20
    assert 0 < host["PidsLimit"] <= 8192
    assert config["User"] == "65534:65534"
    caches = tmp_path / "data" / "engine-caches"
    mounts = {mount["Destination"]: (mount["Type"], mount["RW"]) for mount in seen["Mounts"]}
    [cache] = caches.iterdir()
    assert mounts == {str(weights): ("bind", False), str(cache): ("bind", True)}
    assert set(host["Tmpfs"]) == {"/tmp"}
    assert {"nosuid", "nodev"} <= set(host["Tmpfs"]["/tmp"].split(","))
    assert "docker.sock" not in json.dumps(seen["Mounts"])


def test_inside_it_can_write_to_its_caches_and_tmp_only(tmp_path: Path, daemon: Daemon, weights: Path) -> None:
    with docker_service(tmp_path, daemon, container_table(source=str(weights))) as running:
        ready(running)
        found = json.loads(run_inside(running, "python3", "-S", "-c", WRITES))
        [cache] = (tmp_path / "data" / "engine-caches").iterdir()
        # Shared memory, message queues and terminals are its own; see IpcMode.
        assert set(found["writable"]) - {"/dev/shm", "/dev/mqueue"} == {"/tmp", str(cache)}
        assert (found["uid"], int(found["caps"], 16), int(found["bounding"], 16)) == (65534, 0, 0)
        assert found["no_new_privs"] == "1"


def test_no_secret_reaches_it_or_is_written_down(tmp_path: Path, daemon: Daemon) -> None:
    key = new_key(tmp_path / "auth.keys.json", "ops", list(Scope), models=["*"], expires=None)
    auth = {"authorization": f"Bearer {key}"}
    with docker_service(tmp_path, daemon, container_table(MODEL, "--record=/tmp/record"), **CANARIES) as running:
        ready(running, **auth)
        with running.client(**auth) as client:
            pages = [client.get(path).text for path in ("/metrics", "/health", "/api/models", "/api/replicas")]
            [replica] = client.get("/api/replicas").json()["data"]
            pages.append(client.get(f"/api/logs/{replica['id']}").text)
        seen = json.dumps(running.inspect())
        record = run_inside(running, "python3", "-S", "-c", "print(open('/tmp/record').read())")
        environ = run_inside(running, "python3", "-S", "-c", "import os; print(dict(os.environ))")
        assert running.end() in (0, -15)
        kept = [path.read_bytes().decode("latin-1") for path in (tmp_path / "data").rglob("*") if path.is_file()]
        everywhere = [seen, record, environ, running.log(), *pages, *kept]
        assert len(kept) > 2
    hits = [name for name, secret in {**CANARIES, "key": key}.items() for text in everywhere if secret in text]
    assert hits == []


def listeners(*roots: int) -> set[tuple[str, int]]:
    """Who listens on this machine; of processes that belong to others (other tests), only what can't be told."""
    ours = {pid for root in roots for pid in (root, *(p.pid for p in psutil.Process(root).children(recursive=True)))}
    found = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    return {(str(c.laddr[0]), int(c.laddr[1])) for c in found if c.laddr and (c.pid is None or c.pid in ours)}


def test_nothing_new_listens_but_on_loopback(tmp_path: Path, daemon: Daemon) -> None:
    before = listeners(os.getpid(), daemon.process.pid)
    with docker_service(tmp_path, daemon, container_table()) as running:
        ready(running)
        fresh = listeners(os.getpid(), daemon.process.pid, running.process.pid) - before
        [replica] = httpx.get(f"{running.url}/api/replicas").json()["data"]
        assert {ip for ip, _ in fresh} == {"127.0.0.1"}
        ports = {port for _, port in fresh}
        assert {int(running.url.rpartition(":")[2]), int(replica["endpoint"].rpartition(":")[2])} <= ports


def test_only_listed_paths_reach_the_engine(tmp_path: Path, daemon: Daemon) -> None:
    denied = ("/invocations", "/pause", "/update_weights", "/v1/load_lora_adapter", "/collective_rpc", "/v1/../pause")
    with docker_service(tmp_path, daemon, container_table(MODEL, "--record=/tmp/record")) as running:
        ready(running)
        with running.client() as client:
            for path in (
                *denied,
                f"{CHAT}/../../../pause",
                f"{CHAT}%2f..%2f..%2fpause",
                "//pause",
                "/pause?x=/v1/chat",
            ):
                url = httpx.URL(running.url).copy_with(raw_path=path.encode())  # as it stands
                for method in ("POST", "GET", "PUT"):
                    assert client.request(method, url, json=ask(MODEL)).status_code in (400, 404, 405), path
        record = run_inside(running, "python3", "-S", "-c", "print(open('/tmp/record').read())")
    reached = {(line["method"], line["path"]) for line in map(json.loads, record.strip().splitlines())}
    assert reached == {("POST", CHAT), ("GET", "/health")}


def settled(seen: dict[str, Any]) -> dict[str, Any]:
    """What of a container does not differ from one replica to the next."""
    config = {**seen["Config"], "Hostname": "", "Labels": {**seen["Config"]["Labels"], "orchestrator.replica": ""}}
    mounts = sorted(seen["Mounts"], key=lambda mount: str(mount["Destination"]))
    return {"config": config, "host": seen["HostConfig"], "mounts": mounts, "image": seen["Image"]}


HOSTILE: tuple[dict[str, Any], ...] = (
    {"image": "127.0.0.1:1/evil", "Image": "127.0.0.1:1/evil"},
    {"HostConfig": {"Privileged": True, "Binds": ["/:/host"], "NetworkMode": "host"}},
    {"mounts": [{"Type": "bind", "Source": "/", "Target": "/host"}], "volumes": ["/var/run/docker.sock:/s"]},
    {"env": {"LD_PRELOAD": "/tmp/x.so"}, "args": ["--trust-remote-code"], "command": ["sh", "-c", "id"]},
    {"gpus": 8, "runtime": {"user": "0", "read_only": False}, "user": "0:0", "entrypoint": "sh"},
    {"messages": [{"role": "user", "content": "{host} {port} {weights} {model} $(id) `id` ${HOME} \u0000"}]},
    {"__proto__": {"privileged": True}, "extra_body": {"image": "evil"}, "metadata": {"docker": "x" * 10_000}},
)
IDS = (
    "../../etc/passwd",
    f"{MODEL}/../../x",
    f"{MODEL}@sha256:{'0' * 64}",
    "127.0.0.1:1/evil:latest",
    f"{MODEL} --privileged",
    f"{MODEL};id",
    f"{MODEL}\u0000",
    "x" * 5000,
    "",
)


def test_requests_shape_nothing_of_a_container(tmp_path: Path, daemon: Daemon) -> None:
    with docker_service(tmp_path, daemon, container_table()) as running:
        ready(running)
        calm = settled(running.inspect())
        [first] = running.ids()
        with running.client() as client:
            client.post(f"/api/models/{MODEL}/stop")
            until(lambda: running.containers() == [])
            for name in IDS:
                assert client.post(CHAT, json=ask(name)).status_code in (400, 404)
            odd = {"x-image": "evil", "x-docker-user": "0", "x-forwarded-host": "evil", "docker_host": "tcp://evil"}
            for more in HOSTILE:
                client.post(CHAT, json={**ask(MODEL), **more}, headers=odd)
            client.post(f"/api/models/{MODEL}/start", json={"image": "evil", "privileged": True}, headers=odd)
        ready(running)
        [second] = running.ids()
        assert second != first
        assert settled(running.inspect()) == calm


# --- a network of their own ---


@pytest.fixture
def network(daemon: Daemon) -> Iterator[str]:
    name = f"engines-{os.getpid()}"
    with contextlib.closing(daemon.client()) as client:
        pool = docker.types.IPAMConfig(pool_configs=[docker.types.IPAMPool(subnet="172.31.199.0/24")])
        made = client.api.create_network(name, driver="bridge", ipam=pool)
        yield name
        client.api.remove_network(made["Id"])


def test_on_a_network_of_their_own_nothing_is_published(tmp_path: Path, daemon: Daemon, network: str) -> None:
    """Looked at only: no request is sent to it."""
    reader = GpuReader(environ={})
    options = Options(
        instance=f"net-{os.getpid()}",
        user="65534:65534",
        read_only=True,
        shm_bytes=2**26,
        memory_bytes_max=0,
        log_bytes_max=2**20,
        network=network,
    )
    runtime = DockerRuntime(
        hosts=[Address(url=daemon.url)],
        options=options,
        folder=tmp_path / "replicas",
        caches=tmp_path / "caches",
        local_gpus=LocalGpus(reader),
    )
    spec = LaunchSpec(id="echo-net-0", model=MODEL, spec="s", argv=PYTHON, image=IMAGE)
    before = listeners(os.getpid(), daemon.process.pid)

    async def launched() -> Instance:
        await runtime.launch(spec)
        [instance] = await runtime.list()
        return instance

    async def gone() -> tuple[Instance, ...]:
        await runtime.stop(spec.id, grace_s=1)
        return await runtime.list()

    try:
        instance = asyncio.run(launched())
        with contextlib.closing(daemon.client()) as client:
            seen = client.api.inspect_container(f"orchestrator-{spec.id}")
        address = seen["NetworkSettings"]["Networks"][network]["IPAddress"]
        assert list(seen["NetworkSettings"]["Networks"]) == [network]
        assert instance == replace(instance, state=InstanceState.RUNNING, endpoint=f"http://{address}:{PORT}")
        assert not any((seen["NetworkSettings"]["Ports"] or {}).values())
        assert not seen["HostConfig"]["PublishAllPorts"]
        assert listeners(os.getpid(), daemon.process.pid) == before
    finally:
        assert asyncio.run(gone()) == ()
        runtime.close()
        reader.close()
