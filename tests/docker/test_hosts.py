"""Engines on several Docker hosts, one of them reached by TCP with certificates of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RuntimeUnavailable
from runtimes.docker.container import Options
from runtimes.docker.host import Address
from runtimes.docker.images import Images
from runtimes.docker.runtime import UNSEEN_S_MAX, DockerRuntime
from runtimes.docker.survey import survey
from runtimes.gpu_watch import LocalGpus
from runtimes.gpus import GpuReader
from tests.docker.daemon import IMAGE, Daemon, build_engine_image
from tests.docker.engines import CHAT, HOLD, DockerService, container_table
from tests.stub import ask, until
from tests.values import deployment

pytestmark = pytest.mark.slow

GPU = "GPU-d1570000-0000-0000-0000-000000000001"
SMI = f"{GPU}, 0, NVIDIA H200, 143771, 143100, Disabled"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two hosts: ``near`` by its socket, ``far`` by TCP with TLS."""

    near: Daemon
    far: Daemon
    tables: str

    def on(self, instance: str) -> dict[str, list[str]]:
        """What runs where."""
        labels = {"orchestrator.instance": instance}
        both = (("near", self.near), ("far", self.far))
        return {name: [c for c in daemon.containers(**labels) if "gpu-probe" not in c] for name, daemon in both}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and what it signed for the server and for us: as Docker's manual has it made."""
    folder = tmp_path_factory.mktemp("tls")
    extensions = {
        "server": "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth",
        "client": "extendedKeyUsage=clientAuth",
    }

    def openssl(*argv: str) -> None:
        subprocess.run(("openssl", *argv), cwd=folder, check=True, capture_output=True)

    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *made, "-keyout", "ca-key.pem", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca")
    for name, text in extensions.items():
        (folder / f"{name}.ext").write_text(text)
        openssl("req", *made, "-keyout", f"{name}-key.pem", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}-cert.pem")
    return folder


