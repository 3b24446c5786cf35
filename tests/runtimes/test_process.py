"""Engines as real processes: what survives kill -9, what is never touched, and what is never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from orchestrator.errors import LaunchFailed, RuntimeUnavailable
from orchestrator.model import Instance, InstanceState
from orchestrator.ports import LaunchSpec
from runtimes import process as module
from runtimes.process import HOST, ProcessRuntime, free_port, inherited
from runtimes.process_table import INSTANCE_MARK, REPLICA_MARK, marks
from runtimes.records import Records
from tests.stub import STUB, until

ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-S", "-c")
SLEEPS = (*PYTHON, "import time; time.sleep(600)")
LAUNCH_POINTS = ("launch.before_intent", "launch.after_intent", "launch.after_spawn", "launch.after_record")
STOP_POINTS = ("stop.before_signal", "stop.after_signal", "stop.before_clear")

DRIVER = """
import asyncio, os, sys
from pathlib import Path
from orchestrator.ports import LaunchSpec
from runtimes.process import ProcessRuntime

async def main():
    folder, instance, *argv = sys.argv[1:]
    runtime = ProcessRuntime(folder=Path(folder), instance=instance, log_bytes_max=2**20, environ=os.environ)
    await runtime.launch(LaunchSpec(id="echo-a-0", model="acme/echo", spec="spec-1", argv=tuple(argv)))
    await runtime.stop("echo-a-0", grace_s=5)

asyncio.run(main())
"""


class Bench:
    """A folder, its runtime as it is after each restart, and every process that bears its mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instance = folder.parent.name
        self.runtimes: list[ProcessRuntime] = []
        self.runtime = self.restarted()

    def restarted(self, **more: object) -> ProcessRuntime:
        """A runtime that remembers nothing."""
        options = {"log_bytes_max": 2**20, "environ": os.environ, **more}
        self.runtime = ProcessRuntime(folder=self.folder, instance=self.instance, **options)  # type: ignore[arg-type]  # any field
        self.runtimes.append(self.runtime)
        return self.runtime

    def close(self) -> None:
        """Kill what is left, and reap it for those runtimes that never heard of its end."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for runtime in self.runtimes:
            for child in runtime._children.values():
                child.wait(10)

    def launch(self, id: str = "echo-a-0", argv: tuple[str, ...] = SLEEPS, **more: object) -> Instance:
        spec = LaunchSpec(id=id, model="acme/echo", spec="spec-1", argv=argv, **more)  # type: ignore[arg-type]  # any field
        asyncio.run(self.runtime.launch(spec))
        return next(i for i in self.listed() if i.id == id)

    def listed(self) -> tuple[Instance, ...]:
        return asyncio.run(self.runtime.list())

    def stop(self, id: str = "echo-a-0", grace_s: float = 5) -> None:
        asyncio.run(self.runtime.stop(id, grace_s=grace_s))

    def tail(self, id: str = "echo-a-0") -> str:
        return asyncio.run(self.runtime.log_tail(id, tail_bytes=100_000))

    def said(self, text: str, id: str = "echo-a-0") -> str:
        """Its log, once it holds `text`."""
        until(lambda: text in self.tail(id))
        return self.tail(id)

    def pids(self) -> list[int]:
        """The living processes with our mark."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get(INSTANCE_MARK) == self.instance
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def record(self, id: str = "echo-a-0") -> dict[str, object]:
        found: dict[str, object] = json.loads((self.folder / f"{id}.json").read_text())
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "replicas")
    yield made
    made.close()


def crashed(bench: Bench, point: str) -> None:
    """Another process launches and stops an engine, and dies at this point."""
    argv = (sys.executable, "-c", DRIVER, str(bench.folder), bench.instance, *SLEEPS)
    assert subprocess.run(argv, cwd=ROOT, env={**os.environ, "CRASH_AT": point}, timeout=30).returncode == 137


# --- what an engine gets ---


def test_engine_answers_at_its_endpoint_on_loopback_only(bench: Bench) -> None:
    argv = (sys.executable, "-S", str(STUB), "--host", "{host}", "--port", "{port}")
    seen = bench.launch(argv=argv)
    bench.said("startup complete")
    assert httpx.get(f"{seen.endpoint}/health").status_code == 200
    [pid] = bench.pids()
    listening = [c.laddr for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening] == [HOST]
    assert os.getsid(pid) == os.getpgid(pid) == pid


