"""Reads an engine's argument list as its own parser does: vLLM's (`vllm/utils/argparse_utils.py`, 0.32), and argparse,
which SGLang uses as it is (`sglang/srt/server_args.py`, 0.5.23). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.errors import PreflightFailed
from orchestrator.model import Deployment

TRUST_FLAG = "--trust-remote-code"
_COMMIT = re.compile("[0-9a-f]{40}")
_SHORTENED_CHARS_MIN = 4
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def names(args: Sequence[str]) -> tuple[str, ...]:
    """The flags of a list, spelled with dashes and without their values."""
    return tuple(_name(part) for part in args if part.startswith("-"))


def matches(name: str, flag: str) -> bool:
    """Whether argparse may take `name` for `flag`: it accepts any beginning that is not ambiguous."""
    return flag.startswith(name) and len(name) >= min(_SHORTENED_CHARS_MIN, len(flag))


def check(deployment: Deployment, ours: Sequence[str]) -> None:
    """None that is `ours` to give, and no foreign code unless its revision is pinned. Raises `PreflightFailed`."""
    for name in names(deployment.args):
        if flag := next((flag for flag in ours if matches(name, flag)), None):
            raise PreflightFailed(f"{flag} can't be set by args: it belongs to the orchestrator")
        if matches(name, TRUST_FLAG) and not _COMMIT.fullmatch(deployment.revision or ""):
            raise PreflightFailed(f'{TRUST_FLAG} runs code from the model\'s source: pin it, source = "id@<commit>"')


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
