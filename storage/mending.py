"""Mends what `storage.audit` found, for a stopped service. What the catalogue names, or a record, is never deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.documents.model import IngestStatus, StoreFile, UploadStatus
from orchestrator.documents.ports import ObjectStore, Shelves
from storage.audit import IndexFound, Pile, RecordsFound
from storage.record_form import each
from storage.records import RecordedShelf, rebuild

DOUBTS_ROWS = 1000
"""Facts doubted in one change."""
UPLOADS_ROWS = 100


async def settle(shelf: RecordedShelf) -> None:
    """Mend the records that are in doubt since a change was cut off. The service does so at its start, too."""
    while await shelf.mend():
        pass


async def mend_records(objects: ObjectStore, shelf: RecordedShelf, found: RecordsFound) -> None:
    """Write the records that differ; then, if there are some of which the catalogue knows nothing, fill it from all.

    Raises `errors.ObjectsUnavailable`; what was done by then holds.
    """
    for begin in range(0, len(found.differing), DOUBTS_ROWS):
        await shelf.doubt(found.differing[begin : begin + DOUBTS_ROWS])
    await settle(shelf)
    if found.unknown:
        await rebuild(objects, shelf)


async def clear(objects: ObjectStore, garbage: Pile) -> None:
    """Remove objects that nothing names."""
    await each(objects.delete, garbage.keys)


async def read_anew(shelf: RecordedShelf, files: Sequence[StoreFile]) -> None:
    """Have the service read these files of stores once more."""
    for file in files:
        await shelf.put_store_file(
            replace(file, status=IngestStatus.IN_PROGRESS, passages="", chunks=0, usage_bytes=0, last_error=None)
        )


async def mend_indexes(shelves: Shelves, found: Sequence[IndexFound]) -> None:
    """Take out of each index what its store does not have."""
    for one in found:
        index = await asyncio.to_thread(shelves.open, one.store.id, one.store.embedder, one.store.dimension)
        await asyncio.to_thread(index.remove, one.stray)


async def end_uploads(shelf: RecordedShelf, now_unix: int) -> int:
    """End the uploads whose time is over; how many. Their parts are garbage then, which the service clears away."""
    count = 0
    while expired := await shelf.expired_uploads(now_unix, UPLOADS_ROWS):
        for upload in expired:
            await shelf.end_upload(replace(upload, status=UploadStatus.EXPIRED))
        count += len(expired)
    return count
