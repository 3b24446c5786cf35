"""What ``orchestrator top`` knows of a service at one moment, and what changed since the one before. Pure."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

View = dict[str, Any]
"""One object of the control API, as it came."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """One model's requests since the service began, as ``/metrics`` counts them."""

    ok: float = 0.0
    failed: float = 0.0
    cancelled: float = 0.0
    refused: float = 0.0
    """503s for want of an engine."""
    tokens: float = 0.0

    @property
    def ended(self) -> float:
        """Requests that reached an engine and are over."""
        return self.ok + self.failed + self.cancelled


@dataclass(frozen=True, kw_only=True)
class Rates:
    """One model's requests and tokens a second, between two snapshots."""

    requests: float = 0.0
    tokens: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """`at` is in seconds of the monotonic clock; `models`, `gpus` and `servers` are as ``/api/models``, ``/api/gpus``
    and ``/load-stats`` list them."""

    at: float
    models: tuple[View, ...] = ()
    gpus: tuple[View, ...] = ()
    servers: tuple[View, ...] = ()
    trouble: str = ""
    """What is wrong with the files that the service is told to follow; empty: nothing."""
    counts: Mapping[str, Counts] = field(default_factory=dict)
    rates: Mapping[str, Rates] = field(default_factory=dict)

    def since(self, before: Snapshot | None) -> Snapshot:
        """This one with its rates, which need an earlier one. A count that fell is a service that began anew."""
        if before is None or self.at <= before.at:
            return self
        spent_s = self.at - before.at
        rates = {name: _rates(before.counts.get(name, Counts()), now, spent_s) for name, now in self.counts.items()}
        return replace(self, rates=rates)

    def with_model(self, model: View) -> Snapshot:
        """This one after a ``model`` event."""
        others = {view["id"]: view for view in self.models}
        return replace(self, models=tuple({**others, model["id"]: model}.values()))


class Board(Protocol):
    """A running service, as ``orchestrator top`` uses it. What fails raises `OrchestratorError` with a sentence for
    people that says what to do."""

    url: str

    async def snapshot(self) -> Snapshot:
        """The state of everything, without rates."""

    def events(self) -> AsyncIterator[tuple[str, View]]:
        """Name and data of what happens, for as long as the connection holds. The first comes at once."""

    async def ask(self, model: str, verb: str) -> None:
        """``POST /api/models/{model}/{verb}``."""

    def log(self, replica: str) -> AsyncIterator[str]:
        """The lines of an engine's log: the end of what there is, and then as it writes, until it ends."""


def _rates(before: Counts, now: Counts, spent_s: float) -> Rates:
    requests, tokens = now.ended - before.ended, now.tokens - before.tokens
    if requests < 0 or tokens < 0:
        return Rates()
    return Rates(requests=requests / spent_s, tokens=tokens / spent_s)
