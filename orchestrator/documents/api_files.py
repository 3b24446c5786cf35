"""The Files API: thin handlers. Shapes: https://platform.openai.com/docs/api-reference/files."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from orchestrator.access.key import Key
from orchestrator.documents import views
from orchestrator.documents.checks import bad
from orchestrator.documents.endpoints import READ, WRITE, Endpoint, page_of
from orchestrator.documents.fields import byte_range, new_file
from orchestrator.documents.files import Files
from orchestrator.documents.form import bytes_told, read_form
from orchestrator.documents.model import StoredFile
from orchestrator.documents.spool import Spool
from orchestrator.json_response import Json

LIMIT_MAX = 10_000
"""Also what a listing gives where the client says nothing, as OpenAI's."""
FILES = "/v1/files"
FILE = f"{FILES}/{{file}}"


class FilesApi:
    """Handlers for files."""

    def __init__(self, *, files: Files, spool: Spool, file_bytes_max: int) -> None:
        self._files = files
        self._spool = spool
        self._file_bytes_max = file_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All of them."""
        return (
            Endpoint(FILES, "POST", WRITE, self._create),
            Endpoint(FILES, "GET", READ, self._list),
            Endpoint(FILE, "GET", READ, self._get),
            Endpoint(FILE, "DELETE", WRITE, self._remove),
            Endpoint(f"{FILE}/content", "GET", READ, self._content),
        )

    async def _create(self, request: Request, key: Key) -> Response:
        told = bytes_told(request, self._file_bytes_max)
        async with self._spool.file(told) as content:
            form = await read_form(request, content, file_field="file", file_bytes_max=self._file_bytes_max)
            if not form.has_file:
                raise bad("file", "the form has a part named file, with a filename")
            new = new_file(form.fields, form.filename, form.content_type)
            return Json(views.file_view(await self._files.create(key.tenant, new, content)))

    async def _list(self, request: Request, key: Key) -> Response:
        purpose = request.query_params.get("purpose") or None
        page = page_of(request, LIMIT_MAX, LIMIT_MAX)
        found, more = await self._files.list(key.tenant, page, purpose=purpose)
        return Json(views.list_view([views.file_view(file) for file in found], more))

    async def _get(self, request: Request, key: Key) -> Response:
        return Json(views.file_view(await self._file(request, key)))

    async def _remove(self, request: Request, key: Key) -> Response:
        id = request.path_params["file"]
        await self._files.remove(key.tenant, id)
        return Json(views.file_deleted_view(id))

    async def _content(self, request: Request, key: Key) -> Response:
        file = await self._file(request, key)
        if request.query_params.get("presigned") in ("1", "true"):
            return await self._presigned(file)
        headers = views.content_headers(file)
        if request.method == "HEAD":
            return Response(headers={**headers, "content-length": str(file.bytes)})
        part = byte_range(request.headers.get("range"), file.bytes) if _range_counts(request, file) else None
        start, end = part or (0, file.bytes)
        headers["content-length"] = str(end - start)
        if part is not None:
            headers["content-range"] = f"bytes {start}-{end - 1}/{file.bytes}"
        stream = await self._files.read(file, start, end)
        return StreamingResponse(stream, 200 if part is None else 206, headers)

    async def _presigned(self, file: StoredFile) -> Response:
        url, expires_unix = await self._files.presign(file)
        return Json({"url": url, "expires_at": expires_unix}, headers={"cache-control": "no-store"})

    async def _file(self, request: Request, key: Key) -> StoredFile:
        return await self._files.get(key.tenant, request.path_params["file"])


def _range_counts(request: Request, file: StoredFile) -> bool:
    """A range of another content than this one means nothing (RFC 9110, 13.1.5)."""
    return request.headers.get("if-range", views.etag(file)) == views.etag(file)
