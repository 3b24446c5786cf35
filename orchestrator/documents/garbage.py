"""Clears away what has ended: expired files and uploads, and objects that nothing names any more."""

from __future__ import annotations

import asyncio
import math

from orchestrator.documents.files import Files
from orchestrator.documents.gates import Gates
from orchestrator.documents.keys import DERIVED
from orchestrator.documents.ports import ObjectStore, Shelf
from orchestrator.documents.uploads import Uploads

KEYS_MAX = 500
"""Objects removed in one pass."""
PARALLEL_MAX = 8
CUT_OFF_S = 86400
"""Half an object that is older than this is nobody's any more: no upload takes so long."""
CUT_OFF_EVERY_S = 3600


class Garbage:
    """Level-triggered and restart-safe: what a pass leaves, the next one finds."""

    def __init__(self, *, shelf: Shelf, objects: ObjectStore, files: Files, uploads: Uploads, gates: Gates) -> None:
        """Whoever may name again what was made of a document passes the gate `DERIVED` meanwhile."""
        self._shelf = shelf
        self._gates = gates
        self._objects = objects
        self._files = files
        self._uploads = uploads
        self._swept_unix = -math.inf

    async def sweep(self, now_unix: float) -> int:
        """One bounded pass; how many things were cleared away. Call it every few seconds, one at a time.

        Raises `errors.ObjectsUnavailable`, or the catalogue's own error; then the next pass goes on.
        """
        now = int(now_unix)
        ended = await self._files.expire(now) + await self._uploads.expire(now)
        removed = await self._remove(but=DERIVED)
        if self._gates.free(DERIVED):  # else a job may be about to name what is garbage now: next time
            async with self._gates.closed(DERIVED):
                removed += await self._remove()
        if now_unix - self._swept_unix >= CUT_OFF_EVERY_S:
            removed += await self._objects.sweep(older_than_s=CUT_OFF_S)
            self._swept_unix = now_unix
        return ended + removed

    async def _remove(self, *, but: str = "") -> int:
        keys = await self._shelf.garbage(KEYS_MAX, but=but)
        for start in range(0, len(keys), PARALLEL_MAX):
            group = keys[start : start + PARALLEL_MAX]
            await asyncio.gather(*(self._objects.delete(key) for key in group))
            await self._shelf.cleared(group)
        return len(keys)
