"""Engines as processes of this machine: each in a group of its own, on loopback, its output in a bounded file.

They outlive us: output goes straight to a file, and a restarted orchestrator finds them by their records. Each
carries marks, so that one whose record was never finished is found too, and so that its workers are found when
their leader is gone (`process_table`). Processes with another instance's marks, or none, are not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from orchestrator.crash import crash_point
from orchestrator.errors import LaunchFailed, NotFound, RuntimeUnavailable
from orchestrator.gpu import Gpu
from orchestrator.model import Instance, InstanceState
from orchestrator.ports import LaunchSpec
from runtimes import process_table as table
from runtimes.gpu_watch import GpuSource, NoGpus
from runtimes.kept_logs import is_name
from runtimes.records import Record, Records

HOST = "127.0.0.1"
PORTS = range(20_000, 32_768)
"""Below Linux's ephemeral ports (ip_local_port_range), so that no outgoing connection takes one before the engine
listens, which may be a minute after it was picked."""
PORT_TRIES_MAX = 100
POLL_S = 0.05
KILL_WAIT_S = 10.0
"""How long the kernel may take to end what was killed."""
FOLLOW_S = 0.25
READ_BYTES = 2**16
THREADS_MAX = 4
_SECRETS = re.compile(r"^(AWS_|ORCHESTRATOR_)|TOKEN$|SECRET|API_KEY$|PASSWORD", re.IGNORECASE)

P = ParamSpec("P")
T = TypeVar("T")


class ProcessRuntime:
    """`ports.Runtime` over processes. Blocking work happens in a few threads of its own: the loop's are shared with
    downloads, which hold them for hours."""

    def __init__(
        self,
        *,
        folder: Path,
        instance: str,
        log_bytes_max: int,
        environ: Mapping[str, str],
        gpus: GpuSource | None = None,
    ) -> None:
        self._records = Records(folder)
        self._instance = instance
        self._log_bytes_max = log_bytes_max
        self._environ = inherited(environ)
        self._gpus = gpus or NoGpus()
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="engines")
        self._births = threading.Lock()
        """Held from a look for a record to the engine's birth, so that one id is born once, and is not stopped
        half born."""
        self._newborn: set[str] = set()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping: Counter[str] = Counter()
        self._searched = False

    async def launch(self, spec: LaunchSpec) -> None:
        """See `ports.Runtime.launch`. One that is cancelled still finishes what it began."""
        await self._threaded(self._launch, spec)

    async def list(self) -> tuple[Instance, ...]:
        """See `ports.Runtime.list`. Also keeps the logs within their bound."""
        try:
            return await self._threaded(self._list)
        except OSError as error:
            raise RuntimeUnavailable(f"the records of engines can't be read: {error}") from None

    async def stop(self, replica: str, *, grace_s: float) -> None:
        """See `ports.Runtime.stop`. Raises `RuntimeUnavailable` when something survives even SIGKILL."""
        self._stopping[replica] += 1
        try:
            record = await self._threaded(self._found, replica)
            if record is not None:
                await self._end(record, grace_s)
        finally:
            self._stopping[replica] -= 1
            self._stopping += Counter()  # drops what has come down to zero

    async def logs(self, replica: str, *, tail_bytes: int, follow: bool = False) -> AsyncIterator[bytes]:
        """See `ports.Runtime.logs`. Following ends when the engine has."""
        path = self._records.logs.found(replica)
        at = max(0, path.stat().st_size - tail_bytes)
        lives = True
        while lives:
            lives = follow and await self._lives(replica)  # asked before reading, so that no last word is missed
            size = path.stat().st_size
            at = 0 if size < at else at  # it was cut meanwhile
            while at < size and (chunk := await self._threaded(_read, path, at, READ_BYTES)):
                at += len(chunk)
                yield chunk
            if lives:
                await asyncio.sleep(FOLLOW_S)

    async def log_tail(self, replica: str, *, tail_bytes: int) -> str:
        """See `ports.Runtime.log_tail`."""
        try:
            path = self._records.logs.found(replica)
            at = max(0, path.stat().st_size - tail_bytes)
            return (await self._threaded(_read, path, at, tail_bytes)).decode("utf-8", "replace")
        except (NotFound, OSError):
            return ""

    async def gpus(self) -> tuple[Gpu, ...] | None:
        """See `ports.Runtime.gpus`."""
        found = await self._gpus.gpus()
        return found if self._gpus.ready else None

    def places(self) -> tuple[str, ...]:
        """Only this one."""
        return ()

    def watch(self, changed: Callable[[], None]) -> None:
        """No news: the loop's own tick is what notices an end."""

    def close(self) -> None:
        """See `ports.Runtime.close`."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _threaded(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._threads.submit(work, *args, **kwargs))

    async def _lives(self, replica: str) -> bool:
        return any(i.id == replica and i.state is not InstanceState.EXITED for i in await self.list())

    # --- ending: waits on the loop, so that slow ends hold no thread ---

    async def _end(self, record: Record, grace_s: float) -> None:
        log = self._records.log_path(record.replica)
        crash_point("stop.before_signal")
        await self._threaded(table.send, record, log, signal.SIGTERM)
        crash_point("stop.after_signal")
        if not await self._gone(record, log, grace_s):
            await self._threaded(table.send, record, log, signal.SIGKILL)
            if not await self._gone(record, log, KILL_WAIT_S):
                raise RuntimeUnavailable(f"{record.replica} was killed, but is still there")
        await self._kill_strays(record, log)
        crash_point("stop.before_clear")
        await self._threaded(self._clear, record.replica)

    async def _gone(self, record: Record, log: Path, timeout_s: float) -> bool:
        """Whether the engine's group ends within this time."""
        ends_at = asyncio.get_running_loop().time() + timeout_s
        while await self._threaded(self._living, record, log):
            if asyncio.get_running_loop().time() >= ends_at:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def _kill_strays(self, record: Record, log: Path) -> None:
        """Whoever left the group; without grace, since what led them is gone."""
        ends_at = asyncio.get_running_loop().time() + KILL_WAIT_S
        while found := await self._threaded(table.strays, record, log):
            if asyncio.get_running_loop().time() >= ends_at:
                raise RuntimeUnavailable(f"workers of {record.replica} were killed, but are still there")
            await self._threaded(table.kill, found)
            await asyncio.sleep(POLL_S)

    # --- in threads ---

    def _launch(self, spec: LaunchSpec) -> None:
        with self._births:
            records = tuple(self._records.all())
            if any(record.replica == spec.id for record in records):
                return
            self._newborn.add(spec.id)
            try:
                self._bear(spec, free_port({record.port for record in records}))
            finally:
                self._newborn.discard(spec.id)

    def _bear(self, spec: LaunchSpec, port: int) -> None:
        record = Record(
            replica=spec.id,
            instance=self._instance,
            model=spec.model,
            spec=spec.spec,
            port=port,
            gpus=spec.gpus,
            gpu_bytes=spec.gpu_bytes,
        )
        crash_point("launch.before_intent")
        self._records.write(record)
        crash_point("launch.after_intent")
        child = self._spawn(spec, port)
        crash_point("launch.after_spawn")
        self._children[spec.id] = child
        self._records.write(replace(record, pid=child.pid, born_at=table.born_at(child.pid)))
        crash_point("launch.after_record")

    def _spawn(self, spec: LaunchSpec, port: int) -> subprocess.Popen[bytes]:
        env = {**self._environ, **dict(spec.env), **table.marks(self._instance, spec.id)}
        if spec.gpus or (self._gpus.known and "CUDA_VISIBLE_DEVICES" not in dict(spec.env)):
            env["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpus)  # none: what it was not lent it does not see
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
        except (OSError, ValueError) as error:
            self._records.remove(spec.id)
            cause = (isinstance(error, OSError) and error.strerror) or str(error)
            raise LaunchFailed(f"{argv[0]} can't be started: {cause}") from None

    def _found(self, replica: str) -> Record | None:
        """The record of an engine of ours, completed; waits for its birth."""
        with self._births:
            mine = (r for r in self._records.all() if r.instance == self._instance and r.replica == replica)
            record = next(mine, None)
        return self._completed(record) if record else None

    def _list(self) -> tuple[Instance, ...]:
        if not self._searched:
            self._claim_lost()
            self._searched = True
        instances = []
        for record in self._records.all():
            if record.instance == self._instance:
                _cut(self._records.log_path(record.replica), self._log_bytes_max)
                instances.append(self._instance_of(self._completed(record)))
        return tuple(instances)

    def _claim_lost(self) -> None:
        """Give engines of ours whose record is lost or unreadable a new one, so that they are listed. What they were
        started with is not known, so they match no deployment, and the loop ends them."""
        known = {record.replica for record in self._records.all()}
        for replica in table.replicas_of(self._instance) - known:
            if is_name(replica):
                self._records.write(Record(replica=replica, instance=self._instance, model="", spec="", port=0))

    def _completed(self, record: Record) -> Record:
        """Finish the record of an engine whose starter died in between; without one it counts as ended."""
        if record.pid is not None or record.replica in self._newborn:
            return record
        complete = table.found_leader(record, self._records.log_path(record.replica))
        if complete is None:
            return record
        with contextlib.suppress(OSError):  # on a full disk it is looked for again at each look
            self._records.write(complete)
        return complete

    def _instance_of(self, record: Record) -> Instance:
        child = self._children.get(record.replica)
        exit_code = child.poll() if child else None
        log = self._records.log_path(record.replica)
        alive = record.replica in self._newborn or (exit_code is None and table.leader_lives(record, log))
        if self._stopping[record.replica]:
            state = InstanceState.STOPPING
        else:
            state = InstanceState.RUNNING if alive else InstanceState.EXITED
        return Instance(
            id=record.replica,
            model=record.model,
            spec=record.spec,
            state=state,
            endpoint=f"http://{HOST}:{record.port}" if record.port else None,
            gpus=record.gpus,
            gpu_bytes=record.gpu_bytes,
            exit_code=exit_code,
        )

    def _clear(self, replica: str) -> None:
        child = self._children.pop(replica, None)
        if child is not None:
            child.poll()  # it has ended, if only a moment ago: reaps it
        self._records.remove(replica)

    def _living(self, record: Record, log: Path) -> bool:
        child = self._children.get(record.replica)
        if child is not None:
            child.poll()  # reaps it
        return bool(table.living(record, log))


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What an engine inherits of our environment: all but what looks like a secret, or is our own setting."""
    return {key: value for key, value in environ.items() if not _SECRETS.search(key)}


def free_port(taken: Collection[int] = ()) -> int:
    """A loopback port that nobody listens on now, and none of `taken`. Another may take it before the engine does;
    then it ends, says so in its log, and is started anew on another. Raises `LaunchFailed` when none is found."""
    for port in random.sample(PORTS, PORT_TRIES_MAX):
        if port in taken:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise LaunchFailed(f"no free port found in {PORTS.start}–{PORTS.stop - 1}")


def _read(path: Path, at: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(size)


def _cut(log: Path, bytes_max: int) -> None:
    """Keep a log's second half once it is over the bound. The engine appends, so it writes on at the new end;
    what it writes during the cut is lost, as with logrotate's copytruncate. A log that can't be cut now is cut at
    the next look: it is no reason not to know what runs."""
    with contextlib.suppress(OSError):
        size = log.stat().st_size
        if size > bytes_max:
            tail = _read(log, size - bytes_max // 2, bytes_max // 2)
            os.truncate(log, 0)
            with log.open("ab") as file:
                file.write(tail[tail.find(b"\n") + 1 :])
