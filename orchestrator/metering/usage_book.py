"""Keeps usage: what requests count in memory goes to the store every second, never while one waits for it."""

from __future__ import annotations

import asyncio

import structlog

from orchestrator.errors import OrchestratorError
from orchestrator.metering.gate import Gate, month_start_unix
from orchestrator.metering.usage import Ledger
from orchestrator.ports import Clock, UsageStore

FLUSH_S = 1.0
"""What a crash may lose."""

log = structlog.get_logger()


class UsageBook:
    """The ledger's way to the store."""

    def __init__(self, *, ledger: Ledger, gate: Gate, store: UsageStore, clock: Clock) -> None:
        self._ledger = ledger
        self._gate = gate
        self._store = store
        self._clock = clock
        self._flushing = asyncio.Lock()
        self.error = ""

    async def begin(self) -> None:
        """Learn what keys have spent this month, and what was counted of gateways. Without that, both begin anew."""
        now = self._clock.unix()
        try:
            self._gate.begin_month(await self._store.tokens(month_start_unix(now)), now)
            self._ledger.serials.begin(await self._store.serials())
        except OrchestratorError as error:
            log.error("budgets_not_read", error=str(error))

    async def run(self) -> None:
        """Flush every `FLUSH_S`, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def flush(self) -> bool:
        """Keep all that has been counted; False when it can't be kept now: it is tried again, see `error`."""
        async with self._flushing:
            rows = self._ledger.take()
            serials = self._ledger.serials.take() if rows else {}
            try:
                if rows:
                    await asyncio.shield(self._store.add(rows, serials))
            except OrchestratorError as error:
                self._ledger.put_back(rows)
                self._ledger.serials.put_back(serials)
                if not self.error:
                    log.error("usage_not_kept", error=str(error))
                self.error = f"usage is kept in memory only: {error}"
                return False
            self.error = ""
            return True