def test_engine_inherits_no_secret_and_no_setting(bench: Bench) -> None:
    secrets = {
        "HF_TOKEN": "canary",
        "HUGGING_FACE_HUB_TOKEN": "canary",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "AWS_PROFILE": "canary",
        "ORCHESTRATOR_SERVER__PORT": "canary",
        "OPENAI_API_KEY": "canary",
        "DB_PASSWORD": "canary",
        "my_secret_thing": "canary",
    }
    assert inherited({**secrets, "PATH": "/bin", "HF_HOME": "/models"}) == {"PATH": "/bin", "HF_HOME": "/models"}
    bench.restarted(environ={**os.environ, **secrets})
    show = "import os, json; print('env', json.dumps(dict(os.environ)), flush=True)"
    bench.launch(argv=(*PYTHON, show), env=(("HF_TOKEN", "given"), ("A", "b")), gpus=("GPU-1", "GPU-2"))
    text = bench.said("env {")
    assert "canary" not in text
    env = json.loads(text.partition("env ")[2])
    assert (env["HF_TOKEN"], env["A"], env["CUDA_VISIBLE_DEVICES"]) == ("given", "b", "GPU-1,GPU-2")
    assert marks(bench.instance, "echo-a-0").items() <= env.items()


def test_engine_holds_no_file_of_ours(bench: Bench, tmp_path: Path) -> None:
    with (tmp_path / "held").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        bench.launch()
        [pid] = bench.pids()
        names = [Path(f"/proc/{pid}/fd/{n}").resolve() for n in os.listdir(f"/proc/{pid}/fd")]  # noqa: PTH208 - names only
    log = (bench.folder / "logs" / "echo-a-0.log").resolve()
    assert sorted(names) == sorted([Path("/dev/null"), log, log])


def test_record_has_the_contracts_labels(bench: Bench) -> None:
    bench.launch(gpus=("GPU-1",))
    record = bench.record()
    labels = {key: value for key, value in record.items() if key.startswith("orchestrator.")}
    assert labels == {
        "orchestrator.instance": bench.instance,
        "orchestrator.model": "acme/echo",
        "orchestrator.replica": "echo-a-0",
        "orchestrator.spec": "spec-1",
    }
    assert record["pid"] == bench.pids()[0]
    assert record["gpus"] == ["GPU-1"]


@pytest.mark.parametrize(
    ("argv", "cause"),
    [(("/no/such/program",), "No such file"), (("a\0b",), "null byte"), (("/etc/passwd",), "Permission denied")],
)
def test_what_cant_be_spawned_says_why_and_leaves_nothing(bench: Bench, argv: tuple[str, ...], cause: str) -> None:
    with pytest.raises(LaunchFailed, match=cause):
        bench.launch(argv=argv)
    assert bench.listed() == ()


def test_ports_are_free_and_not_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(module, "PORTS", range(port, port + 2))
    monkeypatch.setattr(module, "PORT_TRIES_MAX", 2)
    assert free_port({port}) == port + 1
    with pytest.raises(LaunchFailed, match="no free port"):
        free_port({port, port + 1})


# --- kill -9 and restarts ---


@pytest.mark.parametrize("point", LAUNCH_POINTS)
def test_crash_while_launching_leaves_at_most_one_and_it_can_be_removed(bench: Bench, point: str) -> None:
    crashed(bench, point)
    born = bench.pids()
    assert len(born) == (point in ("launch.after_spawn", "launch.after_record"))
    expected = {"launch.before_intent": [], "launch.after_intent": [InstanceState.EXITED]}
    assert [i.state for i in bench.listed()] == expected.get(point, [InstanceState.RUNNING])
    if born:
        bench.launch()  # the id exists: no second copy
        assert bench.pids() == born
        assert bench.record()["pid"] == born[0]
    bench.stop()
    assert (bench.listed(), bench.pids()) == ((), [])


@pytest.mark.parametrize("point", STOP_POINTS)
def test_crash_while_stopping_leaves_what_can_be_stopped_again(bench: Bench, point: str) -> None:
    crashed(bench, point)
    [left] = bench.listed()
    assert left.id == "echo-a-0"
    assert len(bench.pids()) <= (point != "stop.before_clear")
    bench.stop()
    assert (bench.listed(), bench.pids()) == ((), [])


def test_adopted_engine_keeps_its_pid_and_facts(bench: Bench) -> None:
    before, pids = bench.launch(gpus=("GPU-1",)), bench.pids()
    bench.restarted()
    assert bench.listed() == (before,)
    assert bench.pids() == pids
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: bench.listed()[0].state is InstanceState.EXITED)
    assert bench.listed()[0].exit_code is None


