"""Reads the end of an engine's log for why it ended. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

SENTENCE_CHARS_MAX = 300
_SENTENCE_CHARS_MIN = 60
"""A text that is too long is cut at the end of a sentence, unless that leaves less than this."""
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
_DETAIL_LINES_MAX = 3

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LEVEL = r"(DEBUG|INFO|WARNING|ERROR|CRITICAL)"
# "(EngineCore pid=7) ERROR 11-21 04:50:01 [core.py:871] ", "2026-11-21 04:50:01,123 ERROR ", "INFO:     "; one blank
# after it, so that what is indented stays so.
_PREFIX = re.compile(
    r"^(?:\([\w -]+pid=\d+\) )?"
    rf"(?:(?P<level>{_LEVEL})(?:: *| +))?"
    r"(?:\d{2,4}-\d{2}(?:-\d{2})?[ T]\d{2}:\d{2}:\d{2}[.,\d]*Z? ?)?"
    rf"(?:(?P<late>{_LEVEL})(?:: *| +))?"
    r"(?:\[[\w./]+:\d+\] ?)?"
)
# glog, as PyTorch writes it: "W1121 06:01:59.318000 8290 torch/x.py:53] ", "[W1121 06:01:59.702675994 utils.cpp:68] "
_GLOG = re.compile(r"^\[?(?P<level>[IWEF])\d{4} \d{2}:\d{2}:\d{2}[^\]]*\] ")
_GLOG_LEVELS = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL"}

_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|OutOfMemory\w*)(?:: .*)?$")
_SAID = re.compile(r"\b(error|fatal|failed|failure|cannot|can't|refused|denied|died)\b", re.IGNORECASE)
_WARNING = re.compile(r"\b\w*Warning: ")
# A process that only says that another one failed, or where to look, tells nothing; that other one's line does.
_ECHO = re.compile(
    r"Engine core initialization failed|[Ss]ee (?:root cause|stack trace)|EngineDeadError|Executor failed"
    r"|WorkerProc initialization|(?:WorkerProc|EngineCore) failed to start|encountered a fatal error"
    r"|output_handler failed|^Traceback |^During handling|^The above exception|exiting due to"
)
_UP = re.compile(r"Application startup complete|The server is fired up and ready to roll")
_PRIVATE_MODULE = re.compile(r"^(?:\w+\.)*_\w+\.")
_PROGRAM = re.compile(r"^\S+\.py: (?=error: )")


@dataclass(frozen=True, slots=True)
class _Line:
    level: str | None
    text: str
    """Without colours, time stamps, levels and process names, but indented as it was."""


def failure_sentence(log_tail: str, exit_code: int | None) -> str:
    """The engine's own last error line as one sentence.

    1. The last raised exception that is not a mere echo of another process's end. 2. The last line logged as an
    error, or that speaks of one. 3. The signal that killed it. 4. The last line that is no warning. 5. The exit
    code, which alone can't be trusted. What was killed outright could not say why, so there the signal comes first, and
    what was said before it was up is left out; so it is where nobody knows how it ended, as of one that was adopted.
    """
    lines = [line for raw in log_tail.splitlines() if (line := _read(raw)).text.strip()]
    lines = [line for line in lines if not _ECHO.search(line.text)]
    if exit_code is None or exit_code in _KILLED:
        lines = _since_up(lines)
    told = _complaint(lines)
    if exit_code is not None and (exit_code < 0 or exit_code in _KILLED):
        killed = _killed(exit_code)
        if told and exit_code not in _KILLED:
            return told
        return _short(f"{killed}; before that it said: {told}" if told else killed)
    if told:
        return told
    if spoken := [line.text for line in lines if not line.text[0].isspace() and not _WARNING.search(line.text)]:
        return _short(spoken[-1] if exit_code is not None else f"the engine ended; the last it said: {spoken[-1]}")
    return "the engine ended" + ("" if exit_code is None else f" with exit code {exit_code}") + " and said nothing"


def _since_up(lines: Sequence[_Line]) -> list[_Line]:
    """Those after the last that says that it serves; all of them where none does."""
    up = [i for i, line in enumerate(lines) if _UP.search(line.text)]
    return list(lines[up[-1] + 1 :]) if up else list(lines)


def _complaint(lines: Sequence[_Line]) -> str:
    """Cases 1 and 2; empty when there is neither."""
    raised = [i for i, line in enumerate(lines) if _RAISED.match(line.text)]
    if raised:
        return _short(_exception(lines, raised[-1]))
    said = [line.text for line in lines if _complains(line)]
    return _short(_PROGRAM.sub("", said[-1])) if said else ""


def _complains(line: _Line) -> bool:
    """Frames of tracebacks and continuation lines are indented."""
    if line.text[:1].isspace() or _WARNING.search(line.text):
        return False
    return line.level in ("ERROR", "CRITICAL") or (line.level is None and bool(_SAID.search(line.text)))


def _exception(lines: Sequence[_Line], at: int) -> str:
    """The exception's line. Pydantic's says only how many errors there were; the indented lines after it say which
    (https://docs.pydantic.dev/latest/errors/errors/)."""
    text = _PRIVATE_MODULE.sub("", lines[at].text)
    if not re.match(r"ValidationError: \d+ validation error", text):
        return text
    after = [line.text.strip() for line in lines[at + 1 : at + 1 + _DETAIL_LINES_MAX]]
    detail = " ".join(part.partition(" [type=")[0] for part in after if not part.startswith("For further information"))
    return f"ValueError: {detail.removeprefix('Value error, ')}" if detail else text


def _killed(exit_code: int) -> str:
    number = -exit_code if exit_code < 0 else exit_code - 128
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    cause = ", as happens when memory runs out" if number == signal.SIGKILL else ""
    return f"the engine was killed by {name}{cause}"


def _read(raw: str) -> _Line:
    text = _ANSI.sub("", raw).rstrip()
    if glog := _GLOG.match(text):
        return _Line(level=_GLOG_LEVELS[glog["level"]], text=text[glog.end() :])
    prefix = _PREFIX.match(text)
    if prefix is None:
        return _Line(level=None, text=text)
    return _Line(level=prefix["level"] or prefix["late"], text=text[prefix.end() :])


def _short(text: str) -> str:
    if len(text) <= SENTENCE_CHARS_MAX:
        return text
    end = text.rfind(". ", 0, SENTENCE_CHARS_MAX)
    return text[: end + 1] if end >= _SENTENCE_CHARS_MIN else text[: SENTENCE_CHARS_MAX - 1] + "…"
