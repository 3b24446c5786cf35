"""What the preparation tells as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

from orchestrator.errors import OrchestratorError

TAIL_LINES = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing under way."""

    title: str
    detail: str = ""


Report = Callable[[Step], None]


class StepFailed(OrchestratorError):
    """A preparation step failed; the message holds the end of its output and what to do."""


def run(title: str, argv: Sequence[str], report: Report, *, env: dict[str, str], remedy: str) -> None:
    """Run a program, telling its last line as the step's detail. Blocks. Raises `StepFailed`."""
    report(Step(title=title))
    with Popen(argv, stdout=PIPE, stderr=STDOUT, text=True, errors="replace", env=env) as process:
        assert process.stdout is not None
        tail = _follow(title, process.stdout, report)
    if process.returncode != 0:
        raise StepFailed(f"{title} failed:\n" + "\n".join(tail) + f"\n{remedy}")


def require_room(folder: Path, needed_bytes: int, free_bytes: int) -> None:
    """Raises `StepFailed` when the disk has no room."""
    if free_bytes < needed_bytes:
        raise StepFailed(
            f"{folder} needs {needed_bytes / 1e9:.1f} GB, but {free_bytes / 1e9:.1f} GB are free;"
            " set ORCHESTRATOR_CACHE to a folder with more room"
        )


def _follow(title: str, lines: Iterable[str], report: Report) -> list[str]:
    tail: list[str] = []
    for line in lines:
        tail = [*tail[-TAIL_LINES + 1 :], line.rstrip()]
        report(Step(title=title, detail=line.strip()[:100]))
    return tail