def test_engine_is_known_after_the_clock_was_set(bench: Bench) -> None:
    """Times of birth move with the wall clock; the marks do not."""
    bench.launch()
    [pid] = bench.pids()
    records = Records(bench.folder)
    [record] = records.all()
    records.write(replace(record, born_at=(record.born_at or 0) + 3600))
    bench.restarted()
    assert bench.listed()[0].state is InstanceState.RUNNING
    bench.stop()
    assert pid not in bench.pids()


def test_stranger_with_the_pid_is_not_taken_for_the_engine(bench: Bench) -> None:
    bench.launch()
    bench.stop()
    with subprocess.Popen(SLEEPS, start_new_session=True) as stranger:
        try:
            facts = {f"orchestrator.{k}": "x" for k in ("model", "spec")}
            names = {"orchestrator.instance": bench.instance, "orchestrator.replica": "echo-a-1"}
            rest = {"port": 1, "gpus": [], "pid": stranger.pid, "born_at": time.time() - 86_400}
            (bench.folder / "echo-a-1.json").write_text(json.dumps({**facts, **names, **rest}))
            assert [i.state for i in bench.listed()] == [InstanceState.EXITED]
            bench.stop("echo-a-1", grace_s=0)
            assert bench.listed() == ()
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_other_instances_engines_are_neither_listed_nor_stopped(bench: Bench) -> None:
    bench.launch()
    pids = bench.pids()
    other = ProcessRuntime(folder=bench.folder, instance="other", log_bytes_max=2**20, environ=os.environ)
    assert asyncio.run(other.list()) == ()
    asyncio.run(other.stop("echo-a-0", grace_s=0))
    assert bench.pids() == pids


@pytest.mark.parametrize("damage", [None, "{", '{"of": "a later version"}', "[]"])
def test_engine_whose_record_is_lost_is_found_by_its_mark(bench: Bench, damage: str | None) -> None:
    bench.launch()
    path = bench.folder / "echo-a-0.json"
    path.unlink() if damage is None else path.write_text(damage)
    bench.restarted()
    [lost] = bench.listed()
    assert (lost.id, lost.spec, lost.state, lost.endpoint) == ("echo-a-0", "", InstanceState.RUNNING, None)
    bench.stop()
    assert (bench.listed(), bench.pids()) == ((), [])


def test_records_that_cant_be_read_are_unknown_not_gone(bench: Bench) -> None:
    bench.launch()
    away = bench.folder.rename(bench.folder.with_name("away"))
    with pytest.raises(RuntimeUnavailable):
        bench.listed()
    away.rename(bench.folder)
    assert len(bench.listed()) == 1


# --- ends ---


def test_polite_engine_ends_at_once_and_stubborn_one_after_its_grace(bench: Bench) -> None:
    bench.launch("polite-a-0")
    began = time.monotonic()
    bench.stop("polite-a-0", grace_s=20)
    assert time.monotonic() - began < 5
    bench.launch("stubborn-a-0", argv=(*PYTHON, DEAF))
    bench.said("deaf", "stubborn-a-0")
    began = time.monotonic()
    bench.stop("stubborn-a-0", grace_s=0.5)
    assert 0.5 <= time.monotonic() - began < 5
    assert bench.pids() == []


DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
WORKERS = """
import os, subprocess, sys, time
for session in (False, True):
    code = {deaf!r}
    subprocess.Popen((sys.executable, "-S", "-c", code), start_new_session=session{env})
{then}
"""


@pytest.mark.parametrize("then", ["time.sleep(600)", ""], ids=["led", "orphaned"])
@pytest.mark.parametrize("marked", [True, False], ids=["marked", "wiped"])
def test_workers_go_with_their_engine(bench: Bench, then: str, marked: bool) -> None:
    """In its group or in a session of their own, deaf to SIGTERM, their marks wiped as setproctitle does."""
    env = "" if marked else ", env={}"
    bench.launch(argv=(*PYTHON, WORKERS.format(deaf=DEAF, env=env, then=then)))
    until(lambda: bench.tail().count("deaf") == 2)
    log = (bench.folder / "logs" / "echo-a-0.log").resolve()
    assert len(writers(log)) == (3 if then else 2)
    bench.restarted()
    bench.stop(grace_s=0.3)
    assert writers(log) == []


