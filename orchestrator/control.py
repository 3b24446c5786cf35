"""The control plane's routes: models, replicas, starts, logs, events, health, metrics."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as HttpRoute
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from orchestrator.access.auth import KeyRing
from orchestrator.access.key import Key
from orchestrator.activator import Activator, Route
from orchestrator.errors import ApiError, NotFound
from orchestrator.events import Broadcast
from orchestrator.json_response import Json
from orchestrator.metrics import Metrics
from orchestrator.model import Fleet, Replica, Scope, Traffic
from orchestrator.pins import Pins
from orchestrator.ports import Clock, History, Runtime
from orchestrator.views import gpu_view, model_view, openai_model, replica_view, start_view

LOG_TAIL_BYTES_DEFAULT = 64 * 2**10
LOG_TAIL_BYTES_MAX = 4 * 2**20
STARTS_MAX = 1000

Handler = Callable[[Request], Awaitable[Response]]


class Health(Protocol):
    """Answers for the state of the service's parts."""

    def checks(self) -> dict[str, dict[str, Any]]:
        """Name to ``{"ok": bool, "detail": str}``."""

    def ready(self, *, documents: bool = True) -> bool:
        """Whether requests should be sent here; without `documents`, those for inference."""


class LabelledAnswers:
    """Puts ``x-request-id`` on every answer of the control plane, errors too."""

    def __init__(self, app: ASGIApp, request_id: Callable[[], bytes]) -> None:
        self._app = app
        self._request_id = request_id

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._request_id()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        await self._app(scope, receive, send_with_id)


