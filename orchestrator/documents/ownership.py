"""One orchestrator on an object store: a mark in the store that its owner renews.

A second one would keep a catalogue of its own, and the two would undo each other's changes. A mark that stays the same
for `STALE_S`, by the clock of who looks at it, is of an owner that is gone: machines' clocks are not compared (so does
Kubernetes: k8s.io/client-go, ``tools/leaderelection/leaderelection.go``). An owner that was stopped for longer than
that, and goes on, finds another's mark within `CHECK_S`; what it acknowledges until then can be lost.

Each mark has a turn, which the owner's catalogue notes first: so a catalogue that is older than the mark, as one from a
backup is, is known to be behind.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from enum import Enum

import msgspec

from orchestrator.documents.keys import OWNER
from orchestrator.documents.ports import ObjectStore
from orchestrator.errors import NotFound, OrchestratorError

CHECK_S = 5.0
"""How often an owner looks at its mark."""
RENEW_S = 15.0
"""How often it changes it."""
STALE_S = 60.0
MARK_BYTES_MAX = 4096


class Owned(OrchestratorError):
    """The object store is another orchestrator's."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in the store."""

    instance: str
    """Of the data folder; see `instance_lock.instance_id`."""
    boot: str
    """Of the process."""
    host: str
    process: int
    turn: int = 0
    """Grows with every mark, whoever's it is."""
    whole: bool = False
    """Whether the owner's catalogue has all that the store has on record."""
    left: bool = False
    """Its owner has ended."""


class Standing(Enum):
    """How a data folder stands to an object store."""

    OURS = "ours"
    """Or nobody's: the catalogue here has all that is on record."""
    BEHIND = "behind"
    """Free to take, and the catalogue here may lack what another owner recorded."""
    TAKEN = "taken"
    """Another orchestrator may be at work on it."""


class Ownership:
    """This process's claim. Its methods raise `errors.ObjectsUnavailable`, and none blocks."""

    def __init__(
        self,
        objects: ObjectStore,
        *,
        instance: str,
        monotonic: Callable[[], float],
        note: Callable[[int], Awaitable[None]],
    ) -> None:
        """`note` keeps a turn in the catalogue; it may raise what the catalogue does."""
        self._objects = objects
        self._note = note
        self._now = monotonic
        self._mark = Mark(instance=instance, boot=secrets.token_hex(8), host=socket.gethostname(), process=os.getpid())
        self._renewed_at = -math.inf
        self._held = False
        self._before = ""
        """The boot of the process that this one follows on the same data folder."""
        self._seen: Mark | None = None
        self._seen_at = 0.0

    async def standing(self, turn: int) -> Standing:
        """How it stands now; changes nothing. `turn`: the last that the catalogue has noted, or 0."""
        return self._standing(await self._found(), turn)

    async def claim(self, turn: int) -> bool:
        """Take the store; whether the catalogue here may be behind, see `Standing`. `turn`: as for `standing`.

        One that another has is taken over once that has not renewed its mark for `STALE_S`; until then this raises
        `Owned`, and is called again.
        """
        found = await self._found()
        standing = self._standing(found, turn)
        if found is not None and standing is Standing.TAKEN:
            self._wait_for(found)
        self._mark = msgspec.structs.replace(self._mark, turn=max(turn, found.turn if found else 0))
        if found is not None and standing is Standing.OURS:  # `keep` renews it: a full disk does not keep from reading
            self._before, self._mark = found.boot, msgspec.structs.replace(self._mark, whole=True)
        else:
            await self._put(whole=standing is Standing.OURS)
        self._held = True
        return standing is not Standing.OURS

    async def caught_up(self) -> None:
        """The catalogue has all that is on record."""
        if not self._mark.whole:
            await self._put(whole=True)

    async def keep(self) -> None:
        """Renew the mark when it is time to. Raises `Owned` when another has taken the store."""
        found = await self._found()
        if found is not None and found.boot not in (self._mark.boot, self._before):
            self._held = False
            raise Owned(f"the object store was taken by {_who(found)}; this one has left it, until it is started anew")
        if found is None or self._now() - self._renewed_at >= RENEW_S:
            await self._put(whole=self._mark.whole)

    async def leave(self) -> None:
        """The service ends: the next owner need not wait."""
        if self._held:
            self._held = False
            await self._put(whole=self._mark.whole, left=True)

    def _standing(self, found: Mark | None, turn: int) -> Standing:
        if found is None:
            return Standing.OURS
        if found.instance == self._mark.instance:
            return Standing.OURS if found.whole and turn >= found.turn else Standing.BEHIND
        return Standing.BEHIND if found.left else Standing.TAKEN

    def _wait_for(self, found: Mark) -> None:
        if found != self._seen:
            self._seen, self._seen_at = found, self._now()
        rest_s = STALE_S - (self._now() - self._seen_at)
        if rest_s > 0:
            raise Owned(
                f"the object store is in use by {_who(found)}; give this one another storage.url, or stop that one"
                f" (if it is gone, this one takes over in {rest_s:.0f} s)"
            )

    async def _found(self) -> Mark | None:
        try:
            data = await self._objects.read_bytes(OWNER, bytes_max=MARK_BYTES_MAX)
        except NotFound:
            return None
        try:
            return msgspec.json.decode(data, type=Mark)
        except msgspec.MsgspecError:  # nobody can tell whose; it is waited for, as another's is
            return Mark(instance="", boot=hashlib.sha256(data).hexdigest(), host="an unknown host", process=0)

    async def _put(self, *, whole: bool, left: bool = False) -> None:
        self._mark = msgspec.structs.replace(self._mark, turn=self._mark.turn + 1, whole=whole, left=left)
        self._renewed_at = self._now()
        await self._note(self._mark.turn)
        await self._objects.put_bytes(OWNER, msgspec.json.encode(self._mark), content_type="application/json")


def _who(mark: Mark) -> str:
    return f"another orchestrator (process {mark.process} on {mark.host})"
