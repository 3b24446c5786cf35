"""Doctor's look at stored documents: catalogue, object store and indexes against each other, and what mends them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.finding import Finding, Level
from orchestrator.cli.remote import size
from orchestrator.documents.keys import RECORDS, SERIALS
from orchestrator.documents.ownership import Ownership, Standing
from orchestrator.errors import ConfigError, ObjectsUnavailable, OrchestratorError
from orchestrator.instance_lock import InstanceLock, holder_pid, instance_id, known_instance
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.documents.ports import ObjectStore
    from storage.audit import ContentFound, Pile, RecordsFound, Step
    from storage.catalog import Catalog

REPAIR = "`orchestrator doctor --repair`"
CUT_OFF_S = 3600
"""Half an object that is older than this, with no service running, is nobody's."""


def check_documents(settings: Settings, *, repair: bool, quiet: bool) -> Iterator[Finding]:
    """Compare everything; with `repair`, mend it. Blocks. Needs the data folder to itself, and says so if it is not."""
    from orchestrator.library import configured_objects

    data = settings.server.data_dir
    if settings.storage.url.startswith("file://") and not data.exists():
        yield Finding(level=Level.OK, what="no documents are stored yet")
        return
    try:
        objects = configured_objects(settings, data)
    except ConfigError as error:
        yield Finding(level=Level.FAIL, what="the object store can't be used", remedy=str(error))
        return
    try:
        lock = InstanceLock(data)
    except ConfigError:
        what = f"documents were not compared: an orchestrator (process {holder_pid(data)}) is at work on {data}"
        remedy = f"stop it, then run {REPAIR if repair else '`orchestrator doctor`'} again"
        yield Finding(level=Level.FAIL if repair else Level.WARN, what=what, remedy=remedy)
        return
    try:
        with _progress(quiet=quiet) as step:
            found = asyncio.run(_examined(objects, data, repair=repair, step=step))
        yield from found
    finally:
        lock.release()


async def _examined(objects: ObjectStore, data: Path, *, repair: bool, step: Step) -> list[Finding]:
    """What was found until the end, or until something broke off."""
    found: list[Finding] = []
    try:
        async for finding in _compared(objects, data, repair=repair, step=step):
            found.append(finding)
    except OrchestratorError as error:
        found.append(Finding(level=Level.FAIL, what="the look at documents broke off", remedy=str(error)))
    finally:
        await objects.aclose()
    return found


async def _compared(objects: ObjectStore, data: Path, *, repair: bool, step: Step) -> AsyncIterator[Finding]:
    from storage.audit import catalog_fault
    from storage.catalog import Catalog
    from storage.shelf import DuckShelf

    try:
        await objects.check()
        yield Finding(level=Level.OK, what="the object store can be written and read")
    except ObjectsUnavailable as error:
        yield Finding(level=Level.FAIL, what="the object store can't be used", remedy=str(error))
        return
    instance = instance_id(data) if repair else known_instance(data)
    if (
        await Ownership(objects, instance=instance, monotonic=time.monotonic, note=_nowhere).standing(0)
        is Standing.TAKEN
    ):
        yield _taken(repair=repair)
        return
    path = data / "catalog.duckdb"
    recorded = await _has_records(objects)
    if not path.exists() and not recorded:
        yield Finding(level=Level.OK, what="no documents are stored yet")
        return
    fault = await asyncio.to_thread(catalog_fault, path) if path.exists() else "it is gone"
    if fault and not repair:
        yield _unreadable(fault)
        return
    catalog = Catalog(path)
    try:
        shelf = DuckShelf(catalog)
        ownership = Ownership(objects, instance=instance, monotonic=time.monotonic, note=shelf.put_turn)
        turn = 0 if catalog.error else await shelf.turn()
        behind = await ownership.standing(turn) is Standing.BEHIND
        if repair and not catalog.error:
            await ownership.claim(turn)
        doctor = _Doctor(objects, catalog, data, repair=repair, step=step)
        async for finding in doctor.findings(recorded=recorded, behind=behind):
            yield finding
        if repair and not catalog.error:
            await ownership.caught_up()
            await ownership.leave()
    finally:
        await asyncio.to_thread(catalog.close)


