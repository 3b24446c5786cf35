"""The seams: what the dashboard asks of the service. All that it knows comes through here, or over the HTTP API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.access.key import Key

Json = dict[str, Any]
"""One object of the HTTP API."""


class Plane(Protocol):
    """The control plane's views. Reads memory, or the history; changes nothing."""

    def models(self, key: Key) -> list[Json]:
        """The models that the key may use, as ``GET /api/models`` shows them."""

    def gpus(self, key: Key) -> list[Json]:
        """As ``GET /api/gpus``."""

    def servers(self, key: Key) -> list[Json]:
        """The ways to engines, as ``GET /load-stats``."""

    def trouble(self) -> str:
        """What is wrong with the files that the service is told to follow; empty: nothing."""

    async def starts(self, key: Key, *, model: str | None, limit: int) -> list[Json]:
        """As ``GET /api/starts``: the newest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Doors:
    """What there is besides the engines that are started here."""

    endpoints: Callable[[Key], list[Json]]
    """Of static models that the key may use, as ``GET /api/models/{id}/endpoints``."""
    gateways: Callable[[], list[Json]]
    """As ``GET /api/gateways``."""


class Tally(Protocol):
    """A histogram."""

    def exposed(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound (``"+Inf"`` is the last), and the sum of what was observed."""


class Counts(Protocol):
    """One model's counters since the service began."""

    ok: int
    failed: int
    cancelled: int
    refused: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def first_byte_seconds(self) -> Tally:
        """Seconds to the first byte of an answer."""


class Meters(Protocol):
    """The counters of requests."""

    def by_model(self) -> Mapping[str, Counts]:
        """Of all models that were ever asked for."""
