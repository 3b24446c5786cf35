"""The page of servers: how loaded and how well each is, and what may be done to those that others run."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from orchestrator.access.key import Key
from ui import inside, lanes
from ui.models import CHANGE, LOOK, MODEL, Live
from ui.pages import HOME, PAGE_FIELDS, Page
from ui.ports import Doors, Json, Plane
from ui.routes import View
from ui.sign_in import form

SERVERS = f"{HOME}/servers"
ENDPOINT = f"{MODEL}/endpoints/{{server}}"
API = "/api/models/{model}/endpoints"
TEXTS = ("url", "key", "model")
NUMBERS = ("max_concurrent_requests", "weight")


class ServerPages:
    """Handlers."""

    def __init__(self, *, plane: Plane, doors: Doors, live: Live) -> None:
        self._plane = plane
        self._doors = doors
        self._live = live

    def views(self) -> tuple[View, ...]:
        """All of them; to stand before the pages of models, whose names may hold slashes."""
        return (
            View(SERVERS, "GET", LOOK, self._show),
            View(SERVERS, "POST", CHANGE, self._add),
            *(View(f"{ENDPOINT}/{action}", "POST", CHANGE, self._act) for action in ("drain", "resume", "remove")),
        )

    async def _show(self, request: Request, key: Key) -> Page:
        models = self._plane.models(key)
        found = lanes.found(models, self._plane.servers(key), self._doors.endpoints(key))
        static = [model["id"] for model in models if model["engine"] == "static"]
        data = {"models": found, "gateways": self._doors.gateways()}
        more = {**await self._live("servers", "", key), "static": static}
        return Page(template="servers.html", title="Servers", data=data, more=more)

    async def _add(self, request: Request, key: Key) -> Response:
        fields = await form(request)
        body: Json = {name: fields[f"of_{name}"] for name in TEXTS if fields.get(f"of_{name}")}
        body |= {name: number(fields[f"of_{name}"]) for name in NUMBERS if fields.get(f"of_{name}")}
        await inside.call(request, "POST", inside.at(API, model=fields.get("at", "")), body=body)
        return RedirectResponse(SERVERS, 303, headers=PAGE_FIELDS)

    async def _act(self, request: Request, key: Key) -> Response:
        """Ask it of the API; the live page shows what comes of it, a page without scripts is loaded anew."""
        names, action = request.path_params, request.url.path.rpartition("/")[2]
        path = inside.at(API + "/{server}", model=names["model"], server=names["server"])
        if action == "remove":
            await inside.call(request, "DELETE", path)
        else:
            await inside.call(request, "POST", f"{path}/{action}")
        if "hx-request" in request.headers:
            return Response(status_code=204, headers=PAGE_FIELDS)
        return RedirectResponse(SERVERS, 303, headers=PAGE_FIELDS)


def number(text: str) -> int | float | str:
    """As JSON has it; what is none is left to the API to refuse."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text
