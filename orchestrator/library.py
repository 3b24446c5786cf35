"""Where documents are wired: files, uploads and vector stores over the object store, the catalogue and the indexes.

Part of the wiring, see `app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import structlog
from starlette.routing import Route

from orchestrator.access.auth import KeyRing
from orchestrator.clients import Clients
from orchestrator.documents.api_files import FilesApi
from orchestrator.documents.api_stores import StoresApi
from orchestrator.documents.api_uploads import UploadsApi
from orchestrator.documents.asking import ModelReranker, ModelRewriter
from orchestrator.documents.availability import Availability
from orchestrator.documents.endpoints import Endpoint, routes
from orchestrator.documents.files import Files
from orchestrator.documents.garbage import Garbage
from orchestrator.documents.gates import Gates
from orchestrator.documents.ingest import Ingest
from orchestrator.documents.limits import body_limit
from orchestrator.documents.metrics import DocumentGauges
from orchestrator.documents.ownership import CHECK_S as OWNER_CHECK_S
from orchestrator.documents.ownership import Owned, Ownership
from orchestrator.documents.ports import ObjectStore
from orchestrator.documents.reading import Reading
from orchestrator.documents.reembed import Reembed
from orchestrator.documents.roster import Roster
from orchestrator.documents.search import Search
from orchestrator.documents.spool import Spool
from orchestrator.documents.stores import Stores
from orchestrator.documents.uploads import Uploads
from orchestrator.embedder_choice import EmbedderChoice
from orchestrator.errors import ObjectsUnavailable, OrchestratorError
from orchestrator.ports import Clock
from orchestrator.settings import Settings
from storage.catalog import Catalog, CatalogError
from storage.extract.reader import LimitedReader
from storage.objects import open_objects
from storage.records import RecordedShelf, rebuild
from storage.shelves import DiskShelves

SWEEP_S = 5.0
EXPIRE_ROUNDS = 12
"""Expired stores are looked for once a minute: their time is counted in days."""
CHECK_S = 5.0
"""How often the object store is asked whether it is there."""
RESTORE_RETRY_S = 5.0
BEGUN_S = 15.0
"""The longest that the service waits with its first request for a catalogue that is rebuilt."""
FREE_BYTES_MIN = 2**28
"""Of the disk, that uploads leave free for the catalogue and the indexes."""
JOBS_PER_READER = 8
"""Files under way for each that is being read: the others wait for their vectors, in rounds with others'."""

log = structlog.get_logger()


