"""Text that others wrote, made fit for a terminal, a line and a file's name. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

INSTEAD = "\N{REPLACEMENT CHARACTER}"
SNIPPET_CHARS = 320
LEAD_CHARS = 40
"""Of a snippet, before the first word that was found."""
MATCHES_MAX = 200
NAME_BYTES_MAX = 200
"""A file system takes 255; the rest is for what stands beside a name while a download runs."""
_TURNING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They change the direction of what follows, so that a name reads as another one."""
_WORD = re.compile(r"\w+")


def printable(text: str) -> str:
    """One line without anything that a terminal obeys: control characters, lone surrogates, changes of direction."""
    return "".join(INSTEAD if _obeyed(char) else char for char in " ".join(text.split()))


def plain(text: str) -> str:
    """Likewise, with its lines, tabs and blanks as they are."""
    return "".join(INSTEAD if _obeyed(char) and char not in "\n\t" else char for char in text)


def troubles(health: Mapping[str, Any]) -> list[str]:
    """A line for each file that the service was told to follow and can't use, as its ``/health`` tells."""
    checks = health["checks"]
    return [f"{n}: {printable(checks[n]['detail'])}" for n in ("configuration", "keys") if not checks[n]["ok"]]


def safe_name(name: str, otherwise: str) -> str:
    """A name for a file in the current folder, whatever `name` is: no path, not hidden, no option. `otherwise` is for
    when nothing is left of it."""
    last = re.split(r"[/\\]", name)[-1]
    kept = "".join("_" if _obeyed(char) else char for char in last).strip()
    kept = re.sub(r"^[.\-~]+", "_", kept)
    stem, dot, suffix = kept.rpartition(".")
    if not dot or len(suffix.encode()) > NAME_BYTES_MAX // 4:
        stem, suffix = kept, ""
    stem = _cut(stem, NAME_BYTES_MAX - len(suffix.encode()) - 1)
    found = f"{stem}.{suffix}" if suffix else stem
    return found if found.strip("_ ") else otherwise


def snippet(text: str, query: str) -> str:
    """The part of `text` that has the most of the query's words, about `SNIPPET_CHARS` long, printable."""
    line = printable(text)
    if len(line) <= SNIPPET_CHARS:
        return line
    found = [(match.start(), match[0].casefold()) for match in islice(word_pattern(query).finditer(line), MATCHES_MAX)]

    def held(start: int) -> int:
        return len({word for at, word in found if start <= at < start + SNIPPET_CHARS})

    starts = [max(0, at - LEAD_CHARS) for at, _ in found]
    start = min(max(starts, key=held, default=0), len(line) - SNIPPET_CHARS)
    end = start + SNIPPET_CHARS
    return f"{'…' if start else ''}{line[start:end].strip()}{'…' if end < len(line) else ''}"


def word_pattern(query: str) -> re.Pattern[str]:
    """Finds the query's words, with whatever follows them in a word: ``wing`` finds ``wings``."""
    words = sorted({word for word in _WORD.findall(query) if len(word) > 1}, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words)) or '(?!)'})\w*", re.IGNORECASE)


def duration_s(text: str) -> int:
    """Seconds of ``90m``, ``12h``, ``7d`` or a bare number. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no length of time: write it as 90m, 12h or 7d")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def moment(unix: int) -> str:
    """A time in the machine's zone, as ``2027-01-31 09:30``."""
    return datetime.fromtimestamp(unix, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def _obeyed(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _TURNING


def _cut(text: str, bytes_max: int) -> str:
    return text.encode()[:bytes_max].decode("utf-8", "ignore")
