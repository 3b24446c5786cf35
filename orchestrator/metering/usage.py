"""Who used what: counts by key, model and hour, and how they are grouped for a reader. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime

from orchestrator.metering.serials import Serials

HOUR_S = 3600
ROWS_MAX = 100_000
"""Kept in memory while the disk refuses them; beyond it hours are joined: no count is lost, only its hour."""


@dataclass(kw_only=True, slots=True)
class Counts:
    """Sums over requests that have ended."""

    requests: int = 0
    """All but the refused."""
    errors: int = 0
    """Those that the engine, or the way to it, failed."""
    cancelled: int = 0
    """Those that the client left before their end."""
    refused: int = 0
    """Those told to come back (429, 503)."""
    cold_starts: int = 0
    """Those that found their model not ready, refused ones too."""
    estimated: int = 0
    """Those whose tokens are not the engine's own count: it did not come before the end."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt tokens, those that the engine found in its cache."""
    seconds: float = 0.0
    """From the request to the last byte of its answer."""
    first_token_seconds: float = 0.0
    """From the request to the first byte of its answer's body."""
    gpu_seconds: float = 0.0
    """Of its replica's GPUs, shared out at every moment among the requests in flight there."""

    def add(self, other: Counts) -> None:
        """Add another's sums to these."""
        for name in COLUMNS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


COLUMNS = tuple(field.name for field in fields(Counts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Whose counts, of what, and when."""

    key: str
    model: str
    hour: int
    """Since 1970 (UTC)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Which rows, and what to sum them by."""

    by: tuple[str, ...]
    """Some of `GROUPS`."""
    first_hour: int
    end_hour: int
    """The first one that does not count."""
    key: str | None = None
    model: str | None = None


class Ledger:
    """What has been counted and not yet been kept."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, int], Counts] = {}
        self.serials = Serials()
        """Of sums of gateways that were added to the rows."""

    def counts(self, key: str, model: str, hour: int) -> Counts:
        """The row to add to."""
        found = self._rows.get((key, model, hour))
        if found is None:
            found = self._rows[key, model, hour] = Counts()
        return found

    def take(self) -> dict[Place, Counts]:
        """All of it; the ledger is empty after that."""
        rows, self._rows = self._rows, {}
        return {Place(key=key, model=model, hour=hour): counts for (key, model, hour), counts in rows.items()}

    def put_back(self, rows: Mapping[Place, Counts]) -> None:
        """What could not be kept."""
        for place, counts in rows.items():
            crowded = len(self._rows) >= ROWS_MAX and (place.key, place.model, place.hour) not in self._rows
            hour = self._any_hour(place) if crowded else place.hour
            self.counts(place.key, place.model, hour).add(counts)

    def __len__(self) -> int:
        return len(self._rows)

    def _any_hour(self, place: Place) -> int:
        """One that the key and model have a row for."""
        known = (hour for key, model, hour in self._rows if (key, model) == (place.key, place.model))
        return next(known, place.hour)


GROUPS: Mapping[str, Callable[[Place], str]] = {
    "key": lambda place: place.key,
    "model": lambda place: place.model,
    "day": lambda place: _when(place.hour).strftime("%Y-%m-%d"),
    "hour": lambda place: _when(place.hour).strftime("%Y-%m-%dT%H:00:00Z"),
}
"""What rows can be grouped by."""


def grouped(rows: Iterable[tuple[Place, Counts]], by: Iterable[str]) -> dict[tuple[str, ...], Counts]:
    """Sums by the fields `by`, in the order of these fields' values."""
    names = [GROUPS[name] for name in by]
    sums: dict[tuple[str, ...], Counts] = {}
    for place, counts in rows:
        sums.setdefault(tuple(name(place) for name in names), Counts()).add(counts)
    return dict(sorted(sums.items()))


def _when(hour: int) -> datetime:
    return datetime.fromtimestamp(hour * HOUR_S, UTC)
