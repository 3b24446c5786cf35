"""What is counted at gateways and kept by the controller: usage and metrics."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.gateway.table import Report, Row, Seen, Sums
from orchestrator.metering.gate import Gate
from orchestrator.metering.usage import Ledger
from orchestrator.metrics import Metrics

SUMS_S = 1.0
"""The controller writes each of them to its disk."""


class Ours:
    """The controller's: what gateways have counted is added to it. Implements `registry.Books`."""

    def __init__(self, *, ledger: Ledger, gate: Gate, metrics: Metrics, unix: Callable[[], float]) -> None:
        self._ledger = ledger
        self._gate = gate
        self._metrics = metrics
        self._unix = unix

    def add(self, gateway: str, serial: int, sums: Sums) -> bool:
        """See `registry.Books.add`."""
        if self._ledger.serials.known(gateway, serial):
            return False
        for model, numbers in sums.metrics.items():
            self._metrics.of(model).add(numbers)
        for row in sums.usage:
            self._ledger.counts(row.key, row.model, row.hour).add(row.counts)
            self._gate.spend(row.key, row.counts.prompt_tokens + row.counts.completion_tokens, self._unix())
        self._ledger.serials.add(gateway, serial)
        return True


class Outbox:
    """A gateway's: makes its reports, and keeps what it has counted until the controller has it."""

    def __init__(
        self, *, name: str, address: str, ledger: Ledger, metrics: Metrics, monotonic: Callable[[], float]
    ) -> None:
        self._name = name
        self._address = address
        self._ledger = ledger
        self._metrics = metrics
        self._now = monotonic
        self._due_at = 0.0
        self._told: dict[str, list[float]] = {}
        self._serial = 0
        self._sums: Sums | None = None

    def report(self, controller: str, version: int, traffic: dict[str, Seen], *, last: bool = False) -> Report:
        """The next one: with the sums of the last one, as long as nobody has acknowledged them; new ones every
        `SUMS_S`."""
        due = last or self._now() >= self._due_at
        if self._sums is None and due and (sums := self._counted()) != Sums():
            self._due_at = self._now() + SUMS_S
            self._serial += 1
            self._sums = sums
        return Report(
            gateway=self._name,
            address=self._address,
            controller=controller,
            version=version,
            traffic=traffic,
            serial=self._serial,
            sums=self._sums,
            last=last,
        )

    def acknowledged(self) -> None:
        """The controller has the last report."""
        self._sums = None

    def _counted(self) -> Sums:
        usage = tuple(Row(p.key, p.model, p.hour, counts) for p, counts in self._ledger.take().items())
        turned: dict[str, list[float]] = {}
        for model, numbers in self._metrics.by_model().items():
            now = numbers.numbers()
            before = self._told.get(model) or [0.0] * len(now)
            if now != before:
                turned[model] = [new - old for new, old in zip(now, before, strict=True)]
                self._told[model] = now
        return Sums(usage=usage, metrics=turned)
