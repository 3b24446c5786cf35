"""The dashboard's routes as values: each with its scopes, so that tests can go through all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.access.auth import KeyRing
from orchestrator.access.key import Key
from orchestrator.errors import ApiError
from orchestrator.json_response import Json as JsonAnswer
from orchestrator.model import Scope
from orchestrator.reader import ClientGone
from ui.events import ENDED
from ui.pages import HOME, PAGE_FIELDS, Page, Pages, wants_json
from ui.sign_in import SignIn

NOBODY_HEARS = 400
EXCHANGED = frozenset({"key", "token"})
"""What of an address is a secret, and is exchanged for a cookie."""
Handler = Callable[[Request, Key], Awaitable[Page | Response]]


@dataclass(frozen=True, slots=True)
class View:
    """What answers one method of one path, for keys with one of `scopes`."""

    path: str
    method: str
    scopes: tuple[Scope, ...]
    handler: Handler


def routes(views: Iterable[View], pages: Pages, keys: KeyRing, sign_in: SignIn) -> list[Route]:
    """Each a route. Refusals are pages for people, and the API's errors for programs."""

    def guarded(view: View) -> Route:
        async def answer(request: Request) -> Response:
            if view.path == HOME and not EXCHANGED.isdisjoint(request.query_params):
                return sign_in.exchange(request)
            key: Key | None = None
            try:
                key = keys.admit(request.scope["headers"], *Scope)
                keys.admit(request.scope["headers"], *view.scopes)
                found = await view.handler(request, key)
            except (ClientDisconnect, ClientGone):
                return Response(status_code=NOBODY_HEARS)
            except ApiError as error:
                if wants_json(request):
                    raise
                return _refused(request, key, error)
            if isinstance(found, Response):
                return found
            return (
                JsonAnswer(found.data, headers=PAGE_FIELDS)
                if wants_json(request)
                else pages.answer(request, key, found)
            )

        return Route(view.path, answer, methods=[view.method])

    def _refused(request: Request, key: Key | None, error: ApiError) -> Response:
        if error.status == 401 and hears_events(request):
            return Response(ENDED, media_type="text/event-stream", headers=PAGE_FIELDS)
        if error.status == 401:
            return sign_in.ask(request)
        data = {"status": error.status, "message": error.message, "code": error.code}
        page = Page(template="refused.html", title=f"{error.status}", data=data, status=error.status)
        return pages.answer(request, key, page)

    return [guarded(view) for view in views]


def hears_events(request: Request) -> bool:
    """Whether an ``EventSource`` asks: of any answer but a stream it only learns that it failed."""
    return "text/event-stream" in request.headers.get("accept", "")
