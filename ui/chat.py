"""The page on which to try a model."""

from __future__ import annotations

from starlette.requests import Request

from orchestrator.access.key import Key
from orchestrator.model import Scope
from ui.models import Live
from ui.pages import HOME, Page, may
from ui.ports import Plane
from ui.routes import View

HOLD_S = 300
"""How long the page waits for a cold model; the service may wait less (``activator.hold_max_s``)."""


class ChatPage:
    """The handler."""

    def __init__(self, *, plane: Plane, live: Live) -> None:
        self._plane = plane
        self._live = live

    def views(self) -> tuple[View, ...]:
        """The one there is."""
        return (View(f"{HOME}/chat", "GET", (Scope.REALTIME,), self._chat),)

    async def _chat(self, request: Request, key: Key) -> Page:
        names = [model["id"] for model in self._plane.models(key)]
        asked = request.query_params.get("model", "")
        chosen = asked if asked in names else next(iter(names), "")
        live = await self._live("card", chosen, key) if may(key, Scope.MONITOR) else {"parts": {}, "live": None}
        data = {"models": names, "chosen": chosen}
        return Page(template="chat.html", title="Chat", data=data, more={**live, "hold_s": HOLD_S})