class Library:
    """Documents, as the service runs them."""

    def __init__(
        self, *, settings: Settings, data: Path, instance: str, catalog: Catalog, keys: KeyRing, clock: Clock
    ) -> None:
        """`instance` is the data folder's, see `instance_lock.instance_id`."""
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._objects = configured_objects(settings, data)
        self._catalog = catalog
        self._clients = Clients(keys)
        shelf = RecordedShelf(catalog, self._objects)
        self._shelf = shelf
        self._choice = EmbedderChoice(settings, self._clients)
        self._embedders = self._choice.embedders
        self._shelves = DiskShelves(data / "indexes")
        roster, gates = Roster(shelf), Gates()
        reading = self._reading(shelf, data)
        self._ingest = Ingest(
            shelf=shelf,
            shelves=self._shelves,
            roster=roster,
            reading=reading,
            gates=gates,
            monotonic=clock.monotonic,
            jobs_max=settings.ingest.parallel_max * JOBS_PER_READER,
        )
        self._reembed = Reembed(
            shelf=shelf,
            shelves=self._shelves,
            reading=reading,
            gates=gates,
            monotonic=clock.monotonic,
            changed=self._ingest.check,
        )
        self._stores = Stores(shelf=shelf, shelves=self._shelves, roster=roster, unix=clock.unix, jobs=self._ingest)
        search = self._search(roster)
        self._spool = Spool(data / "spool", files_max=settings.storage.uploads_max, free_bytes_min=FREE_BYTES_MIN)
        files = Files(shelf=shelf, objects=self._objects, unix=clock.unix, left=self._stores.left)
        uploads = Uploads(
            shelf=shelf,
            objects=self._objects,
            spool=self._spool,
            files=files,
            unix=clock.unix,
            bytes_max=settings.storage.file_bytes_max,
        )
        self._garbage = Garbage(shelf=shelf, objects=self._objects, files=files, uploads=uploads, gates=gates)
        self._apis = (
            FilesApi(files=files, spool=self._spool, file_bytes_max=settings.storage.file_bytes_max),
            UploadsApi(uploads=uploads, spool=self._spool, upload_bytes_max=settings.storage.file_bytes_max),
            StoresApi(
                stores=self._stores,
                search=search,
                content=reading.content,
                fraction=self._ingest.fraction,
                unix=clock.unix,
            ),
        )
        self._availability = Availability()
        self._ownership = Ownership(self._objects, instance=instance, monotonic=clock.monotonic, note=shelf.put_turn)

    def routes(self) -> list[Route]:
        """All of them, each with its scopes."""
        return routes(self.endpoints(), self._keys)

    def endpoints(self) -> list[Endpoint]:
        """The same, before they are guarded by keys."""
        return [
            replace(one, handler=self._availability.guard(one.handler)) for api in self._apis for one in api.endpoints()
        ]

    def gauges(self) -> DocumentGauges:
        """What Prometheus is told."""
        return DocumentGauges(lambda: self._ingest.progress, lambda: self.ready)

    def body_limit(self, target: bytes) -> int:
        """The most bytes of a request's body, by its target; see `head.BodyLimit`."""
        return body_limit(
            target,
            file_bytes_max=self._settings.storage.file_bytes_max,
            otherwise=self._settings.server.body_bytes_max,
        )

    @property
    def ready(self) -> bool:
        """Whether files can be stored and found."""
        return not self._availability.fault

    def listening(self, url: str) -> None:
        """The service can be asked at `url` from now on, by itself too."""
        self._clients.listening(url)

    def checks(self) -> dict[str, tuple[bool, str]]:
        """The state of each part: whether it is well, and what is to be said."""
        progress = self._ingest.progress
        busy = f"{progress.running} documents are being read, {progress.waiting} wait"
        moves = self._reembed.moving.items()
        moving = "".join(f"; {store} moves to {self._embedders.name}, {share:.0%} done" for store, share in moves)
        cause = progress.cause or self._reembed.cause
        return {
            "documents": (self.ready, self._availability.fault),
            "ingest": (not cause, (f"{busy}: {cause}" if cause else busy) + moving),
        }

    async def begun(self) -> None:
        """Return once it is known whether documents can be reached, at most after `BEGUN_S`."""
        await self._availability.begun(BEGUN_S)

    async def run(self) -> None:
        """Work in the background until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="documents.watch")
            await self._restore()
            try:
                await self._work()
            except* Owned as lost:
                log.error("documents_lost", cause=str(lost.exceptions[0]))
                self._availability.broken(str(lost.exceptions[0]))

    async def _work(self) -> None:
        """Until cancelled, or the object store is another's."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep(), name="documents.owner")
            tasks.create_task(self._ingest.run(), name="documents.ingest")
            tasks.create_task(self._reembed.run(), name="documents.reembed")
            tasks.create_task(self._sweep(), name="documents.sweep")

    async def aclose(self) -> None:
        """Let go of what is held. After `run` has ended."""
        await self._embedders.aclose()
        await self._clients.aclose()
        await asyncio.to_thread(self._shelves.close)
        await self._shelf.aclose()
        with contextlib.suppress(OrchestratorError):  # then the next owner waits for a while
            await self._ownership.leave()
        await self._objects.aclose()

    # --- in the background ---

    async def _restore(self) -> None:
        """Where the catalogue was begun anew, or may lack what another owner of the object store recorded, fill it
        from there; documents wait for that."""
        while True:
            try:
                fresh = await self._shelf.fresh()
                if not self._catalog.kept:  # else documents would be acknowledged, and unknown after the next start
                    raise CatalogError(f"{self._catalog.error}; mend that and start the service anew")
                behind = await self._claimed()
                if fresh or behind:
                    self._availability.rebuilding()
                    await rebuild(self._objects, self._shelf)
                await self._ownership.caught_up()
                break
            except OrchestratorError as error:
                self._availability.broken(str(error))
                log.warning("documents_not_restored", error=str(error))
                await asyncio.sleep(RESTORE_RETRY_S)
        self._availability.whole()

    async def _claimed(self) -> bool:
        """See `Ownership.claim`; in a bucket that is made if it is missing."""
        turn = await self._shelf.turn()
        try:
            return await self._ownership.claim(turn)
        except ObjectsUnavailable:
            await self._objects.check()
            return await self._ownership.claim(turn)

    async def _watch(self) -> None:
        """Ask the object store whether it is there."""
        while True:
            try:
                await self._objects.check()
                self._availability.objects("")
            except ObjectsUnavailable as error:
                self._availability.objects(str(error))
            await asyncio.sleep(CHECK_S)

    async def _keep(self) -> None:
        """Keep the object store ours. Raises `Owned`."""
        while True:
            try:
                await self._ownership.keep()
            except Owned:
                raise
            except OrchestratorError as error:
                log.info("owner_not_renewed", error=str(error))
            await asyncio.sleep(OWNER_CHECK_S)

    async def _sweep(self) -> None:
        """Clear away what nobody needs any more."""
        for round_ in itertools.count():
            self._choice.tick(self._clock.monotonic())
            try:
                await self._garbage.sweep(self._clock.unix())
                await self._shelf.mend()
                if round_ % EXPIRE_ROUNDS == 0:
                    await self._stores.expire()
            except OrchestratorError as error:
                log.info("sweep_waits", error=str(error))
            await asyncio.sleep(SWEEP_S)

    # --- parts ---

    def _reading(self, shelf: RecordedShelf, data: Path) -> Reading:
        folder = data / "reading"
        shutil.rmtree(folder, ignore_errors=True)  # copies of documents that a dead process left
        folder.mkdir(exist_ok=True)
        return Reading(
            shelf=shelf,
            objects=self._objects,
            embedders=self._embedders,
            make_extractor=self._extractor,
            folder=folder,
        )

    def _extractor(self, tokenizer: Path | None) -> LimitedReader:
        ingest = self._settings.ingest
        return LimitedReader(
            memory_bytes_max=ingest.memory_bytes_max,
            time_max_s=ingest.time_max_s,
            text_bytes_max=ingest.text_bytes_max,
            parallel_max=ingest.parallel_max,
            tokenizer=tokenizer,
        )

    def _search(self, roster: Roster) -> Search:
        chosen = self._settings.search
        return Search(
            shelves=self._shelves,
            roster=roster,
            embedders=self._embedders,
            lacking=self._ingest.lacking,
            reranker=ModelReranker(self._clients.own(), chosen.reranker) if chosen.reranker else None,
            rewriter=ModelRewriter(self._clients.own(), chosen.rewriter) if chosen.rewriter else None,
        )


def configured_objects(settings: Settings, data: Path) -> ObjectStore:
    """The object store of the configuration; the default follows the data folder. Touches nothing.

    Raises `ConfigError`.
    """
    default = type(settings.storage).model_fields["url"].default
    return open_objects(
        f"file://{data / 'objects'}" if settings.storage.url == default else settings.storage.url,
        base=Path.cwd(),
        endpoint_url=settings.storage.endpoint_url or None,
        public_endpoint_url=settings.storage.public_endpoint_url or None,
        region=settings.storage.region or None,
        environ=os.environ,
    )
