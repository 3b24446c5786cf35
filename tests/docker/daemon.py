"""A real Docker engine of the tests' own: started, paused, killed and left as it was found. Needs root and Debian's
``docker.io``. It touches neither the machine's firewall nor its forwarding, and uses a bridge of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

import docker
import httpx

from tests.missing import missing
from tests.stub import STUB, until

IMAGE = "orchestrator-test/engine:1"
START_S = 60.0
BRIDGES_MAX = 32
REMEDY = "as root: apt-get install --no-install-recommends docker.io iproute2"
_LEFT_OUT = {"test", "idlelib", "tkinter", "ensurepip", "site-packages", "lib2to3", "turtledemo", "config-3.11"}


def needed() -> None:
    """Skip where no engine can be started; in CI that is a failure."""
    lacking = [name for name in ("dockerd", "ip") if shutil.which(name) is None]
    if os.geteuid() != 0 or lacking:
        text = f"needs a Docker engine: {REMEDY}"
        missing(text)


class Daemon:
    """One dockerd, with a bridge that no other has."""

    def __init__(
        self,
        folder: Path,
        *,
        gpus: bool = True,
        tcp_port: int | None = None,
        tls: Path | None = None,
        hides: Path | None = None,
    ) -> None:
        """`tls`: the folder of ``ca.pem``, ``server-cert.pem`` and ``server-key.pem``; then TCP asks for client
        certificates. `hides`: a folder that is empty for this engine, as if it ran on another machine."""
        self.folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self._tcp_port = tcp_port
        self._tls = tls
        self._hides = hides
        self._hook = folder / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        if gpus:
            self._accept_gpu_requests()
        self._bridge = _new_bridge()
        self.process = self._spawn()

    def _accept_gpu_requests(self) -> None:
        """Docker takes device requests when this program, which would inject the devices, is on its PATH."""
        self._hook.mkdir(exist_ok=True)
        hook = self._hook / "nvidia-container-runtime-hook"
        hook.write_text("#!/bin/sh\ncat > /dev/null\n")
        hook.chmod(0o755)

    def _spawn(self) -> subprocess.Popen[bytes]:
        argv = [
            *("dockerd", "--host", self.url, "--group", "root"),
            *("--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec"),
            *("--pidfile", f"{self.folder}/docker.pid", "--bridge", self._bridge),
            *("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{self._bridge}"),
        ]
        if self._tcp_port is not None:
            argv += ["--host", f"tcp://127.0.0.1:{self._tcp_port}", *self._tls_options()]
        if self._hides is not None:
            argv = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {self._hides} && exec "$@"', "sh", *argv]
        environ = {**os.environ, "PATH": f"{self._hook}:{os.environ['PATH']}"}
        with (self.folder / "dockerd.log").open("ab") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, env=environ, start_new_session=True)
        until(lambda: self._answers() or process.poll() is not None, START_S)
        if process.poll() is not None:
            _run("ip", "link", "del", self._bridge)
        assert process.poll() is None, (self.folder / "dockerd.log").read_text()[-2000:]
        return process

    def _tls_options(self) -> tuple[str, ...]:
        if self._tls is None:
            return ("--tls=false",)
        files = (("cacert", "ca"), ("cert", "server-cert"), ("key", "server-key"))
        return ("--tlsverify", *(part for key, name in files for part in (f"--tls{key}", f"{self._tls}/{name}.pem")))

    def _answers(self) -> bool:
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.Client(transport=httpx.HTTPTransport(uds=self.url.removeprefix("unix://"))) as client,
        ):
            return client.get("http://docker/_ping").status_code == 200
        return False

    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.url, timeout=30)

    def containers(self, **labels: str) -> list[str]:
        """Names of all containers, ended ones too, that bear these labels."""
        with contextlib.closing(self.client()) as client:
            filters = {"label": [f"{key}={value}" for key, value in labels.items()]}
            return sorted(found["Names"][0].lstrip("/") for found in client.api.containers(all=True, filters=filters))

    def pause(self) -> None:
        """It stops answering, though its containers run on."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """As kill -9 does: its containers run on, until the next `start` ends them. Their ports are gone at once."""
        self.process.kill()
        self.process.wait(20)

    def start(self) -> None:
        """Again, after `kill`."""
        for left in ("docker.pid", "exec/containerd/containerd.pid"):
            (self.folder / left).unlink(missing_ok=True)  # the process may still be a zombie
        self.process = self._spawn()

    def clear(self) -> None:
        """Remove every container."""
        with contextlib.closing(self.client()) as client:
            for name in self.containers():
                with contextlib.suppress(docker.errors.APIError):
                    client.api.remove_container(name, force=True, v=True)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        with contextlib.suppress(Exception):
            self.clear()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        for line in Path("/proc/mounts").read_text().splitlines():  # one that was killed leaves its mounts
            if (target := line.split()[1]).startswith(f"{self.folder}/"):
                _run("umount", "--lazy", target)
        _run("ip", "link", "del", self._bridge)


def build_engine_image(daemon: Daemon, **env: str) -> None:
    """The stub engine and the Python that runs these tests, as an image of one layer; `env` is the image's own."""
    repository, tag = IMAGE.split(":")
    changes = [f"ENV {key}={json.dumps(value)}" for key, value in env.items()]
    with contextlib.closing(daemon.client()) as client:
        client.api.import_image_from_data(engine_tar(), repository=repository, tag=tag, changes=changes)


