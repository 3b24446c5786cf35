"""The subjects of a comparison, each a real process tree on loopback in front of the same engine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ENGINE = Path(__file__).parent / "engine.py"
NAIVE = Path(__file__).parent / "naive.py"
START_TIMEOUT_S = 90.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """Something that stands between a client and an engine."""

    name: str
    argv: Callable[[Path, int, int, list[str]], list[str]]
    """From a folder of its own, its port, the engine's port, and the engine's command for who starts its own."""
    needs: str = ""
    """The program it cannot run without; empty: none."""
    remedy: str = ""
    rewrites: bool = False
    """Whether it writes the engine's JSON anew, so that its answers are checked by text."""
    slow: bool = False
    """Whether a tenth of the requests show its cost as well."""

    @property
    def key(self) -> str:
        """Its name on the command line."""
        return self.name.casefold().partition(" ")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cpus:
    """Where things run: each subject alone on one CPU, engines and load on another. None: wherever they like."""

    subject: int | None = None
    engine: int | None = None


def cpus() -> Cpus:
    """Two CPUs of those that we may use, or none where there is no second, or no way to choose (macOS)."""
    if not hasattr(os, "sched_getaffinity"):
        return Cpus()
    ours = sorted(os.sched_getaffinity(0))
    return Cpus(subject=ours[-1], engine=ours[0]) if len(ours) > 1 else Cpus()


def subjects(peers: Path | None) -> list[Subject]:
    """All of them; `peers` is a folder of programs to look in first, such as a virtual environment's bin."""
    path = search_path(peers)

    def program(name: str) -> str:
        return shutil.which(name, path=path) or name

    return [
        Subject(name="direct (no proxy)", argv=lambda folder, port, engine, own: _with_port(own, port)),
        Subject(name="orchestrator", argv=_orchestrator),
        Subject(name="nginx", argv=_nginx, needs=program("nginx"), remedy="apt-get install nginx-light"),
        Subject(
            name="sglang-router",
            argv=lambda _, port, engine, own: [
                program("sglang-router"), "launch", "--worker-urls", f"http://127.0.0.1:{engine}",
                "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin",
                "--prometheus-port", str(free_port()), "--log-level", "error",
            ],
            needs=program("sglang-router"), remedy="pip install sglang-router",
        ),
        Subject(
            name="vllm-router",
            argv=lambda _, port, engine, own: [
                program("vllm-router"), "--worker-urls", f"http://127.0.0.1:{engine}",
                "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin",
                "--prometheus-port", str(free_port()), "--log-level", "error",
            ],
            needs=program("vllm-router"), remedy="pip install vllm-router",
        ),
        Subject(
            name="LiteLLM",
            argv=lambda folder, port, engine, own: _litellm(program("litellm"), folder, port, engine),
            needs=program("litellm"), remedy="pip install 'litellm[proxy]'", rewrites=True, slow=True,
        ),
        Subject(
            name="Starlette + httpx",
            argv=lambda _, port, engine, own: [
                sys.executable, str(NAIVE), "--port", str(port), "--upstream", f"http://127.0.0.1:{engine}"
            ],
            slow=True,
        ),
    ]  # fmt: skip


def search_path(peers: Path | None) -> str:
    """Where programs are looked for: in that folder first."""
    return os.pathsep.join([*([str(peers)] if peers else []), os.environ.get("PATH", "")])


def missing(subject: Subject) -> bool:
    """Whether the program it needs is not on this machine."""
    return bool(subject.needs) and shutil.which(subject.needs) is None


