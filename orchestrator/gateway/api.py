"""The controller's routes for its gateways."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as HttpRoute

from orchestrator.access.auth import KeyRing
from orchestrator.crash import crash_point
from orchestrator.errors import ApiError
from orchestrator.gateway.registry import Gateways
from orchestrator.gateway.table import decode_report
from orchestrator.json_response import Json
from orchestrator.model import Scope

TABLE = "/api/gateways/table"
REPORTS = "/api/gateways/reports"
NAME_CHARS_MAX = 200


class GatewaysApi:
    """The handlers."""

    def __init__(self, gateways: Gateways, keys: KeyRing, flush: Callable[[], Awaitable[bool]]) -> None:
        """`flush` puts on the disk what was counted."""
        self._flush = flush
        self._gateways = gateways
        self._keys = keys

    def routes(self) -> list[HttpRoute]:
        """All of them. The table holds the keys of servers, so only admins see it."""
        return [
            HttpRoute("/api/gateways", self._list),
            HttpRoute(TABLE, self._table),
            HttpRoute(REPORTS, self._report, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        self._keys.admit(request.scope["headers"], Scope.MONITOR)
        return Json({"object": "list", "data": self._gateways.views()})

    async def _table(self, request: Request) -> Response:
        """Lines of JSON without end; see `table.Line`."""
        self._keys.admit(request.scope["headers"], Scope.ADMIN)
        name = request.query_params.get("gateway", "")
        if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
            raise ApiError(400, "say who asks: ?gateway=NAME", param="gateway", code="invalid_value")
        return StreamingResponse(self._while_admitted(request, name), media_type="application/x-ndjson")

    async def _while_admitted(self, request: Request, name: str) -> AsyncIterator[bytes]:
        """A key that was revoked sees no other table."""
        async for line in self._gateways.stream(name):
            try:
                self._keys.admit(request.scope["headers"], Scope.ADMIN)
            except ApiError:
                return
            yield line

    async def _report(self, request: Request) -> Response:
        """204 once what it has counted is on the disk, where the disk takes it."""
        self._keys.admit(request.scope["headers"], Scope.ADMIN)
        try:
            if self._gateways.report(decode_report(await request.body())):
                await self._flush()
                crash_point("report.after_flush")
        except (msgspec.DecodeError, ValueError) as error:
            raise ApiError(400, f"the report can't be read: {error}", code="invalid_json") from None
        return Response(status_code=204)
