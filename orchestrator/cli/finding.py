"""What doctor's checks find."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line."""

    level: Level
    what: str
    remedy: str = ""
    ids: tuple[str, ...] = ()
    """Of what it is about; people are told the first few of them."""
