"""The engines' own metrics, passed on: they listen where Prometheus can't reach them.

``GET /metrics/replicas`` is Prometheus' HTTP service discovery, one target for each ready engine, each of them here;
``GET /metrics/replicas/{replica}`` asks that engine. Only engines that serve now can be named, and only for their
metrics.
"""

from __future__ import annotations

import asyncio
import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute

from orchestrator import wire
from orchestrator.access.auth import KeyRing
from orchestrator.access.key import Key
from orchestrator.activator import Activator, Route
from orchestrator.balance.lane import Lane
from orchestrator.balance.poller import read_metrics
from orchestrator.errors import ApiError, UpstreamError
from orchestrator.json_response import Json
from orchestrator.model import Scope
from orchestrator.upstream import Connection

SCRAPE_S = 8.0
"""Less than Prometheus' own 10, so that it hears why."""
PAGE_BYTES_MAX = 16 * 2**20
"""A vLLM's page has some 100 kB."""
_AUTHORITY = re.compile(r"[A-Za-z0-9.\-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_MEDIA_TYPES = ("text/plain", "application/openmetrics-text")


class EngineMetrics:
    """The handlers."""

    def __init__(self, activator: Activator, keys: KeyRing) -> None:
        self._activator = activator
        self._keys = keys

    def routes(self) -> list[HttpRoute]:
        """Both for scope `monitor`; a key sees the engines of its models."""
        return [
            HttpRoute("/metrics/replicas", self._targets),
            HttpRoute("/metrics/replicas/{replica}", self._page),
        ]

    async def _targets(self, request: Request) -> Response:
        """https://prometheus.io/docs/prometheus/latest/http_sd/"""
        key = self._keys.admit(request.scope["headers"], Scope.MONITOR)
        authority = request.headers.get("host", "")
        if not _AUTHORITY.fullmatch(authority):
            raise ApiError(400, "the field host names no address", code="invalid_host", param="host")
        return Json([_target(route, lane, authority) for route, lane in self._engines(key)])

    async def _page(self, request: Request) -> Response:
        key = self._keys.admit(request.scope["headers"], Scope.MONITOR)
        wanted = request.path_params["replica"]
        lane = next((lane for _, lane in self._engines(key) if lane.replica == wanted), None)
        if lane is None:
            raise ApiError(404, "no such replica is ready", code="replica_not_found", param="replica")
        try:
            async with asyncio.timeout(SCRAPE_S):
                return await read_metrics(lane, _page)
        except TimeoutError:
            raise ApiError(
                504, f"the engine's metrics took more than {SCRAPE_S:.0f} s", code="engine_timeout"
            ) from None
        except UpstreamError as error:
            raise ApiError(502, str(error), code="engine_error") from None

    def _engines(self, key: Key) -> list[tuple[Route, Lane]]:
        routes = self._activator.routes.items()
        return [(route, lane) for name, route in routes if key.may_use(name) for lane in route.lanes]


def _target(route: Route, lane: Lane, authority: str) -> dict[str, object]:
    labels = {
        "__metrics_path__": f"/metrics/replicas/{lane.replica}",
        "instance": lane.replica,
        "model": route.deployment.name,
        "engine": str(route.deployment.engine),
    }
    return {"targets": [authority], "labels": labels}


async def _page(connection: Connection) -> Response:
    """The engine's page as it is. Raises `UpstreamError`, and `ApiError` for what is no page of metrics."""
    if connection.status != 200:
        raise ApiError(502, f"the engine answered {connection.status} to /metrics", code="engine_error")
    media_type = _media_type(connection)
    page = bytearray()
    while data := await connection.chunk():
        page += data
        if len(page) > PAGE_BYTES_MAX:
            limit = PAGE_BYTES_MAX // 2**20
            raise ApiError(502, f"the engine's metrics are more than {limit} MiB", code="engine_error")
    return Response(bytes(page), headers={"content-type": media_type, "x-content-type-options": "nosniff"})


def _media_type(connection: Connection) -> str:
    """The engine's, where it is one of metrics: a page must not be taken for HTML because an engine says so."""
    said = (wire.header(connection.headers, b"content-type") or b"").decode("latin-1")
    known = said.partition(";")[0].strip().lower() in _MEDIA_TYPES
    return said if known else "text/plain; version=0.0.4; charset=utf-8"
