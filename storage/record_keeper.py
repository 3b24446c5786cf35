"""The catalogue's facts, each beside it in the object store too: a lost or damaged catalogue is filled from them.

A change is made in this order, and whoever asked is answered after the last step:

1. The names of the facts are noted in the catalogue as doubtful, durably.
2. What is new or changed: its record is written, then the catalogue. So an acknowledged fact is in both, and when the
   object store is down the catalogue stays as it was.
   What is removed: first from the catalogue, then its record. The other way round, dying in between would leave in the
   catalogue what a later rebuild forgets; this way a rebuild brings back at most what nobody was told is gone.
3. The doubt is cleared.

A change that fails in the middle, or dies, leaves its doubt; `RecordKeeper.mend` then makes the record what the
catalogue says. `storage.records` makes the changes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from orchestrator.crash import crash_point
from orchestrator.documents.keys import SERIALS
from orchestrator.documents.ports import ObjectStore
from orchestrator.errors import OrchestratorError
from storage.record_form import each, encode
from storage.shelf import DuckShelf
from storage.shelf_facts import Fact, Name, named
from storage.shelf_tables import Value

SERIALS_STEP = 100_000
"""The object store is told a number above all serials, in steps of this."""
DOUBTS_MAX = 1000
"""Looked at in one go."""


class RecordKeeper:
    """Writes and removes records. Whoever calls it holds `Name.lock` of all names at once."""

    def __init__(self, objects: ObjectStore, shelf: DuckShelf) -> None:
        self._objects = objects
        self._shelf = shelf
        self._serials_told = 0
        self._telling = asyncio.Lock()

    @asynccontextmanager
    async def doubted(self, names: Sequence[Name]) -> AsyncIterator[Sequence[int]]:
        """For the time of a change, these are doubtful. Gives a fresh serial for each; mends after a failure."""
        serials = await self._shelf.doubt(names)
        await self._tell(serials[-1])
        try:
            yield serials
        except BaseException:
            with contextlib.suppress(OrchestratorError):  # still in doubt, and so mended later
                await self.mend(names)
            raise
        self._shelf.sure(names)

    async def write(self, values: Sequence[Value], serials: Sequence[int], tenant: str = "") -> None:
        """Write the records of values; `tenant` is that of parts."""
        await self.put(
            [Fact(named(value, tenant), value, serial) for value, serial in zip(values, serials, strict=False)]
        )

    async def put(self, facts: Sequence[Fact]) -> None:
        """Write the records of facts."""

        async def put(fact: Fact) -> None:
            await self._objects.put_bytes(fact.name.key, encode(fact), content_type="application/json")

        crash_point("record.before_put")
        await each(put, facts)
        crash_point("record.after_put")

    async def erase(self, names: Sequence[Name]) -> None:
        """Remove records."""
        crash_point("record.before_delete")
        await each(lambda name: self._objects.delete(name.key), names)
        crash_point("record.after_delete")

    async def mend(self, names: Sequence[Name]) -> None:
        """Make the records what the catalogue says."""
        facts = {name: await self._shelf.fact(name) for name in names}
        await self.put([fact for fact in facts.values() if fact])
        await self.erase([name for name, fact in facts.items() if fact is None])
        await asyncio.wrap_future(self._shelf.sure(names))

    async def _tell(self, serial: int) -> None:
        """Keep the object store's number above `serial`: a rebuild begins there."""
        if serial < self._serials_told:
            return
        async with self._telling:
            if serial >= self._serials_told:
                above = serial + SERIALS_STEP
                await self._objects.put_bytes(SERIALS, msgspec.json.encode(above), content_type="application/json")
                self._serials_told = above
