"""The Uploads API: thin handlers. Shapes: https://platform.openai.com/docs/api-reference/uploads."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from orchestrator.access.key import Key
from orchestrator.documents import views
from orchestrator.documents.checks import bad, known
from orchestrator.documents.endpoints import WRITE, Endpoint, json_body
from orchestrator.documents.fields import completion, new_upload
from orchestrator.documents.form import bytes_told, read_form
from orchestrator.documents.spool import Spool
from orchestrator.documents.uploads import Uploads
from orchestrator.json_response import Json

PART_BYTES_MAX = 64 * 2**20
"""OpenAI's: https://platform.openai.com/docs/api-reference/uploads/add-part."""
UPLOADS = "/v1/uploads"
UPLOAD = f"{UPLOADS}/{{upload}}"


class UploadsApi:
    """Handlers for uploads."""

    def __init__(self, *, uploads: Uploads, spool: Spool, upload_bytes_max: int) -> None:
        self._uploads = uploads
        self._spool = spool
        self._upload_bytes_max = upload_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All of them."""
        return (
            Endpoint(UPLOADS, "POST", WRITE, self._create),
            Endpoint(f"{UPLOAD}/parts", "POST", WRITE, self._add_part),
            Endpoint(f"{UPLOAD}/complete", "POST", WRITE, self._complete),
            Endpoint(f"{UPLOAD}/cancel", "POST", WRITE, self._cancel),
        )

    async def _create(self, request: Request, key: Key) -> Response:
        new = new_upload(await json_body(request), self._upload_bytes_max)
        return Json(views.upload_view(await self._uploads.create(key.tenant, new)))

    async def _add_part(self, request: Request, key: Key) -> Response:
        upload = await self._uploads.pending(key.tenant, request.path_params["upload"])
        told = bytes_told(request, PART_BYTES_MAX)
        async with self._spool.file(told) as content:
            form = await read_form(request, content, file_field="data", file_bytes_max=PART_BYTES_MAX)
            if not form.has_file:
                raise bad("data", "the form has a part named data")
            known(form.fields, ())
            return Json(views.part_view(await self._uploads.add_part(upload, content)))

    async def _complete(self, request: Request, key: Key) -> Response:
        wanted = completion(await json_body(request))
        upload, file = await self._uploads.complete(key.tenant, request.path_params["upload"], wanted)
        return Json(views.upload_view(upload, file))

    async def _cancel(self, request: Request, key: Key) -> Response:
        return Json(views.upload_view(await self._uploads.cancel(key.tenant, request.path_params["upload"])))
