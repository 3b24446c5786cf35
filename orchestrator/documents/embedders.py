"""Which embedders there are: the configured one, and those that older vectors may still be of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from orchestrator.documents.ports import Embedder


class Embedders:
    """The `current` one makes new vectors; `others` answer queries to stores whose vectors are still theirs."""

    def __init__(self, current: Embedder | None, others: Sequence[Embedder] = (), *, missing: str = "") -> None:
        """`missing`: why there is no current one, though one was wanted."""
        self.current = current
        self.missing = missing
        self._by_name = {one.name: one for one in (*others, *((current,) if current else ()))}

    @property
    def name(self) -> str:
        """Of the current one; empty: there is none, and searches are by words only."""
        return self.current.name if self.current else ""

    async def prepare(self) -> Path | None:
        """The current one's tokenizer, once it has what it needs; see `ports.Embedder.prepare`."""
        return await self.current.prepare() if self.current else None

    def named(self, name: str) -> Embedder | None:
        """The one whose vectors bear this name."""
        return self._by_name.get(name)

    async def aclose(self) -> None:
        """Let go of them all."""
        await asyncio.gather(*(one.aclose() for one in self._by_name.values()))
