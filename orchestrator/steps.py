"""What the preparation tells as it goes, and how it runs programs and keeps two preparations apart."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen

from orchestrator.errors import OrchestratorError

TAIL_LINES = 15
DETAIL_CHARS_MAX = 100
LOCK_WAIT_S = 1800.0
"""How long another preparation is waited for."""
_LOCK_POLL_S = 0.2
# What could send pip elsewhere than into the environment whose interpreter runs it, or make it wait for an answer.
_MISLEADING = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing under way."""

    title: str
    detail: str = ""


Report = Callable[[Step], None]


class StepFailed(OrchestratorError):
    """A preparation step failed; the message holds the end of its output and what to do."""


def run(title: str, argv: Sequence[str], report: Report, *, lock: int, remedy: str) -> None:
    """Run a program, telling its last line as the step's detail. Blocks. Raises `StepFailed`.

    It inherits `lock`: a program that outlives us, killed in the middle, still keeps the next preparation waiting.
    """
    report(Step(title=title))
    env = {key: value for key, value in os.environ.items() if key not in _MISLEADING}
    env |= {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with Popen(
        argv, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True, errors="replace", env=env, pass_fds=(lock,)
    ) as process:
        assert process.stdout is not None
        tail = _follow(title, process.stdout, report)
    if process.returncode != 0:
        raise StepFailed(f"{title} failed:\n" + "\n".join(tail) + f"\n{remedy}")


@contextmanager
def alone(folder: Path, report: Report) -> Iterator[int]:
    """Hold the lock beside `folder`, whose parent is made; yields its descriptor. Waits for another holder.

    Raises `StepFailed` after `LOCK_WAIT_S`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.with_name(folder.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        ends_at = time.monotonic() + LOCK_WAIT_S
        while not _locked(lock):
            report(Step(title="another preparation is under way: waiting for it", detail=str(folder)))
            if time.monotonic() > ends_at:
                raise StepFailed(f"{folder} is still being prepared by another process after {LOCK_WAIT_S:.0f} s")
            time.sleep(_LOCK_POLL_S)
        yield lock
    finally:
        os.close(lock)


def require_room(folder: Path, needed_bytes: int, free_bytes: int) -> None:
    """Raises `StepFailed` when the disk has no room."""
    if free_bytes < needed_bytes:
        raise StepFailed(
            f"{folder} needs {needed_bytes / 1e9:.1f} GB, but {free_bytes / 1e9:.1f} GB are free;"
            " set ORCHESTRATOR_CACHE to a folder with more room"
        )


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _follow(title: str, lines: Iterable[str], report: Report) -> list[str]:
    tail: list[str] = []
    for line in lines:
        tail = [*tail[-TAIL_LINES + 1 :], line.rstrip()]
        report(Step(title=title, detail=line.strip()[:DETAIL_CHARS_MAX]))
    return tail
