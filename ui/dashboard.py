"""The dashboard: its parts put together."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.auth import KeyRing
from orchestrator.errors import ApiError
from orchestrator.sessions import Sessions
from ui.chat import ChatPage
from ui.events import Board
from ui.models import ModelPages
from ui.pages import HOME, STATIC, Pages
from ui.ports import Plane
from ui.routes import View, routes
from ui.scenes import Scenes
from ui.sign_in import SIGN_IN, SignIn


class Dashboard:
    """All pages under ``/dashboard``."""

    def __init__(
        self, *, plane: Plane, keys: KeyRing, sessions: Sessions, unix: Callable[[], float], version: str
    ) -> None:
        self._keys = keys
        self._pages = Pages(version=version, signs_in=lambda: not keys.open, unix=unix)
        self._sign_in = SignIn(self._pages, keys, sessions)
        self._board = Board(self._pages, Scenes(plane, unix).painters())
        models = ModelPages(pages=self._pages, board=self._board, plane=plane, keys=keys)
        self._parts = (models, ChatPage(plane=plane, live=models.live))

    def views(self) -> list[View]:
        """The pages that need a key."""
        return [view for part in self._parts for view in part.views()]

    def routes(self) -> list[Route]:
        """All of them, each with the scope that it needs."""
        guarded = routes(self.views(), self._pages, self._keys, self._sign_in)
        return [
            Route(f"{STATIC}/{{name}}", self._asset),
            Route(SIGN_IN, self._sign_in.show),
            Route(SIGN_IN, self._sign_in.sign_in, methods=["POST"]),
            Route(f"{HOME}/sign-out", self._sign_in.sign_out, methods=["POST"]),
            *guarded,
        ]

    def changed(self) -> None:
        """A model has changed its phase. Does not block."""
        self._board.changed()

    async def run(self) -> None:
        """Draw what is looked at, until cancelled."""
        await self._board.run()

    def close(self) -> None:
        """End every stream."""
        self._board.close()

    async def _asset(self, request: Request) -> Response:
        found = self._pages.asset(request.path_params["name"])
        if found is None:
            raise ApiError(404, "no such file", code="not_found")
        return found
