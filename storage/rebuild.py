"""Fills the catalogue from the records beside it, see `storage.record_keeper`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import structlog

from orchestrator.documents.keys import RECORDS, SERIALS
from orchestrator.documents.model import FileBatch, Part, StoreFile, Upload, UploadStatus
from orchestrator.documents.ports import ObjectStore
from orchestrator.errors import NotFound
from storage.record_form import RECORD_BYTES_MAX, decode, each
from storage.record_keeper import SERIALS_STEP
from storage.shelf import DuckShelf
from storage.shelf_facts import Fact

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebuilt:
    """What was found."""

    counts: Mapping[str, int]
    """Facts by kind."""
    problems: tuple[str, ...]
    """A sentence for each record that could not be read."""


async def rebuild(objects: ObjectStore, shelf: DuckShelf) -> Rebuilt:
    """Give the catalogue what the records tell, in place of all it holds; all or nothing. It is not `fresh` after.

    Ids and the order of creation are kept. Entries are fresh ones, above all that were ever given, so an index that
    still holds old ones can't be mistaken. What hangs on something that is gone is left out: a removal was cut off.
    Takes seconds to minutes, and memory for all records. Raises `errors.ObjectsUnavailable`.
    """
    facts: list[Fact] = []
    problems: list[str] = []

    async def read(key: str) -> None:
        try:
            facts.append(decode(key, await objects.read_bytes(key, bytes_max=RECORD_BYTES_MAX)))
        except NotFound:
            return  # removed since it was listed
        except ValueError as error:
            log.error("record_unreadable", key=key)
            problems.append(f"{key}: {error!s:.200}")

    await each(read, [found.key async for found in objects.list(RECORDS) if found.key != SERIALS])
    whole = tuple(_whole(facts))
    await shelf.refill(whole, await _above(objects, facts))
    kept = {fact.name for fact in whole}
    if stray := [fact.name for fact in facts if fact.name not in kept]:
        await shelf.doubt(stray)
    counts = Counter(fact.name.kind for fact in whole)
    if facts or problems:  # else it is the very first start
        log.info("catalog_rebuilt", **counts, problems=len(problems))
    return Rebuilt(counts=dict(counts), problems=tuple(sorted(problems)))


def _whole(facts: Sequence[Fact]) -> Iterator[Fact]:
    """Those that hang together."""
    ids = {(fact.name.kind, fact.name.tenant, fact.name.id) for fact in facts}
    pending = {fact.name.id for fact in facts if _pending(fact)}
    for fact in facts:
        value, tenant = fact.value, fact.name.tenant
        if isinstance(value, Part) and value.upload not in pending:
            continue
        if isinstance(value, FileBatch | StoreFile) and ("store", tenant, value.store) not in ids:
            continue
        if isinstance(value, StoreFile):
            if ("file", tenant, value.file) not in ids:
                continue
            if value.batch is not None and ("batch", tenant, value.batch) not in ids:
                value = replace(value, batch=None)
        yield replace(fact, value=value)


def _pending(fact: Fact) -> bool:
    return isinstance(fact.value, Upload) and fact.value.status is UploadStatus.PENDING


async def _above(objects: ObjectStore, facts: Iterable[Fact]) -> int:
    """A number that no entry or serial of old exceeds."""
    try:
        return int(msgspec.json.decode(await objects.read_bytes(SERIALS, bytes_max=RECORD_BYTES_MAX), type=int))
    except (NotFound, msgspec.MsgspecError):
        if facts:
            log.warning("serials_unknown")
    return max((fact.serial for fact in facts), default=0) + SERIALS_STEP