class Control:
    """The handlers. Reads what the loop published; changes things only by asking the activator."""

    def __init__(
        self,
        *,
        activator: Activator,
        keys: KeyRing,
        history: History,
        runtime: Runtime,
        metrics: Metrics,
        events: Broadcast,
        health: Health,
        clock: Clock,
        forgive: Callable[[str], None],
        settled: Callable[[], Awaitable[None]],
        fleet: Callable[[], Fleet],
        pins: Pins,
        version: str,
    ) -> None:
        self._pins = pins
        self._activator = activator
        self._keys = keys
        self._history = history
        self._runtime = runtime
        self._metrics = metrics
        self._events = events
        self._health = health
        self._clock = clock
        self._forgive = forgive
        self._settled = settled
        self._fleet = fleet
        self._version = version
        self._created_unix = int(clock.unix())

    def routes(self) -> list[HttpRoute]:
        """All of them, each with the scope that it needs."""
        needs = self._needs
        return [
            HttpRoute("/", self._index),
            HttpRoute("/live", self._live),
            HttpRoute("/api/healthz", self._live),
            HttpRoute("/ready", self._ready),
            HttpRoute("/health", self._show_health),
            HttpRoute("/metrics", needs(Scope.MONITOR, self._show_metrics)),
            HttpRoute("/v1/models", needs(Scope.REALTIME, self._openai_models)),
            HttpRoute("/v1/models/{model:path}", needs(Scope.REALTIME, self._openai_model)),
            HttpRoute("/api/models", needs(Scope.MONITOR, self._models)),
            HttpRoute("/api/models/{model:path}/start", needs(Scope.ADMIN, self._start), methods=["POST"]),
            HttpRoute("/api/models/{model:path}/stop", needs(Scope.ADMIN, self._stop), methods=["POST"]),
            HttpRoute("/api/models/{model:path}/pull", needs(Scope.ADMIN, self._pull), methods=["POST"]),
            HttpRoute("/api/models/{model:path}/pin", needs(Scope.ADMIN, self._pin), methods=["POST"]),
            HttpRoute("/api/models/{model:path}/unpin", needs(Scope.ADMIN, self._unpin), methods=["POST"]),
            HttpRoute("/api/models/{model:path}", needs(Scope.MONITOR, self._model)),
            HttpRoute("/api/replicas", needs(Scope.MONITOR, self._replicas)),
            HttpRoute("/api/gpus", needs(Scope.MONITOR, self._gpus)),
            HttpRoute("/api/starts", needs(Scope.MONITOR, self._starts)),
            HttpRoute("/api/logs/{replica}", needs(Scope.MONITOR, self._logs)),
            HttpRoute("/api/events", needs(Scope.MONITOR, self._stream_events)),
        ]

    def view(self, route: Route) -> dict[str, Any]:
        """One model as ``GET /api/models/{id}`` shows it."""
        traffic = {lane.replica: lane.traffic() for lane in route.lanes}
        held = self._activator.held_for(route.deployment.name)
        pinned = route.deployment.name in self._pins.models
        return model_view(route, held=held, traffic=traffic, pinned=pinned, now=self._clock.monotonic())

    def models(self, key: Key) -> list[dict[str, Any]]:
        """The models that the key may use, as ``GET /api/models`` shows them."""
        return [self.view(route) for route in self._visible(key)]

    def gpus(self, key: Key) -> list[dict[str, Any]]:
        """The GPUs, with the replicas of those models, as ``GET /api/gpus`` shows them."""
        fleet = self._fleet()
        mine = [r for r in fleet.replicas.values() if key.may_use(r.model)]
        return [gpu_view(g, fleet.foreign.get(g.uuid, 0), [r for r in mine if g.uuid in r.gpus]) for g in fleet.gpus]

    async def starts(self, key: Key, *, model: str | None, limit: int) -> list[dict[str, Any]]:
        """The starts of those models, the newest first, as ``GET /api/starts`` shows them."""
        starts = await self._history.starts(model=model, limit=limit)
        return [start_view(start) for start in starts if key.may_use(start.model)]

    def _needs(self, scope: Scope, handler: Callable[[Request, Key], Awaitable[Response]]) -> Handler:
        @functools.wraps(handler)
        async def guarded(request: Request) -> Response:
            return await handler(request, self._keys.admit(request.scope["headers"], scope))

        return guarded

    # --- open ---

    async def _index(self, request: Request) -> Response:
        return Json({"name": "orchestrator", "version": self._version, "openai_base_url": "/v1"})

    async def _live(self, request: Request) -> Response:
        return Json({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        ready = self._health.ready(documents=request.query_params.get("for") != "inference")
        bad = {name: check["detail"] for name, check in self._health.checks().items() if not check["ok"]}
        return Json({"ready": ready, "problems": bad}, 200 if ready else 503)

    async def _show_health(self, request: Request) -> Response:
        checks = self._health.checks()
        healthy = all(check["ok"] for check in checks.values())
        return Json({"status": "ok" if healthy else "degraded", "checks": checks})

    # --- monitor ---

    async def _show_metrics(self, request: Request, key: Key) -> Response:
        return Response(self._metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, request: Request, key: Key) -> Response:
        return _list(self.models(key))

    async def _model(self, request: Request, key: Key) -> Response:
        return Json(self.view(self._route(request, key)))

    async def _replicas(self, request: Request, key: Key) -> Response:
        now = self._clock.monotonic()
        return _list([replica_view(r, t, now) for route in self._visible(key) for r, t in _pairs(route)])

    async def _gpus(self, request: Request, key: Key) -> Response:
        return _list(self.gpus(key))

    async def _starts(self, request: Request, key: Key) -> Response:
        model = request.query_params.get("model")
        limit = _number(request, "limit", 100, 1, STARTS_MAX)
        return _list(await self.starts(key, model=model, limit=limit))

    async def _logs(self, request: Request, key: Key) -> Response:
        tail_bytes = _number(request, "tail_bytes", LOG_TAIL_BYTES_DEFAULT, 0, LOG_TAIL_BYTES_MAX)
        follow = request.query_params.get("follow", "0") in ("1", "true")
        stream = self._runtime.logs(request.path_params["replica"], tail_bytes=tail_bytes, follow=follow)
        try:
            first = await anext(stream, b"")
        except NotFound:
            raise ApiError(404, "no such replica", code="replica_not_found", param="replica") from None
        told = self._while_admitted(request, _joined(first, stream))
        return StreamingResponse(told, media_type="text/plain; charset=utf-8")

    async def _stream_events(self, request: Request, key: Key) -> Response:
        if self._events.full:
            raise ApiError(429, "too many listeners", code="too_many_listeners", headers={"retry-after": "10"})
        first = [("model", self.view(route)) for route in self._visible(key)]
        told = self._while_admitted(request, self._events.stream(first))
        return StreamingResponse(told, media_type="text/event-stream")

    async def _while_admitted(self, request: Request, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Of a stream without end, what its key may still see: one that was revoked sees nothing more."""
        async for chunk in stream:
            try:
                self._keys.admit(request.scope["headers"], Scope.MONITOR)
            except ApiError:
                return
            yield chunk

    # --- admin ---

    async def _start(self, request: Request, key: Key) -> Response:
        route = self._route(request, key)
        self._forgive(route.deployment.name)
        self._activator.ask(route.deployment.name, self._clock.monotonic())
        return await self._asked(request, key)

    async def _stop(self, request: Request, key: Key) -> Response:
        route = self._route(request, key)
        self._forgive(route.deployment.name)  # what failed before is settled
        self._activator.ask_stop(route.deployment.name, self._clock.monotonic())
        return await self._asked(request, key)

    async def _pull(self, request: Request, key: Key) -> Response:
        route = self._route(request, key)
        self._forgive(route.deployment.name)
        self._activator.ask_pull(route.deployment.name, self._clock.monotonic())
        return await self._asked(request, key)

    async def _pin(self, request: Request, key: Key) -> Response:
        route = self._route(request, key)
        self._set_pin(route.deployment.name, True)
        return await self._start(request, key)  # one that was stopped by hand is wanted again

    async def _unpin(self, request: Request, key: Key) -> Response:
        self._set_pin(self._route(request, key).deployment.name, False)
        return await self._asked(request, key)

    def _set_pin(self, model: str, pinned: bool) -> None:
        try:
            self._pins.set(model, pinned)
        except OSError as error:
            raise ApiError(503, f"the pin can't be kept: {error.strerror}", code="storage_unavailable") from None

    async def _asked(self, request: Request, key: Key) -> Response:
        """202 with the model as it is once the loop has seen the wish."""
        await self._settled()
        return Json(self.view(self._route(request, key)), 202)

    # --- realtime ---

    async def _openai_models(self, request: Request, key: Key) -> Response:
        now = self._clock.monotonic()
        return _list([openai_model(route, self._created_unix, now) for route in self._visible(key)])

    async def _openai_model(self, request: Request, key: Key) -> Response:
        route = self._route(request, key)
        return Json(openai_model(route, self._created_unix, self._clock.monotonic()))

    def _visible(self, key: Key) -> list[Route]:
        return [route for name, route in self._activator.routes.items() if key.may_use(name)]

    def _route(self, request: Request, key: Key) -> Route:
        name = request.path_params["model"]
        route = self._activator.routes.get(name)
        if route is None or not key.may_use(name):
            raise ApiError(404, f"no model {name[:200]!r}", code="model_not_found", param="model")
        return route


def _pairs(route: Route) -> list[tuple[Replica, Traffic]]:
    traffic = {lane.replica: lane.traffic() for lane in route.lanes}
    return [(replica, traffic.get(replica.id, Traffic())) for replica in route.replicas]


def _list(data: list[Any]) -> Response:
    return Json({"object": "list", "data": data})


def _number(request: Request, name: str, default: int, low: int, high: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text)):
        raise ApiError(400, f"{name} is a whole number from {low} to {high}", param=name, code="invalid_value")
    return min(int(text), high)


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in rest:
        yield chunk


async def on_api_error(request: Request, error: Exception) -> Response:
    """An `ApiError` raised by a handler."""
    assert isinstance(error, ApiError)
    return Json(error.body(), error.status, headers=error.headers)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405 in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    what = {404: "no such path", 405: "this path does not take that method"}.get(error.status_code, error.detail)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    told = ApiError(error.status_code, what, code=code)
    return Json(told.body(), error.status_code, headers=dict(error.headers or {}))


async def on_bug(request: Request, error: Exception) -> Response:
    """Anything else is a fault of ours; Starlette logs it after this answer."""
    return Json(ApiError(500, "the orchestrator failed; see its log", code="internal_error").body(), 500)
