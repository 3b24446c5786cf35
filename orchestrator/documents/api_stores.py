"""The Vector Stores API: thin handlers. Shapes: https://platform.openai.com/docs/api-reference/vector-stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from orchestrator.access.key import Key
from orchestrator.documents import store_fields as fields
from orchestrator.documents import store_views as views
from orchestrator.documents.checks import bad, known
from orchestrator.documents.endpoints import READ, WRITE, Endpoint, json_body, page_of
from orchestrator.documents.model import FileBatch, FileCounts, IngestStatus, Passages, StoreFile, VectorStore
from orchestrator.documents.search import Search
from orchestrator.documents.stores import Stores
from orchestrator.errors import ApiError
from orchestrator.json_response import Json

LIMIT_DEFAULT = 20
LIMIT_MAX = 100
CHANGE = ("name", "metadata", "expires_after")
ATTACH = ("file_id", "attributes", "chunking_strategy")
BATCH = ("file_ids", "files", "attributes", "chunking_strategy")
SEARCH = ("query", "filters", "max_num_results", "ranking_options", "rewrite_query", "include")

POLL = {"openai-poll-after-ms": "250"}
"""How soon OpenAI's SDK asks again; without it, a second."""

STORE = "/v1/vector_stores/{store}"
Content = Callable[[StoreFile], Awaitable[Passages]]