class _Doctor:
    """The comparisons of one run, in an order in which each may trust what the one before has mended."""

    def __init__(self, objects: ObjectStore, catalog: Catalog, data: Path, *, repair: bool, step: Step) -> None:
        from storage.audit import Audit
        from storage.records import RecordedShelf

        self._objects = objects
        self._catalog = catalog
        self._shelf = RecordedShelf(catalog, objects)
        self._data = data
        self._repair = repair
        self._now_unix = time.time()
        self._audit = Audit(catalog=catalog, objects=objects, now_unix=self._now_unix, step=step)

    async def findings(self, *, recorded: bool, behind: bool) -> AsyncIterator[Finding]:
        """All of them. `recorded`: there are records to fill a lost catalogue from. `behind`: it may lack some."""
        from storage.records import rebuild

        fresh = await self._shelf.fresh()
        if self._catalog.error:
            yield _unreadable(self._catalog.error)
            return
        if (fresh or behind) and recorded:
            if not self._repair:
                why = "it was begun anew" if fresh else "it is older than what the object store has on record"
                yield _unreadable(f"{why}, and the service has not filled it yet")
                return
            rebuilt = await rebuild(self._objects, self._shelf)
            what = f"mended: the catalogue was filled from the records, facts: {sum(rebuilt.counts.values())}"
            yield Finding(level=Level.OK, what=what)
        for part in (self._records_and_content, self._passages, self._indexes, self._leftovers):
            async for finding in part():
                yield finding

    async def _records_and_content(self) -> AsyncIterator[Finding]:
        from storage.mending import clear, mend_records, settle

        if self._repair:
            await settle(self._shelf)
        records = await self._audit.records()
        for finding in self._of_records(records):
            yield finding
        if self._repair and (records.differing or records.unknown):
            await mend_records(self._objects, self._shelf, records)
            records = await self._audit.records()
        content = await self._audit.content(records)
        for finding in _of_content(content):
            yield finding
        if content.garbage.keys:
            if self._repair:
                await clear(self._objects, content.garbage)
            yield self._of_garbage(content.garbage, "objects of no file")

    async def _passages(self) -> AsyncIterator[Finding]:
        from storage.mending import clear, read_anew

        derived = await self._audit.derived()
        yield Finding(level=Level.OK, what=f"files of vector stores that were read: {derived.read}")
        if derived.unread:
            if self._repair:
                await read_anew(self._shelf, derived.unread)
            ids = tuple(f"{file.file} in {file.store}" for file in derived.unread)
            yield self._mendable(f"files of which what was read is gone: {len(ids)}", "has them read again", ids)
        if derived.garbage.keys:
            if self._repair:
                await clear(self._objects, derived.garbage)
            yield self._of_garbage(derived.garbage, "objects of what was read of no file")

    async def _indexes(self) -> AsyncIterator[Finding]:
        from storage.audit import stray_indexes
        from storage.mending import mend_indexes
        from storage.shelves import DiskShelves

        shelves = await asyncio.to_thread(DiskShelves, self._data / "indexes", 1)
        found = await self._audit.indexes(shelves)
        lacking = tuple(one.store.id for one in found if one.lacking)
        stray = tuple(one.store.id for one in found if one.stray)
        lonely = stray_indexes(self._data / "indexes", {store.id for store in await self._shelf.all_stores()})
        if self._repair:
            await mend_indexes(shelves, found)
            for store in lonely:
                await asyncio.to_thread(shelves.discard, store)
        await asyncio.to_thread(shelves.close)
        if lacking:
            what = f"files that are not in their stores' indexes: {sum(one.lacking for one in found)}"
            yield Finding(level=Level.WARN, what=what, remedy="the service puts them in when it starts", ids=lacking)
        if stray:
            yield self._mendable("indexes hold files that their stores don't", "takes them out", stray)
        if lonely:
            yield self._mendable("there are indexes of no store", "removes them", lonely)
        if not (lacking or stray or lonely):
            yield Finding(level=Level.OK, what="every index holds what its store does")

    async def _leftovers(self) -> AsyncIterator[Finding]:
        from storage.mending import end_uploads

        overdue = await self._shelf.expired_uploads(int(self._now_unix), 1)
        left = [path for name in ("spool", "reading") for path in _inside(self._data / name)]
        if overdue:
            if self._repair:
                await end_uploads(self._shelf, int(self._now_unix))
            yield self._mendable("there are uploads past their time", "ends them, and so does the service")
        if left:
            if self._repair:
                await asyncio.to_thread(_remove, left)
            yield self._mendable(f"files that a dead process left: {len(left)}", "removes them")
        swept = await self._objects.sweep(older_than_s=CUT_OFF_S) if self._repair else 0
        if swept:
            yield Finding(level=Level.OK, what=f"mended: objects that were cut off halfway: {swept}")

    def _of_records(self, found: RecordsFound) -> Iterator[Finding]:
        if found.differing:
            ids = tuple(f"{name.kind} {name.id}" for name in found.differing)
            yield self._mendable(
                f"facts of the catalogue that are not on record: {len(ids)}", "writes their records", ids
            )
        if found.unknown:
            what = f"facts on record that the catalogue has lost: {len(found.unknown)}"
            yield self._mendable(what, "fills it from the records", found.unknown, level=Level.FAIL)
        if found.unreadable:
            what = f"records that can't be read, of facts that the catalogue does not have: {len(found.unreadable)}"
            remedy = "restore these objects from a copy of the object store, or remove them"
            yield Finding(level=Level.FAIL, what=what, remedy=remedy, ids=found.unreadable)
        if not (found.differing or found.unknown or found.unreadable):
            yield Finding(level=Level.OK, what=f"facts of the catalogue, all on record: {found.facts}")

    def _of_garbage(self, pile: Pile, what: str) -> Finding:
        return self._mendable(f"{what}: {len(pile.keys)}, {size(pile.bytes)}", "removes them", pile.keys)

    def _mendable(self, what: str, how: str, ids: tuple[str, ...] = (), level: Level = Level.WARN) -> Finding:
        if self._repair:
            return Finding(level=Level.OK, what=f"mended: {what}", ids=ids)
        return Finding(level=level, what=what, remedy=f"{REPAIR} {how}", ids=ids)


