"""The API for the servers of static models: what they are and how they are; adding, draining and removing them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute

from orchestrator.access.auth import KeyRing
from orchestrator.access.key import Key
from orchestrator.activator import Activator
from orchestrator.errors import ApiError
from orchestrator.json_response import Json
from orchestrator.model import Deployment, EngineKind, Scope
from orchestrator.ports import Clock
from orchestrator.servers.added import Added
from orchestrator.servers.endpoint import Endpoint
from orchestrator.servers.state import endpoint_id
from orchestrator.servers.views import endpoint_view
from orchestrator.servers.watch import Servers
from orchestrator.settings import EndpointSettings

ENDPOINTS_MAX = 256
"""Of one model."""
PATH = "/api/models/{model:path}/endpoints"


class EndpointsApi:
    """Handlers. `deployments`: the models as they are to be, with what was added."""

    def __init__(
        self,
        *,
        servers: Servers,
        added: Added,
        activator: Activator,
        keys: KeyRing,
        clock: Clock,
        deployments: Callable[[], Mapping[str, Deployment]],
    ) -> None:
        self._servers = servers
        self._added = added
        self._activator = activator
        self._keys = keys
        self._clock = clock
        self._deployments = deployments

    def routes(self) -> list[HttpRoute]:
        """To stand before those of `control`, whose models' names may hold slashes. Scope `monitor` reads, `admin`
        changes; a key sees the servers of its models."""
        return [
            HttpRoute(PATH, self._list, methods=["GET"]),
            HttpRoute(PATH, self._add, methods=["POST"]),
            HttpRoute(PATH + "/{server}", self._remove, methods=["DELETE"]),
            HttpRoute(PATH + "/{server}/drain", self._drain, methods=["POST"]),
            HttpRoute(PATH + "/{server}/resume", self._resume, methods=["POST"]),
        ]

    def views(self, key: Key) -> list[dict[str, object]]:
        """The endpoints of the models that the key may use, as ``GET /api/models/{id}/endpoints`` shows them."""
        mine = [each for each in self._deployments().values() if key.may_use(each.name)]
        return [self._view(deployment, endpoint) for deployment in mine for endpoint in deployment.endpoints]

    async def _list(self, request: Request) -> Response:
        deployment = self._model(request, Scope.MONITOR)
        return Json({"object": "list", "data": [self._view(deployment, each) for each in deployment.endpoints]})

    async def _add(self, request: Request) -> Response:
        """1. One that is drained: it gets requests again; if it was added, with the settings that are given now.
        2. One that is there: 409. 3. Else it is added."""
        deployment = self._model(request, Scope.ADMIN)
        endpoint = _asked(await request.body())
        known = next((each for each in deployment.endpoints if each.url == endpoint.url), None)
        if known is not None and not known.draining:
            raise ApiError(409, "the model has this endpoint already", code="endpoint_exists", param="url")
        if len(deployment.endpoints) >= ENDPOINTS_MAX:
            raise ApiError(400, f"a model has at most {ENDPOINTS_MAX} endpoints", code="too_many_endpoints")
        if known is not None and not known.added:
            self._change(lambda: self._added.drain(deployment.name, known, False))
        else:
            self._change(lambda: self._added.add(deployment.name, endpoint))
        return await self._done(deployment.name, endpoint, 201)

    async def _remove(self, request: Request) -> Response:
        deployment = self._model(request, Scope.ADMIN)
        endpoint = _named(request, deployment)
        if not endpoint.added:
            message = "this endpoint stands in the configuration: remove it there, or drain it"
            raise ApiError(409, message, code="endpoint_configured", param="server")
        self._change(lambda: self._added.remove(deployment.name, endpoint))
        return Json({"id": endpoint_id(deployment.name, endpoint), "object": "endpoint", "deleted": True})

    async def _drain(self, request: Request) -> Response:
        return await self._set_drained(request, True)

    async def _resume(self, request: Request) -> Response:
        """It gets requests again, as it is."""
        return await self._set_drained(request, False)

    async def _set_drained(self, request: Request, drained: bool) -> Response:
        deployment = self._model(request, Scope.ADMIN)
        endpoint = _named(request, deployment)
        self._change(lambda: self._added.drain(deployment.name, endpoint, drained))
        return await self._done(deployment.name, endpoint, 202)

    async def _done(self, model: str, endpoint: Endpoint, status: int) -> Response:
        """The endpoint as it is once the change has been seen."""
        await self._servers.settled()
        deployment = self._deployments()[model]
        now = next(each for each in deployment.endpoints if each.url == endpoint.url)
        return Json(self._view(deployment, now), status)

    def _view(self, deployment: Deployment, endpoint: Endpoint) -> dict[str, object]:
        return endpoint_view(deployment.name, endpoint, self._servers, self._clock.monotonic())

    def _change(self, change: Callable[[], None]) -> None:
        try:
            change()
        except OSError as error:
            message = f"the change can't be kept: {error.strerror}"
            raise ApiError(503, message, code="storage_unavailable") from None

    def _model(self, request: Request, scope: Scope) -> Deployment:
        key = self._keys.admit(request.scope["headers"], scope)
        name = request.path_params["model"]
        route = self._activator.find(name, key)
        deployment = self._deployments().get(route.deployment.name) if route is not None else None
        if deployment is None:
            raise ApiError(404, f"no model {name[:200]!r}", code="model_not_found", param="model")
        if deployment.engine is not EngineKind.STATIC:
            message = f"{deployment.name} is no static model: its engines are started here"
            raise ApiError(409, message, code="model_not_static", param="model")
        return deployment


def _asked(body: bytes) -> Endpoint:
    """The endpoint that a body describes. It may not name a variable of our environment: whoever may add servers
    could so have any of our secrets sent to one."""
    try:
        given = EndpointSettings.model_validate(json.loads(body))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(part) for part in fault["loc"]) or None
        message = f"{param or 'the body'}: {fault['msg'].removeprefix('Value error, ')}"
        raise ApiError(400, message, code="invalid_value", param=param) from None
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON", code="invalid_json") from None
    if given.key_env is not None:
        raise ApiError(400, "key_env is for the configuration; give key", code="invalid_value", param="key_env")
    return Endpoint(**given.model_dump(exclude={"key_env"}))


def _named(request: Request, deployment: Deployment) -> Endpoint:
    id = request.path_params["server"]
    found = next((each for each in deployment.endpoints if endpoint_id(deployment.name, each) == id), None)
    if found is None:
        raise ApiError(404, f"no endpoint {id[:200]!r}", code="endpoint_not_found", param="server")
    return found
