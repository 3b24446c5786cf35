"""Reads the end of an engine's log for why it ended. Pure."""

from __future__ import annotations

import re

SENTENCE_CHARS_MAX = 300

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# "(EngineCore pid=7) ERROR 11-21 04:50:01 [core.py:871] ", "2026-11-21 04:50:01,123 ERROR ", "INFO:     "
_PREFIX = re.compile(
    r"^(\([\w ]+pid=\d+\) *)?"
    r"((DEBUG|INFO|WARNING|ERROR|CRITICAL)[: ]+)?"
    r"(\d{2,4}-\d{2}(-\d{2})?[ T]\d{2}:\d{2}:\d{2}[.,\d]*Z? *)?"
    r"((DEBUG|INFO|WARNING|ERROR|CRITICAL)[: ]+)?"
    r"(\[[\w./]+:\d+\] ?)?"
)
_RAISED = re.compile(r"^([A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|OutOfMemory\w*))(: .*)?$")
_SAID = re.compile(r"\b(error|fatal|failed|cannot|can't|refused|denied)\b", re.IGNORECASE)
# A parent that only says that a child died, or where to look, tells nothing; the child's line does.
_EMPTY = re.compile(
    r"Engine core initialization failed|See root cause above|EngineDeadError|worker proc|WorkerProc"
    r"|SystemExit|KeyboardInterrupt|^During handling|^The above exception|resource_tracker|leaked"
)


def failure_sentence(log_tail: str, exit_code: int | None) -> str:
    """The engine's own last error line as one sentence.

    1. The last raised exception that is not a mere echo of another process's end. 2. The last line that speaks
    of an error. 3. The last line. 4. The exit code, which alone can't be trusted.
    """
    lines = [plain(line) for line in log_tail.splitlines()]
    told = [line for line in lines if line and not _EMPTY.search(line)]
    for matches in (_RAISED.match, _SAID.search):
        found = [line for line in told if matches(line)]
        if found:
            return _short(found[-1])
    if told:
        return _short(told[-1])
    return "the engine ended" + ("" if exit_code is None else f" with exit code {exit_code}") + " and said nothing"


def plain(line: str) -> str:
    """A log line without colours, time stamps, levels and process names."""
    return _PREFIX.sub("", _ANSI.sub("", line).strip(), count=1).strip()


def _short(line: str) -> str:
    return line if len(line) <= SENTENCE_CHARS_MAX else line[: SENTENCE_CHARS_MAX - 1] + "…"
