"""Engines as processes of this machine: each in a group of its own, on loopback, its output in a bounded file.

They outlive us: output goes straight to a file, and a restarted orchestrator finds them by their records. Each
carries two marks in its environment, so that one whose record was never finished is found too, and so that its
workers are found when their leader is gone. Processes with another instance's marks, or none, are not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from orchestrator.crash import crash_point
from orchestrator.errors import LaunchFailed, NotFound, RuntimeUnavailable
from orchestrator.model import Gpu, Instance, InstanceState, LaunchSpec
from runtimes.records import Record, Records, is_name

INSTANCE_MARK = "ORCHESTRATOR_ENGINE_INSTANCE"
REPLICA_MARK = "ORCHESTRATOR_ENGINE_REPLICA"
HOST = "127.0.0.1"
POLL_S = 0.05
KILL_WAIT_S = 10.0
"""How long the kernel may take to end what was killed."""
FOLLOW_S = 0.25
_SECRETS = re.compile(r"^(AWS_|ORCHESTRATOR_)|TOKEN$|SECRET|API_KEY$|PASSWORD", re.IGNORECASE)


class ProcessRuntime:
    """`ports.Runtime` over processes; blocking work happens in threads."""

    def __init__(self, *, folder: Path, instance: str, log_bytes_max: int, environ: Mapping[str, str]) -> None:
        self._records = Records(folder)
        self._instance = instance
        self._log_bytes_max = log_bytes_max
        self._environ = inherited(environ)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping: set[str] = set()
        self._launching: set[str] = set()

    async def launch(self, spec: LaunchSpec) -> None:
        """See `ports.Runtime.launch`."""
        self._launching.add(spec.id)
        try:
            await asyncio.to_thread(self._launch, spec)
        finally:
            self._launching.discard(spec.id)

    async def list(self) -> tuple[Instance, ...]:
        """See `ports.Runtime.list`. Also keeps the logs within their bound."""
        try:
            return await asyncio.to_thread(self._list)
        except OSError as error:
            raise RuntimeUnavailable(f"the records of engines can't be read: {error}") from None

    async def stop(self, replica: str, *, grace_s: float) -> None:
        """See `ports.Runtime.stop`."""
        self._stopping.add(replica)
        try:
            await asyncio.to_thread(self._stop, replica, grace_s)
        finally:
            self._stopping.discard(replica)

    async def logs(self, replica: str, *, tail_bytes: int, follow: bool = False) -> AsyncIterator[bytes]:
        """See `ports.Runtime.logs`. Following ends when the engine has."""
        path = self._log_path(replica)
        at = max(0, path.stat().st_size - tail_bytes)
        while True:
            size = path.stat().st_size
            at = 0 if size < at else at  # it was cut meanwhile
            while chunk := await asyncio.to_thread(_read, path, at, 2**16):
                at += len(chunk)
                yield chunk
            if not follow or not any(i.id == replica for i in await self.list()):
                return
            await asyncio.sleep(FOLLOW_S)

    async def log_tail(self, replica: str, *, tail_bytes: int) -> str:
        """See `ports.Runtime.log_tail`."""
        try:
            path = self._log_path(replica)
            at = max(0, path.stat().st_size - tail_bytes)
            return (await asyncio.to_thread(_read, path, at, tail_bytes)).decode("utf-8", "replace")
        except (NotFound, OSError):
            return ""

    async def gpus(self) -> tuple[Gpu, ...]:
        """None yet: engines as processes run on the CPU, or take what GPUs they see."""
        return ()

    # --- in threads ---

    def _launch(self, spec: LaunchSpec) -> None:
        if any(record.replica == spec.id for record in self._records.all()):
            return
        port = free_port()
        record = Record(
            replica=spec.id,
            instance=self._instance,
            model=spec.model,
            spec=spec.spec,
            port=port,
            gpus=spec.gpus,
        )
        crash_point("launch.before_intent")
        self._records.write(record)
        crash_point("launch.after_intent")
        child = self._spawn(spec, port)
        crash_point("launch.after_spawn")
        self._children[spec.id] = child
        self._records.write(replace(record, pid=child.pid, born_at=_born_at(child.pid)))
        crash_point("launch.after_record")

    def _spawn(self, spec: LaunchSpec, port: int) -> subprocess.Popen[bytes]:
        marks = {INSTANCE_MARK: self._instance, REPLICA_MARK: spec.id}
        env = {**self._environ, **dict(spec.env), **marks}
        if spec.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpus)
        argv = [part.replace("{host}", HOST).replace("{port}", str(port)) for part in spec.argv]
        try:
            with self._records.log_path(spec.id).open("ab") as log:
                return subprocess.Popen(
                    argv,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self._records.remove(spec.id)
            raise LaunchFailed(f"{argv[0]} can't be started: {error.strerror}") from None

    def _list(self) -> tuple[Instance, ...]:
        instances = []
        for record in self._records.all():
            if record.instance != self._instance:
                continue
            _cut(self._records.log_path(record.replica), self._log_bytes_max)
            if record.pid is None and record.replica not in self._launching:
                record = self._completed(record)
            instances.append(self._instance_of(record))
        return tuple(instances)

    def _completed(self, record: Record) -> Record:
        """Finish the record of an engine whose starter died in between; without one it counts as ended."""
        leader = min(self._marked(record.replica), key=lambda p: p.create_time(), default=None)
        if leader is None:
            return record
        complete = replace(record, pid=leader.pid, born_at=leader.create_time())
        self._records.write(complete)
        return complete

    def _instance_of(self, record: Record) -> Instance:
        child = self._children.get(record.replica)
        exit_code = child.poll() if child else None
        alive = record.replica in self._launching or (exit_code is None and _process(record) is not None)
        if record.replica in self._stopping:
            state = InstanceState.STOPPING
        else:
            state = InstanceState.RUNNING if alive else InstanceState.EXITED
        return Instance(
            id=record.replica,
            model=record.model,
            spec=record.spec,
            state=state,
            endpoint=f"http://{HOST}:{record.port}",
            gpus=record.gpus,
            exit_code=exit_code,
        )

    def _stop(self, replica: str, grace_s: float) -> None:
        record = next((r for r in self._records.all() if r.replica == replica), None)
        if record is None or record.instance != self._instance:
            return
        crash_point("stop.before_signal")
        self._signal(record, signal.SIGTERM)
        crash_point("stop.after_signal")
        if not _until(lambda: not self._alive(record), grace_s):
            self._signal(record, signal.SIGKILL)
            _until(lambda: not self._alive(record), KILL_WAIT_S)
        for straggler in self._marked(replica):
            with contextlib.suppress(psutil.NoSuchProcess):
                straggler.kill()
        crash_point("stop.before_clear")
        self._children.pop(replica, None)
        self._records.remove(replica)

    def _alive(self, record: Record) -> bool:
        child = self._children.get(record.replica)
        if child is not None:
            child.poll()  # reaps it
        return _process(record) is not None or _group_alive(record)

    def _signal(self, record: Record, number: signal.Signals) -> None:
        """To the whole group: it is the leader's pid, since each engine leads a session of its own."""
        if record.pid is None:
            for process in self._marked(record.replica):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        elif _process(record) is not None or _group_alive(record):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record.pid, number)

    def _marked(self, replica: str) -> tuple[psutil.Process, ...]:
        """Every process with this replica's marks; reads the whole process table."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                marks = process.environ()
                ours = marks.get(INSTANCE_MARK) == self._instance and marks.get(REPLICA_MARK) == replica
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return tuple(found)

    def _log_path(self, replica: str) -> Path:
        path = self._records.log_path(replica) if is_name(replica) else None
        if path is None or not path.exists():
            raise NotFound(f"no log of {replica[:80]!r}")
        return path


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What an engine inherits of our environment: all but what looks like a secret, or is our own setting."""
    return {key: value for key, value in environ.items() if not _SECRETS.search(key)}