@contextlib.contextmanager
def running(
    argv: list[str], folder: Path, port: int, cpu: int | None = None, timeout_s: float = START_TIMEOUT_S
) -> Iterator[psutil.Process]:
    """A process that listens on `port`, on one CPU if that is given, and all it starts; ended on exit."""
    env = {**os.environ, "NO_PROXY": "127.0.0.1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}
    log_path = folder / "log"
    with log_path.open("wb") as log, _on_cpu(cpu):
        process = subprocess.Popen(argv, cwd=folder, stdout=log, stderr=log, env=env, start_new_session=True)
    tree = psutil.Process(process.pid)
    try:
        wait_for(port, process, log_path, timeout_s)
        yield tree
    finally:
        family = [tree, *tree.children(recursive=True)] if process.poll() is None else []
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        _, left = psutil.wait_procs(family, 5)
        for member in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait(10)


@contextlib.contextmanager
def _on_cpu(cpu: int | None) -> Iterator[None]:
    """What is started meanwhile inherits that it runs on this CPU only, and sizes its thread pools by it."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path, timeout_s: float = START_TIMEOUT_S) -> None:
    """Until something listens. Raises `RuntimeError` with the log's end."""
    ends_at = time.monotonic() + timeout_s
    while time.monotonic() < ends_at and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen: {log.read_text('utf-8', 'replace')[-1500:]}")


def cpu_s(tree: psutil.Process) -> float:
    """CPU seconds so far, user and system, of the subject and its children, but not of an engine that it started."""
    ended = tree.cpu_times()  # whose clocks went with them
    return sum(_cpu_s(process) for process in _own(tree)) + ended.children_user + ended.children_system


def _cpu_s(process: psutil.Process) -> float:
    """On Linux by the process's CPU clock, in nanoseconds: `cpu_times` counts ticks of 10 ms, half a round's cost.
    The number of another process's clock is as in glibc's clock_getcpuclockid: ``~pid << 3 | CPUCLOCK_SCHED (2)``."""
    if psutil.LINUX:
        return time.clock_gettime_ns((~process.pid << 3) | 2) / 1e9
    times = process.cpu_times()
    return float(times.user + times.system)


def rss_bytes(tree: psutil.Process) -> int:
    """Resident bytes of the subject and its children, but not of an engine that it started."""
    return sum(process.memory_info().rss for process in _own(tree))


def _own(tree: psutil.Process) -> list[psutil.Process]:
    return [tree, *(child for child in tree.children(recursive=True) if str(ENGINE) not in child.cmdline())]


def free_port(host: str = "127.0.0.1") -> int:
    """A port of a loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def engine_argv(port: int | str, chunks: int, delay_s: float, cpu: int | None = None) -> list[str]:
    """The instant engine. It ends with this process, even if this process is killed."""
    argv = [sys.executable, str(ENGINE), "--port", str(port), "--chunks", str(chunks), "--chunk-delay-s", str(delay_s)]
    argv += ["--owner", str(os.getpid())]
    return argv + (["--cpu", str(cpu)] if cpu is not None else [])


def _with_port(own: list[str], port: int) -> list[str]:
    return [str(port) if part == "{port}" else part for part in own]


def _orchestrator(folder: Path, port: int, engine: int, own: list[str]) -> list[str]:
    """The service starts an engine of the same kind by itself: that is its trade."""
    (folder / "orchestrator.toml").write_text(
        f'[server]\nport = {port}\nconnections_max = 10000\n[models."bench/model"]\nengine = "command"\n'
        f"min_replicas = 1\ncommand = {json.dumps(own)}\n"
    )
    return [sys.executable, "-m", "orchestrator", "serve"]


def _nginx(folder: Path, port: int, engine: int, own: list[str]) -> list[str]:
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;"
        f"events {{ worker_connections 8192; }} http {{ access_log off; client_body_temp_path {folder}/b;"
        f" proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;"
        f" scgi_temp_path {folder}/s; upstream e {{ server 127.0.0.1:{engine}; keepalive 1000; }}"
        f" server {{ listen 127.0.0.1:{port} backlog=2048; keepalive_requests 1000000; location / {{"
        ' proxy_pass http://e; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; } } }'
    )
    return [shutil.which("nginx") or "nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]


def _litellm(program: str, folder: Path, port: int, engine: int) -> list[str]:
    model = {"model": "openai/bench/model", "api_base": f"http://127.0.0.1:{engine}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "bench/model", "litellm_params": model}],
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},  # loopback, for this run only
    }
    (folder / "litellm.yaml").write_text(json.dumps(config))
    argv = [program, "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    return [*argv, "--num_workers", "1", "--telemetry", "False"]