def _of_content(found: ContentFound) -> Iterator[Finding]:
    copy = "restore the objects from a copy of the object store, or remove the files by `orchestrator files rm`"
    if found.lost:
        what = f"files whose content is lost: {len(found.lost)}"
        yield Finding(level=Level.FAIL, what=what, remedy=copy, ids=found.lost)
    if found.resized:
        what = f"files whose content has another size than it should: {len(found.resized)}"
        yield Finding(level=Level.FAIL, what=what, remedy=copy, ids=found.resized)
    if found.lost_uploads:
        what = f"uploads that have lost a part: {len(found.lost_uploads)}"
        yield Finding(level=Level.FAIL, what=what, remedy="cancel them and send them again", ids=found.lost_uploads)
    if not (found.lost or found.resized or found.lost_uploads):
        yield Finding(level=Level.OK, what=f"files, all with their content: {found.files}, {size(found.bytes)}")


async def _nowhere(turn: int) -> None:
    """Keeps no turn: for who only looks."""


def _taken(*, repair: bool) -> Finding:
    what = "the object store is in use by an orchestrator with another data folder"
    again = REPAIR if repair else "`orchestrator doctor`"
    remedy = f"run {again} there; or, if that one is gone, start the service here, which takes over after a minute"
    return Finding(level=Level.FAIL, what=what, remedy=remedy)


def _unreadable(fault: str) -> Finding:
    remedy = f"{REPAIR} sets it aside and fills a new one from the records, and so does the service when it starts"
    return Finding(level=Level.FAIL, what=f"the catalogue can't be used: {fault}", remedy=remedy)


async def _has_records(objects: ObjectStore) -> bool:
    found = objects.list(RECORDS)
    async for one in found:
        if one.key != SERIALS:
            return True
    return False


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Step]:
    """What is looked at, on a terminal."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        yield lambda what, count: None
        return
    with console.status("documents") as status:
        yield lambda what, count: status.update(f"{count:,} {what}")
