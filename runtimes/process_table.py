"""Which processes of this machine belong to an engine. Looks and signals; blocks for milliseconds.

An engine is told by three things. Its leader's pid and time of birth; its process group, which is the leader's pid;
and its marks: two variables in its environment, and its log as its output. The log counts too because a program
that sets its title may wipe its environment (setproctitle does, and vLLM's workers call it).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from runtimes.records import Record

INSTANCE_MARK = "ORCHESTRATOR_ENGINE_INSTANCE"
REPLICA_MARK = "ORCHESTRATOR_ENGINE_REPLICA"
BIRTH_TOLERANCE_S = 1.0
"""Times of birth are counted from the time of boot, which the wall clock's corrections move."""


def marks(instance: str, replica: str) -> dict[str, str]:
    """What an engine's environment carries."""
    return {INSTANCE_MARK: instance, REPLICA_MARK: replica}


def born_at(pid: int) -> float | None:
    """When the process began, in seconds since 1970; None when there is none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).create_time()
    return None


def leader_lives(record: Record, log: Path) -> bool:
    """Whether the engine's first process lives; a stranger that got its pid is not it."""
    if record.pid is None:
        return False
    try:
        process = psutil.Process(record.pid)
        return process.status() != psutil.STATUS_ZOMBIE and _is_leader(process, record, log)
    except psutil.Error:
        return False


def found_leader(record: Record, log: Path) -> Record | None:
    """The record with the pid of the oldest process that bears its marks. Reads the whole process table."""
    births = ((born_at(process.pid), process.pid) for process in strays(record, log))
    born, pid = min(((born, pid) for born, pid in births if born is not None), default=(None, None))
    return None if pid is None else replace(record, pid=pid, born_at=born)


def living(record: Record, log: Path) -> tuple[int, ...]:
    """The pids of the engine's group. Cheap, and knows nothing of those that left the group."""
    return tuple(pid for pid in psutil.pids() if _in_group(pid, record.pid)) if _owns_group(record, log) else ()


def strays(record: Record, log: Path) -> tuple[psutil.Process, ...]:
    """All that bear the engine's marks, wherever they went. Reads the whole process table."""
    return tuple(process for process, found in _environments() if _bears(process.pid, found, record, log))


def send(record: Record, log: Path, number: signal.Signals) -> None:
    """Signal the engine's group; harmless when it is gone."""
    if record.pid is not None and living(record, log):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(record.pid, number)


def kill(processes: tuple[psutil.Process, ...]) -> None:
    """End these at once; harmless for those that are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def replicas_of(instance: str) -> frozenset[str]:
    """The replicas that have a living process with the instance's mark. Reads the whole process table."""
    found = (environment for _, environment in _environments())
    return frozenset(e[REPLICA_MARK] for e in found if e.get(INSTANCE_MARK) == instance and REPLICA_MARK in e)


def _is_leader(process: psutil.Process, record: Record, log: Path) -> bool:
    """Told by its birth, or, if the clock was set meanwhile, by its marks."""
    if record.born_at is not None and abs(process.create_time() - record.born_at) < BIRTH_TOLERANCE_S:
        return True
    return _bears(process.pid, _environment(process), record, log)


def _owns_group(record: Record, log: Path) -> bool:
    """Whether the group with the leader's pid is still the engine's: the kernel gives that number to nobody else
    while the leader, if only as a zombie, or a member of the group is there."""
    if record.pid is None:
        return False
    try:
        return _is_leader(psutil.Process(record.pid), record, log)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _in_group(pid: int, group: int | None) -> bool:
    try:
        return os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def _environments() -> Iterator[tuple[psutil.Process, Mapping[str, str]]]:
    """Every living process that we may look into."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process, process.environ()


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _bears(pid: int, environment: Mapping[str, str], record: Record, log: Path) -> bool:
    if INSTANCE_MARK in environment or REPLICA_MARK in environment:
        return marks(record.instance, record.replica).items() <= environment.items()
    return _writes_to(pid, log)


def _writes_to(pid: int, log: Path) -> bool:
    """Whether the process's output is this log; never where there is no /proc."""
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "fd" / "1").samefile(log)
    return False