def engine_tar() -> bytes:
    """``/usr/bin/python3`` with its standard library and shared libraries, ``/stub.py``, a passwd file."""
    python = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_paths()["stdlib"])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("tmp", "proc", "sys", "dev", "etc", "usr", "usr/bin"):
            _folder(tar, folder, 0o1777 if folder == "tmp" else 0o755)
        _file(tar, "etc/passwd", b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n")
        _file(tar, "stub.py", STUB.read_bytes())
        nvidia_smi = Path(__file__).parent / "nvidia_smi.py"
        _file(tar, "usr/bin/nvidia-smi", b"#!/usr/bin/python3 -S\n" + nvidia_smi.read_bytes(), 0o755)
        tar.add(python, arcname=str(python).lstrip("/"))
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, str(python)
        if str(python) != "/usr/bin/python3":
            tar.addfile(link)
        tar.add(library, arcname=str(library).lstrip("/"), filter=_wanted)
        binaries = [python, *(library / "lib-dynload").glob("*.so")]
        for path in sorted({path for binary in binaries for path in _shared(binary)}):
            tar.add(os.path.realpath(path), arcname=path.lstrip("/"))
    return buffer.getvalue()


def _wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = Path(info.name).parts
    return None if _LEFT_OUT & set(parts) or info.name.endswith((".a", ".o")) else info


def _shared(binary: Path) -> list[str]:
    out = subprocess.run(("ldd", str(binary)), capture_output=True, text=True, check=False).stdout
    words = [word for line in out.splitlines() for word in line.split() if word.startswith("/")]
    return [word for word in words if Path(word).exists()]


def _folder(tar: tarfile.TarFile, name: str, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, mode
    tar.addfile(info)


def _file(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), mode, int(time.time())
    tar.addfile(info, io.BytesIO(data))


def _new_bridge() -> str:
    """The name of one made now: adding is atomic, so several runs at the same time get one each."""
    for number in range(BRIDGES_MAX):
        name = f"dkt{number}"
        if _run("ip", "link", "add", name, "type", "bridge"):
            _run("ip", "addr", "add", f"172.31.{200 + number}.1/24", "dev", name)
            _run("ip", "link", "set", name, "up")
            return name
    raise AssertionError("no bridge could be made: are old ones left? `ip link del dkt0`")


def _run(*argv: str) -> bool:
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0