def free_port() -> int:
    """A loopback port that nobody listens on now. Another may take it before the engine does; then it ends,
    says so in its log, and is started anew on another."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _process(record: Record) -> psutil.Process | None:
    """The living leader of a record, told from a stranger with its pid by the time of its birth."""
    if record.pid is None:
        return None
    try:
        process = psutil.Process(record.pid)
        same = record.born_at is None or abs(process.create_time() - record.born_at) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _group_alive(record: Record) -> bool:
    """Whether the leader is gone but its group is not: a pid is not given out anew while its group lives."""
    if record.pid is None or psutil.pid_exists(record.pid):
        return False
    try:
        os.killpg(record.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _born_at(pid: int) -> float | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).create_time()
    return None


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    ends_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= ends_at:
            return False
        time.sleep(POLL_S)
    return True


def _read(path: Path, at: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(size)


def _cut(log: Path, bytes_max: int) -> None:
    """Keep a log's second half once it is over the bound. The engine appends, so it writes on at the new end;
    what it writes during the cut is lost, as with logrotate's copytruncate."""
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return
    if size > bytes_max:
        tail = _read(log, size - bytes_max // 2, bytes_max // 2)
        os.truncate(log, 0)
        with log.open("ab") as file:
            file.write(tail[tail.find(b"\n") + 1 :])
