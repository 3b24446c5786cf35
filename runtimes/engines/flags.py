"""Reads a vLLM argument list as vLLM's own parser does (`vllm/utils/argparse_utils.py`, 0.32). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SHORTENED_CHARS_MIN = 4
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def names(args: Sequence[str]) -> tuple[str, ...]:
    """The flags of a list, spelled with dashes and without their values."""
    return tuple(_name(part) for part in args if part.startswith("-"))


def matches(name: str, flag: str) -> bool:
    """Whether argparse may take `name` for `flag`: it accepts any beginning that is not ambiguous."""
    return flag.startswith(name) and len(name) >= min(_SHORTENED_CHARS_MIN, len(flag))


def value_of(flag: str, args: Sequence[str]) -> str | None:
    """The value of ``--flag value`` or ``--flag=value``; the last one counts."""
    found = None
    for i, part in enumerate(args):
        if _name(part) != flag:
            continue
        _, separator, value = part.partition("=")
        found = value if separator else next(iter(args[i + 1 : i + 2]), found)
    return found


def number(text: str) -> int | None:
    """``4096``, ``4k`` (4000), ``4K`` (4096); None for ``auto`` and what is no number."""
    match = _NUMBER.fullmatch(text.strip())
    return int(float(match[1]) * _UNITS[match[2]]) if match else None


def _name(part: str) -> str:
    head = part.partition("=")[0]
    return head.replace("_", "-") if head.startswith("--") else head
