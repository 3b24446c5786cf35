"""Which embedders there are: the configured one, and those that older vectors may still be of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.documents.ports import Embedder
from orchestrator.errors import EmbedderUnavailable

PATIENCE_S = 15.0
"""How long documents wait, all in all, for an embedder that fetches its model; then they are found by words first."""


class Embedders:
    """The `current` one makes new vectors; `others` answer queries to stores whose vectors are still theirs."""

    def __init__(
        self,
        current: Embedder | None,
        others: Sequence[Embedder] = (),
        *,
        missing: str = "",
        make: Callable[[str], Embedder | None] = lambda name: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`missing`: why there is no current one, though one was wanted. `make` gives one that is neither, by name."""
        self.current = current
        self.missing = missing
        """Why there are no vectors now, and what to do; empty: there are, or none are wanted."""
        self.tokenizer: Path | None = None
        """The current one's, if it has one and it is there."""
        self._by_name = {one.name: one for one in (*others, *((current,) if current else ()))}
        self._make = make
        self._patience_s = patience_s
        self._patient_until: float | None = None

    @property
    def name(self) -> str:
        """Of the current one; empty: there is none, and searches are by words only."""
        return self.current.name if self.current else ""

    async def prepare(self) -> None:
        """Have the current one get what it needs, which may take minutes; see `ports.Embedder.prepare`."""
        if self.current is None:
            return
        try:
            self.tokenizer = await self.current.prepare()
        except EmbedderUnavailable as error:
            self.missing = str(error)
            raise
        self.missing = ""

    async def prepared(self) -> bool:
        """Whether the current one has what it needs; waits for it as long as there is patience."""
        if self.current is None:
            return False
        if self._patient_until is None:
            self._patient_until = asyncio.get_running_loop().time() + self._patience_s
        try:
            async with asyncio.timeout_at(self._patient_until):
                await self.prepare()
        except EmbedderUnavailable:
            return False
        except TimeoutError:
            self.missing = "the embedding model is still being fetched"
            return False
        return True

    def named(self, name: str) -> Embedder | None:
        """The one whose vectors bear this name."""
        if name not in self._by_name and (made := self._make(name)) is not None:
            self._by_name[name] = made
        return self._by_name.get(name)

    async def aclose(self) -> None:
        """Let go of them all."""
        await asyncio.gather(*(one.aclose() for one in self._by_name.values()))