def writers(log: Path) -> list[int]:
    """The living processes whose output is this log."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and Path(f"/proc/{process.pid}/fd/1").resolve() == log:
                found.append(process.pid)
    return found


@pytest.mark.slow
def test_many_slow_ends_do_not_keep_the_list_waiting(bench: Bench) -> None:
    """Each used to hold a thread for its whole grace."""
    names = [f"deaf-a-{n}" for n in range(12)]
    for name in names:
        bench.launch(name, argv=(*PYTHON, DEAF))
    for name in names:
        bench.said("deaf", name)

    async def check() -> float:
        ends = [asyncio.create_task(bench.runtime.stop(name, grace_s=2)) for name in names]
        await asyncio.sleep(0)
        began = time.monotonic()
        assert {i.state for i in await bench.runtime.list()} == {InstanceState.STOPPING}
        took_s = time.monotonic() - began
        await asyncio.gather(*ends)
        return took_s

    assert asyncio.run(check()) < 1
    assert (bench.listed(), bench.pids()) == ((), [])


def test_downloads_that_hold_the_loops_threads_do_not_keep_the_list_waiting(bench: Bench) -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        busy = ThreadPoolExecutor(1)
        loop.set_default_executor(busy)
        ended = asyncio.Event()
        held = loop.run_in_executor(None, lambda: asyncio.run_coroutine_threadsafe(ended.wait(), loop).result(10))
        async with asyncio.timeout(5):
            assert await bench.runtime.list() == ()
        ended.set()
        await held

    asyncio.run(check())


def test_stop_waits_for_a_birth_and_a_cancelled_launch_leaves_no_stray(bench: Bench) -> None:
    spec = LaunchSpec(id="echo-a-0", model="acme/echo", spec="spec-1", argv=SLEEPS)

    async def check() -> None:
        launch = asyncio.create_task(bench.runtime.launch(spec))
        await asyncio.sleep(0)
        launch.cancel()
        await asyncio.gather(launch, return_exceptions=True)
        for instance in await bench.runtime.list():
            assert instance.state is InstanceState.RUNNING
        await bench.runtime.stop("echo-a-0", grace_s=5)
        assert await bench.runtime.list() == ()

    for _ in range(5):
        asyncio.run(check())
    assert bench.pids() == []


# --- logs ---


def test_log_is_cut_to_its_end_while_the_engine_writes_on(bench: Bench) -> None:
    bench.restarted(log_bytes_max=10_000)
    talk = "import sys\nfor n in range(2000): print('line', n, flush=True)\nsys.stdin.read(); import time\n"
    bench.launch(argv=(*PYTHON, talk + "time.sleep(0.3); print('after the cut', flush=True); time.sleep(600)"))
    until(lambda: bench.listed() and (bench.folder / "logs" / "echo-a-0.log").stat().st_size <= 10_000)
    text = bench.said("after the cut")
    assert "line 1999" in text
    assert "\0" not in text


def test_logs_of_the_newest_are_kept(bench: Bench) -> None:
    logs = bench.folder / "logs"
    bench.launch("alive-a-0")
    os.utime(logs / "alive-a-0.log", (0, 0))
    for n in range(30):
        (logs / f"gone-a-{n}.log").write_text("x")
        os.utime(logs / f"gone-a-{n}.log", (n + 1, n + 1))
    bench.launch()
    bench.stop()
    kept = {path.stem for path in logs.iterdir()}
    assert {"alive-a-0", "echo-a-0", "gone-a-29"} <= kept
    assert "gone-a-0" not in kept
    assert len(kept) == 21


def test_list_is_cheap(bench: Bench) -> None:
    for n in range(5):
        bench.launch(f"echo-a-{n}")
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        bench.listed()
        taken.append(time.perf_counter() - began)
    assert min(taken) < 0.02


def test_marks_survive_a_title_only_through_the_log(bench: Bench) -> None:
    """Why the log counts as a mark: overwriting the environment's memory is what setproctitle does."""
    wipe = (
        "import ctypes, os, time\n"
        "libc = ctypes.CDLL(None)\n"
        "fields = open('/proc/self/stat').read().rpartition(')')[2].split()\n"
        "start, end = int(fields[47]), int(fields[48])\n"
        "ctypes.memset(start, 0, end - start)\n"
        "print('wiped', flush=True); time.sleep(600)\n"
    )
    bench.launch(argv=(*PYTHON, wipe))
    bench.said("wiped")
    pid = int(str(bench.record()["pid"]))
    assert REPLICA_MARK not in psutil.Process(pid).environ()
    records = Records(bench.folder)
    [record] = records.all()
    records.write(replace(record, pid=None, born_at=None))
    bench.restarted()
    assert bench.listed()[0].state is InstanceState.RUNNING
    assert bench.record()["pid"] == pid
    bench.stop()
    assert writers(bench.folder / "logs" / "echo-a-0.log") == []
