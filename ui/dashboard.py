"""The dashboard: its parts put together."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.access.auth import KeyRing
from orchestrator.access.key import Key
from orchestrator.access.sessions import Sessions
from orchestrator.errors import ApiError
from orchestrator.model import Scope
from orchestrator.ports import Clock
from ui.chat import ChatPage
from ui.documents import DocumentPages
from ui.events import Board
from ui.models import ModelPages
from ui.operations import OperationsPages
from ui.pages import HOME, STATIC, Page, Pages
from ui.ports import Doors, Meters, Plane
from ui.pulse import SAMPLE_S, Pulse
from ui.routes import View, routes
from ui.scenes import Recent, Scenes
from ui.servers import ServerPages
from ui.sign_in import SIGN_IN, SignIn
from ui.usage import UsagePage


class Dashboard:
    """All pages under ``/dashboard``."""

    def __init__(
        self,
        *,
        plane: Plane,
        doors: Doors,
        meters: Meters,
        keys: KeyRing,
        sessions: Sessions,
        clock: Clock,
        version: str,
    ) -> None:
        self._meters = meters
        self._keys = keys
        self._pages = Pages(version=version, signs_in=lambda: not keys.open, unix=clock.unix)
        self._sign_in = SignIn(self._pages, keys, sessions)
        self._pulse = Pulse()
        self._recent = Recent(plane, clock.monotonic)
        scenes = Scenes(plane=plane, doors=doors, recent=self._recent, samples=self._pulse, unix=clock.unix)
        self._board = Board(self._pages, scenes.painters())
        models = ModelPages(pages=self._pages, board=self._board, plane=plane, keys=keys)
        operations = OperationsPages(
            plane=plane,
            live=models.live,
            request_rows=scenes.request_rows,
            keys=lambda: None if keys.open else keys.in_force(),
        )
        servers = ServerPages(plane=plane, doors=doors, live=models.live)
        chat = ChatPage(plane=plane, live=models.live)
        self._parts = (servers, models, operations, UsagePage(clock.unix), DocumentPages(), chat)

    def views(self) -> list[View]:
        """The pages that need a key."""
        unknown = View(f"{HOME}/{{page:path}}", "GET", tuple(Scope), _unknown)
        return [*(view for part in self._parts for view in part.views()), unknown]

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
        self._recent.changed()
        self._board.changed()

    async def run(self) -> None:
        """Draw what is looked at, and follow the requests, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._board.run(), name="dashboard.board")
            tasks.create_task(self._sample(), name="dashboard.pulse")

    async def _sample(self) -> None:
        while True:
            self._pulse.take(self._meters.by_model())
            await asyncio.sleep(SAMPLE_S)

    def close(self) -> None:
        """End every stream."""
        self._board.close()

    async def _asset(self, request: Request) -> Response:
        found = self._pages.asset(request.path_params["name"])
        if found is None:
            raise ApiError(404, "no such file", code="not_found")
        return found


async def _unknown(request: Request, key: Key) -> Page:
    """Whatever else is asked for under `HOME`."""
    raise ApiError(404, "there is no such page", code="not_found")