class StoresApi:
    """Handlers for stores, their files and batches, and for searches."""

    def __init__(
        self,
        *,
        stores: Stores,
        search: Search,
        content: Content,
        fraction: Callable[[int], float | None],
        unix: Callable[[], float],
    ) -> None:
        """`content` gives what was read of a completed file, `fraction` says how far an entry's reading is."""
        self._stores = stores
        self._search = search
        self._content = content
        self._fraction = fraction
        self._unix = unix

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All of them."""
        return (
            Endpoint("/v1/vector_stores", "POST", WRITE, self._create),
            Endpoint("/v1/vector_stores", "GET", READ, self._list),
            Endpoint(STORE, "GET", READ, self._get),
            Endpoint(STORE, "POST", WRITE, self._change),
            Endpoint(STORE, "DELETE", WRITE, self._remove),
            Endpoint(f"{STORE}/search", "POST", READ, self._find),
            Endpoint(f"{STORE}/files", "POST", WRITE, self._attach),
            Endpoint(f"{STORE}/files", "GET", READ, self._files),
            Endpoint(f"{STORE}/files/{{file}}", "GET", READ, self._file),
            Endpoint(f"{STORE}/files/{{file}}", "POST", WRITE, self._set_attributes),
            Endpoint(f"{STORE}/files/{{file}}", "DELETE", WRITE, self._detach),
            Endpoint(f"{STORE}/files/{{file}}/content", "GET", READ, self._show_content),
            Endpoint(f"{STORE}/file_batches", "POST", WRITE, self._attach_batch),
            Endpoint(f"{STORE}/file_batches/{{batch}}", "GET", READ, self._batch),
            Endpoint(f"{STORE}/file_batches/{{batch}}/cancel", "POST", WRITE, self._cancel_batch),
            Endpoint(f"{STORE}/file_batches/{{batch}}/files", "GET", READ, self._files),
        )

    # --- stores ---

    async def _create(self, request: Request, key: Key) -> Response:
        new = fields.new_store(await json_body(request))
        return await self._store(await self._stores.create(key.tenant, new))

    async def _list(self, request: Request, key: Key) -> Response:
        found, more = await self._stores.listing(key.tenant, page_of(request, LIMIT_DEFAULT, LIMIT_MAX))
        counts = await self._stores.summaries(found)
        data = [self._store_view(store, counts) for store in found]
        return _listing(data, more)

    async def _get(self, request: Request, key: Key) -> Response:
        return await self._store(await self._stores.get(key.tenant, request.path_params["store"]))

    async def _change(self, request: Request, key: Key) -> Response:
        body = await json_body(request)
        known(body, CHANGE)
        name = fields.text(body, "name", fields.NAME_CHARS_MAX)
        metadata, days = fields.metadata(body), fields.expires_after_days(body)

        def change(store: VectorStore) -> VectorStore:
            return replace(
                store,
                name=store.name if name is None else name,
                metadata=metadata if "metadata" in body else store.metadata,
                expires_after_days=days if "expires_after" in body else store.expires_after_days,
            )

        return await self._store(await self._stores.change(key.tenant, request.path_params["store"], change))

    async def _remove(self, request: Request, key: Key) -> Response:
        id = request.path_params["store"]
        await self._stores.remove(key.tenant, id)
        return Json({"id": id, "object": "vector_store.deleted", "deleted": True})

    async def _find(self, request: Request, key: Key) -> Response:
        store = await self._stores.get(key.tenant, request.path_params["store"])  # an unknown id says so first
        body = await json_body(request)
        known(body, SEARCH)
        asked = fields.asked(body)
        store = await self._stores.live(key.tenant, store.id)
        return Json(views.found_view(await self._search.search(store, asked), ranks=asked.ranks))

    # --- files ---

    async def _attach(self, request: Request, key: Key) -> Response:
        body = await json_body(request)
        known(body, ATTACH)
        wanted = fields.wanted_file(body)
        return self._file_answer(await self._stores.attach(key.tenant, request.path_params["store"], wanted))

    async def _files(self, request: Request, key: Key) -> Response:
        found, more = await self._stores.files(
            key.tenant,
            request.path_params["store"],
            page_of(request, LIMIT_DEFAULT, LIMIT_MAX),
            status=_status(request),
            batch=request.path_params.get("batch"),
        )
        return _listing([views.file_view(file, self._fraction(file.entry)) for file in found], more)

    async def _file(self, request: Request, key: Key) -> Response:
        return self._file_answer(await self._member(request, key))

    async def _set_attributes(self, request: Request, key: Key) -> Response:
        member = await self._member(request, key)
        body = await json_body(request)
        known(body, ("attributes",))
        given = fields.attributes(body)
        return self._file_answer(await self._stores.set_attributes(key.tenant, member.store, member.file, given))

    async def _detach(self, request: Request, key: Key) -> Response:
        member = await self._member(request, key)
        await self._stores.detach(key.tenant, member.store, member.file)
        return Json({"id": member.file, "object": "vector_store.file.deleted", "deleted": True})

    async def _show_content(self, request: Request, key: Key) -> Response:
        member = await self._member(request, key)
        if member.status is not IngestStatus.COMPLETED:
            raise ApiError(400, f"the file is not read: it is {member.status}", code="file_not_read", param="file_id")
        return Json(views.content_view((await self._content(member)).chunks))

    # --- batches ---

    async def _attach_batch(self, request: Request, key: Key) -> Response:
        body = await json_body(request)
        known(body, BATCH)
        wanted = fields.wanted_files(body)
        return await self._batch_answer(
            await self._stores.attach_batch(key.tenant, request.path_params["store"], wanted)
        )

    async def _batch(self, request: Request, key: Key) -> Response:
        store, id = request.path_params["store"], request.path_params["batch"]
        return await self._batch_answer(await self._stores.batch(key.tenant, store, id))

    async def _cancel_batch(self, request: Request, key: Key) -> Response:
        store, id = request.path_params["store"], request.path_params["batch"]
        return await self._batch_answer(await self._stores.cancel_batch(key.tenant, store, id))

    # --- answers ---

    async def _store(self, store: VectorStore) -> Response:
        return Json(self._store_view(store, await self._stores.summaries([store])))

    def _store_view(self, store: VectorStore, counts: Mapping[str, tuple[FileCounts, int]]) -> dict[str, Any]:
        files, usage_bytes = counts.get(store.id, (FileCounts(), 0))
        return views.store_view(store, files, usage_bytes, int(self._unix()))

    async def _member(self, request: Request, key: Key) -> StoreFile:
        return await self._stores.file(key.tenant, request.path_params["store"], request.path_params["file"])

    def _file_answer(self, file: StoreFile) -> Response:
        headers = POLL if file.status is IngestStatus.IN_PROGRESS else None
        return Json(views.file_view(file, self._fraction(file.entry)), headers=headers)

    async def _batch_answer(self, batch: FileBatch) -> Response:
        counts = await self._stores.batch_counts(batch)
        return Json(views.batch_view(batch, counts), headers=POLL if counts.in_progress else None)


def _status(request: Request) -> IngestStatus | None:
    given = request.query_params.get("filter")
    if given is None:
        return None
    if given not in set(IngestStatus):
        raise bad("filter", f"filter is one of {', '.join(IngestStatus)}")
    return IngestStatus(given)


def _listing(data: list[dict[str, Any]], more: bool) -> Response:
    ids = [one["id"] for one in data] or [None]
    return Json({"object": "list", "data": data, "first_id": ids[0], "last_id": ids[-1], "has_more": more})
