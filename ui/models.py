"""The pages of models: all of them, one of them, and what may be done to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from orchestrator.access.auth import KeyRing
from orchestrator.access.key import Key
from orchestrator.errors import ApiError
from orchestrator.model import Scope
from ui import inside
from ui.events import Board, shape_of
from ui.pages import HOME, PAGE_FIELDS, Page, Pages
from ui.ports import Plane
from ui.routes import View
from ui.scenes import STARTS_SHOWN

LOOK = (Scope.MONITOR,)
CHANGE = (Scope.ADMIN,)
ACTIONS = ("start", "stop", "pull", "pin", "unpin")
MODEL = f"{HOME}/models/{{model:path}}"
Live = Callable[[str, str, Key], Awaitable[dict[str, object]]]
"""A page's moving parts, by the page's name, the model it is about, and who looks."""
EVENT_FIELDS = {**PAGE_FIELDS, "x-accel-buffering": "no"}


class ModelPages:
    """Handlers."""

    def __init__(self, *, pages: Pages, board: Board, plane: Plane, keys: KeyRing) -> None:
        self._pages = pages
        self._board = board
        self._plane = plane
        self._keys = keys

    def views(self) -> tuple[View, ...]:
        """All of them."""
        return (
            View(HOME, "GET", LOOK, self._models),
            View(f"{HOME}/events", "GET", LOOK, self._events),
            *(View(f"{MODEL}/{action}", "POST", CHANGE, self._act) for action in ACTIONS),
            View(MODEL, "GET", LOOK, self._model),
        )

    async def _models(self, request: Request, key: Key) -> Page:
        return Page(
            template="models.html",
            title="Models",
            data={"models": self._plane.models(key)},
            more=await self.live("models", "", key),
        )

    async def _model(self, request: Request, key: Key) -> Page:
        name = request.path_params["model"]
        model = await inside.call(request, "GET", inside.at("/api/models/{model}", model=name))
        starts = await self._plane.starts(key, model=name, limit=STARTS_SHOWN)
        return Page(
            template="model.html",
            title=name,
            data={"model": model, "starts": starts},
            more=await self.live("model", name, key),
        )

    async def _act(self, request: Request, key: Key) -> Response:
        """Ask it of the API; the live page shows what comes of it, a page without scripts is loaded anew."""
        name, action = request.path_params["model"], request.url.path.rpartition("/")[2]
        await inside.call(request, "POST", inside.at("/api/models/{model}", model=name) + f"/{action}")
        if "hx-request" in request.headers:
            return Response(status_code=204, headers=PAGE_FIELDS)
        return RedirectResponse(f"{HOME}/models/{quote(name, safe='/')}", 303, headers=PAGE_FIELDS)

    async def _events(self, request: Request, key: Key) -> Response:
        query = request.query_params
        page, subject = query.get("page", ""), query.get("subject", "")
        if page not in self._board.painters:
            raise ApiError(404, "no such page", code="not_found", param="page")
        if self._board.full:
            raise ApiError(429, "too many people look", code="too_many_listeners", headers={"retry-after": "10"})

        def admitted() -> bool:
            try:
                return self._keys.admit(request.scope["headers"], *LOOK) == key
            except ApiError:
                return False

        stream = self._board.stream(page, subject, query.get("shape", ""), key, admitted)
        return StreamingResponse(stream, media_type="text/event-stream", headers=EVENT_FIELDS)

    async def live(self, page: str, subject: str, key: Key) -> dict[str, object]:
        """A page's moving parts as they are now, and where it hears of changes."""
        scene = await self._board.painters[page](key, subject)
        parts = {id: self._pages.fragment(part.template, id, part.values, swap=False) for id, part in scene.items()}
        return {"parts": parts, "live": {"page": page, "subject": subject, "shape": shape_of(scene)}}