@pytest.fixture(scope="module")
def pair(daemon: Daemon, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    far = Daemon(tmp_path_factory.mktemp("far"), tcp_port=port, tls=certificates)
    try:
        build_engine_image(far, STUB_SMI=SMI)
        yield Pair(near=daemon, far=far, tables=hosts(daemon.url, f"tcp://127.0.0.1:{port}", certificates))
        assert far.containers() == []
    finally:
        far.close()


def hosts(near: str, far: str, certificates: Path) -> str:
    files = (("ca", "ca.pem"), ("cert", "client-cert.pem"), ("key", "client-key.pem"))
    tls = "".join(f'tls_{key} = "{certificates / file}"\n' for key, file in files)
    return (
        '[runtime]\nkind = "docker"\n'
        f'[[runtime.hosts]]\nname = "near"\nurl = "{near}"\n'
        f'[[runtime.hosts]]\nname = "far"\nurl = "{far}"\n{tls}'
    )


class Spread(DockerService):
    """A service on both."""

    def __init__(self, folder: Path, pair: Pair, config: str) -> None:
        self.pair = pair
        super().__init__(folder, config, pair.near)

    def on(self) -> dict[str, int]:
        return {name: len(found) for name, found in self.pair.on(self.instance).items()}

    def probes(self) -> list[str]:
        found = self.pair.far.containers(**{"orchestrator.instance": self.instance})
        return [name for name in found if "gpu-probe" in name]

    def replicas(self) -> dict[str, dict[str, Any]]:
        with self.client() as client:
            found = client.get("/api/replicas").json()["data"]
        return {replica["model"]: replica for replica in found}

    def close(self) -> None:
        self.pair.far.resume()
        self.pair.near.resume()
        instance = self.instance
        super().close()
        with contextlib.closing(self.pair.far.client()) as client:
            for name in self.pair.far.containers(**{"orchestrator.instance": instance}):
                client.api.remove_container(name, force=True, v=True)


@contextlib.contextmanager
def spread(folder: Path, pair: Pair, *tables: str) -> Iterator[Spread]:
    running = Spread(folder, pair, "\n".join((pair.tables, *tables)))
    try:
        yield running
    finally:
        running.close()


def ready(running: Spread, *models: str) -> None:
    with running.client() as client:
        for model in models:
            answer = client.post(CHAT, json=ask(model), headers=HOLD)
            assert answer.status_code == 200, answer.text


def test_engines_are_spread_and_their_hosts_are_shown(tmp_path: Path, pair: Pair) -> None:
    models = [f"acme/m{number}" for number in range(4)]
    with spread(tmp_path, pair, *(container_table(model) for model in models)) as running:
        ready(running, *models)
        assert running.on() == {"near": 2, "far": 2}
        shown = {replica["id"]: replica["host"] for replica in running.replicas().values()}
        where = pair.on(running.instance)
        assert {f"orchestrator-{replica}" for replica, host in shown.items() if host == "far"} == set(where["far"])
        with running.client() as client:
            views = [client.get(f"/api/models/{model}").json() for model in models]
        assert {view["replicas"][0]["host"] for view in views} == {"near", "far"}
        assert running.end() in (0, -15)
        assert pair.on(running.instance) == {"near": [], "far": []}
        assert running.probes() == []  # nothing of ours is left there


@pytest.mark.parametrize("silent", ["far", "near"])
def test_a_silent_host_keeps_its_engines_and_gets_no_new_ones(tmp_path: Path, pair: Pair, silent: str) -> None:
    models = [f"acme/m{number}" for number in range(4)]
    other = "near" if silent == "far" else "far"
    daemon = pair.far if silent == "far" else pair.near
    with spread(tmp_path, pair, *(container_table(model) for model in models)) as running:
        ready(running, *models[:2])
        before = running.replicas()
        daemon.pause()
        try:
            ready(running, *models[2:])  # in spite of the silence
            ready(running, *models[:2])  # served by the engines that they had
            after = running.replicas()
            assert {model: after[model]["id"] for model in before} == {m: before[m]["id"] for m in before}
            assert [after[model]["host"] for model in models[2:]] == [other, other]
        finally:
            daemon.resume()
        until(lambda: running.on() == ({"near": 1, "far": 3} if silent == "near" else {"near": 3, "far": 1}))
        ready(running, *models)
        assert {m: r["id"] for m, r in running.replicas().items()} == {m: r["id"] for m, r in after.items()}


def test_a_host_that_was_silent_from_the_start_holds_up_nobody_for_long(tmp_path: Path, pair: Pair) -> None:
    """Its engines may serve already, so nothing is launched for a minute; then the others go on without it."""
    now = [100.0]
    reader = GpuReader(environ={})
    tables = [Address(name="near", url=pair.near.url), Address(name="far", url=pair.far.url)]
    options = Options(
        instance="silent", user="65534", read_only=True, shm_bytes=1, memory_bytes_max=0, log_bytes_max=9, network=""
    )

    async def check() -> None:
        runtime = DockerRuntime(
            hosts=tables,
            options=options,
            folder=tmp_path / "replicas",
            caches=tmp_path / "caches",
            local_gpus=LocalGpus(reader),
            monotonic=lambda: now[0],
        )
        images = Images(runtime.hosts.values(), on_present=runtime.probe_with)
        runtime.on_missing_image = images.forget
        model = deployment(image=IMAGE)
        async with asyncio.timeout(15):  # far less than the calls that hang take
            await images.find([IMAGE])
            with pytest.raises(RuntimeUnavailable, match="far"):
                await runtime.list()
            now[0] += UNSEEN_S_MAX
            assert await runtime.list() == ()
            assert runtime.places() == ("near",)
            assert await runtime.gpus() == ()
            await images.pull(model)
            assert images.look(model).state == "present"
        pair.far.resume()
        async with asyncio.timeout(30):
            while runtime.places() != ("near", "far"):
                assert await runtime.list() == ()
            assert images.look(model).state == "absent"  # of the one that is back nothing is known yet
            await images.pull(model)
            assert images.look(model).state == "present"
        await images.aclose()
        runtime.close()

    pair.far.pause()
    try:
        asyncio.run(check())
    finally:
        pair.far.resume()
        reader.close()


def test_gpus_of_a_distant_host(tmp_path: Path, pair: Pair) -> None:
    """Seen by a probe, leased, and asked for by their ids; the probe is no engine, and there is only ever one."""
    with spread(tmp_path, pair, container_table("acme/big", gpus=1)) as running:
        ready(running, "acme/big")
        [replica] = running.replicas().values()
        assert (replica["host"], replica["gpus"]) == ("far", [GPU])
        with contextlib.closing(pair.far.client()) as client:
            seen = client.api.inspect_container(f"orchestrator-{replica['id']}")
            [probe] = running.probes()
            looked = client.api.inspect_container(probe)
        [request] = seen["HostConfig"]["DeviceRequests"]
        assert request["DeviceIDs"] == [GPU]
        with running.client() as http:
            [gpu] = http.get("/api/gpus").json()["data"]
        assert (gpu["uuid"], gpu["host"], gpu["name"], gpu["healthy"]) == (GPU, "far", "NVIDIA H200", True)
        host = looked["HostConfig"]
        assert (host["CapDrop"], host["ReadonlyRootfs"], host["NetworkMode"]) == (["ALL"], True, "none")
        assert looked["Mounts"] == []
        running.process.kill()
        running.process.wait(30)
        running.restart()
        ready(running, "acme/big")
        assert list(running.replicas()) == ["acme/big"]
        assert running.replicas()["acme/big"]["id"] == replica["id"]
        assert running.probes() == [probe]
        with contextlib.closing(pair.far.client()) as client:
            assert client.api.inspect_container(probe)["Id"] == looked["Id"]
        assert running.end() in (0, -15)
        assert running.probes() == []


def test_a_distant_host_without_gpus_holds_up_none_of_the_others(
    tmp_path: Path, daemon: Daemon, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bare = Daemon(tmp_path_factory.mktemp("bare"), gpus=False, tcp_port=port, tls=certificates)
    try:
        build_engine_image(bare)
        tables = hosts(daemon.url, f"tcp://127.0.0.1:{port}", certificates)
        pair = Pair(near=daemon, far=bare, tables=tables)
        with spread(tmp_path, pair, container_table("acme/big", gpus=1), container_table("acme/small")) as running:
            ready(running, "acme/small")
            with running.client() as client:
                answer = until(lambda: (a := client.post(CHAT, json=ask("acme/big"))).status_code == 400 and a)
            assert answer.json()["error"]["code"] == "model_too_large"  # rather than a wait without end
            assert running.probes() == []
    finally:
        bare.close()


def test_certificates_are_asked_for(pair: Pair, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only the configured authority is trusted, whatever the environment says."""
    url = next(line.split('"')[1] for line in pair.tables.splitlines() if "tcp://" in line)
    ours = Address(
        name="far",
        url=url,
        tls_ca=str(certificates / "ca.pem"),
        tls_cert=str(certificates / "client-cert.pem"),
        tls_key=str(certificates / "client-key.pem"),
    )
    assert survey(ours, [IMAGE, "acme/none:1"]).missing == ("acme/none:1",)
    assert survey(Address(name="far", url=url), []).fault
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates / "client-cert.pem"))
    assert survey(ours, []).fault == ""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates / "ca.pem"))
    assert "CERTIFICATE_VERIFY_FAILED" in survey(replace(ours, tls_ca=str(certificates / "client-cert.pem")), []).fault


# --- doctor ---


def doctor(folder: Path, config: str) -> dict[str, dict[str, str]]:
    (folder / "orchestrator.toml").write_text(config)
    argv = (sys.executable, "-m", "orchestrator", "doctor", "--json")
    out = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=60, check=False).stdout
    return {finding["what"]: finding for finding in json.loads(out)["data"]}


def test_doctor_tells_of_each_host(tmp_path: Path, pair: Pair) -> None:
    tables = [container_table("acme/a", gpus=1), container_table("acme/b", image="acme/none:1")]
    found = doctor(tmp_path, "\n".join((pair.tables, *tables)))
    for host in ("near", "far"):
        [docker] = [f for what, f in found.items() if what.startswith("Docker ") and f"on {host}, API 1." in what]
        assert docker["level"] == "OK"
        assert found[f"image {IMAGE} is on {host}"]["level"] == "OK"
        assert "docker pull acme/none:1" in found[f"image acme/none:1 is not on {host}"]["remedy"]
        assert "nvidia-ctk" in found[f"no NVIDIA runtime in Docker on {host}"]["remedy"]
    assert (
        found["acme/a: nothing found that would keep it from starting"]["level"] == "OK"
    )  # its program is in the image, not here
    assert not any("vLLM" in what for what in found)


def test_doctor_waits_for_no_silent_host(tmp_path: Path, pair: Pair) -> None:
    pair.far.pause()
    try:
        found = doctor(tmp_path, "\n".join((pair.tables, container_table())))
    finally:
        pair.far.resume()
    assert found["Docker on far does not answer"]["level"] == "FAIL"
    assert "docker version" in found["Docker on far does not answer"]["remedy"]
    assert any("on near, API 1." in what for what in found)


def test_doctor_says_nothing_of_docker_where_it_is_not_used(tmp_path: Path) -> None:
    assert not any("Docker" in what for what in doctor(tmp_path, ""))
