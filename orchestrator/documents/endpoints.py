"""Routes as values: each declared once with its method and scopes, so that tests can go through all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.access.auth import KeyRing
from orchestrator.access.key import Key
from orchestrator.documents.model import Order, Page
from orchestrator.errors import ApiError, IndexUnavailable, NotFound, ObjectsUnavailable, OrchestratorError
from orchestrator.model import Scope
from orchestrator.reader import ClientGone, read_body

READ = (Scope.UPLOAD, Scope.REALTIME)
WRITE = (Scope.UPLOAD,)
JSON_BYTES_MAX = 2 * 2**20
"""Of a request's JSON. The largest is a list of some thousand ids."""
RETRY_AFTER_S = 5
"""Where nothing tells how long a store will be away."""
DIGITS_MAX = 10
NOBODY_HEARS = 400
"""The status for a client that left."""

log = structlog.get_logger()

Handler = Callable[[Request, Key], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers one method of one path, and who may ask it: a key with any of `scopes`."""

    path: str
    method: str
    scopes: tuple[Scope, ...]
    handler: Handler


def routes(endpoints: Iterable[Endpoint], keys: KeyRing) -> list[Route]:
    """One route a path, so that a 405 names all of its methods. GET answers HEAD, too.

    A handler may raise `ApiError`, which the app answers; `NotFound` becomes a 404, other `OrchestratorError`s a 503.
    """
    paths: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    return [Route(path, _chosen(methods, keys), methods=list(methods)) for path, methods in paths.items()]


def _chosen(methods: Mapping[str, Endpoint], keys: KeyRing) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        endpoint = methods["GET" if request.method == "HEAD" else request.method]
        key = keys.admit(request.scope["headers"], *endpoint.scopes)
        try:
            return await endpoint.handler(request, key)
        except (ClientDisconnect, ClientGone):
            return Response(status_code=NOBODY_HEARS)
        except ApiError:
            raise
        except NotFound:
            raise ApiError(404, "what this request names was removed meanwhile", code="not_found") from None
        except OrchestratorError as error:
            log.warning("documents_unavailable", path=endpoint.path, method=endpoint.method, cause=str(error))
            raise _unavailable(error) from None

    return answer


def _unavailable(error: OrchestratorError) -> ApiError:
    """What it says is for the log alone: it may name hosts and folders."""
    match error:
        case ObjectsUnavailable():
            what = "the object store"
        case IndexUnavailable():
            what = "the store's index"
        case _:
            what = "the catalogue"
    message = f"{what} is not available now; try again in a moment"
    return ApiError(503, message, code="storage_unavailable", headers={"retry-after": str(RETRY_AFTER_S)})


async def json_body(request: Request, *, bytes_max: int = JSON_BYTES_MAX) -> dict[str, Any]:
    """The request's JSON object; an empty body is an empty one. Raises `ApiError` 400 and 413."""
    body = await read_body(request.scope, request.receive, body_bytes_max=bytes_max)
    if not body:
        return {}
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    return found


def page_of(request: Request, limit_default: int, limit_max: int) -> Page:
    """The part of a listing that the query asks for. Raises `ApiError` 400."""
    query = request.query_params
    limit, order = query.get("limit", str(limit_default)), query.get("order", Order.DESC)
    if not (limit.isascii() and limit.isdigit() and len(limit) < DIGITS_MAX and 1 <= int(limit) <= limit_max):
        raise ApiError(400, f"limit is a whole number from 1 to {limit_max}", code="invalid_value", param="limit")
    if order not in set(Order):
        raise ApiError(400, 'order is "asc" or "desc"', code="invalid_value", param="order")
    return Page(
        limit=int(limit), order=Order(order), after=query.get("after") or None, before=query.get("before") or None
    )
