"""Real passages for the scale benchmark, from what lies on any machine: documentation, manuals, sources' prose."""

from __future__ import annotations

import ast
import gzip
import hashlib
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

WORDS_MIN, WORDS_MAX = 12, 48
"""Of a passage: a short paragraph, so that many are embedded in the time there is."""
FILE_BYTES_MAX = 2 * 2**20

_REQUEST = re.compile(r"^[.'].*$", re.MULTILINE)
_ESCAPE = re.compile(r"\\(?:f[A-Z]|f\([A-Z]{2}|[&-])")
_BLANK = re.compile(r"\n[ \t\r]*\n")
_COMMENT = re.compile(r"(?:^[ \t]*(?:#|//|\*)[ \t].*\n){2,}", re.MULTILINE)
_MARK = re.compile(r"^[ \t]*(?:#+|//+|\*+)[ \t]?", re.MULTILINE)
_PROSE = re.compile(r"[A-Za-z]{3,}")
_SOURCES = frozenset({".go", ".rs", ".c", ".h", ".cc", ".hpp", ".js", ".ts", ".java"})
_TEXTS = frozenset({".md", ".rst", ".txt", "", ".tex"})


def passages(folders: Sequence[Path], count: int, seed: int = 0) -> list[str]:
    """At most `count` distinct passages from all files under `folders`, in a shuffled order that `seed` fixes."""
    seen: set[bytes] = set()
    found: list[str] = []
    files = sorted(path for folder in folders for path in folder.rglob("*"))
    random.Random(seed).shuffle(files)
    for path in files:
        for text in _of_file(path):
            key = hashlib.blake2b(re.sub(r"[\W\d]+", "", text).casefold().encode(), digest_size=12).digest()
            if key not in seen:
                seen.add(key)
                found.append(text)
        if len(found) >= count:
            break
    random.Random(seed).shuffle(found)
    return found[:count]


def _of_file(path: Path) -> Iterator[str]:
    """The passages of one file; none when it is of no known kind, too large or unreadable."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    manual = bool(re.fullmatch(r"\.[1-9][a-z]*", kind))
    if not (manual or kind == ".py" or kind in _SOURCES or kind in _TEXTS):
        return
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > FILE_BYTES_MAX:
            return
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return
    if manual:
        yield from _cut(_ESCAPE.sub("", _REQUEST.sub("\n", text)))
    elif kind == ".py":
        for prose in (*_docstrings(text), *_comments(text)):
            yield from _cut(prose)
    elif kind in _SOURCES:
        for prose in _comments(text):
            yield from _cut(prose)
    else:
        yield from _cut(text)


def _docstrings(text: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _comments(text: str) -> Iterator[str]:
    for match in _COMMENT.finditer(text):
        yield _MARK.sub("", match.group())


def _cut(text: str) -> Iterator[str]:
    """The paragraphs that are prose, long ones in parts."""
    for paragraph in _BLANK.split(text):
        words = paragraph.split()
        for at in range(0, len(words), WORDS_MAX):
            part = words[at : at + WORDS_MAX]
            if len(part) >= WORDS_MIN and sum(bool(_PROSE.match(word)) for word in part) > 0.6 * len(part):
                yield " ".join(part)
