"""The pages that show what goes on: starts, GPUs, requests, logs, keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.requests import Request

from orchestrator.access.key import Key
from orchestrator.model import Scope
from ui import inside
from ui.models import LOOK, Live
from ui.pages import HOME, Page
from ui.ports import Json, Plane
from ui.routes import View

STARTS_MAX = 100
TAIL_BYTES = 64 * 2**10
"""Of a log, where no script reads on."""


class OperationsPages:
    """Handlers."""

    def __init__(
        self,
        *,
        plane: Plane,
        live: Live,
        request_rows: Callable[[Key], list[dict[str, object]]],
        keys: Callable[[], Sequence[Key] | None],
    ) -> None:
        """`request_rows`: what is known of each model's requests. `keys`: those in force; None: none are needed."""
        self._plane = plane
        self._live = live
        self._request_rows = request_rows
        self._keys = keys

    def views(self) -> tuple[View, ...]:
        """All of them."""
        return (
            View(f"{HOME}/starts", "GET", LOOK, self._starts),
            View(f"{HOME}/gpus", "GET", LOOK, self._gpus),
            View(f"{HOME}/requests", "GET", LOOK, self._requests),
            View(f"{HOME}/logs", "GET", LOOK, self._logs),
            View(f"{HOME}/logs/{{replica}}", "GET", LOOK, self._log),
            View(f"{HOME}/keys", "GET", (Scope.ADMIN,), self._show_keys),
        )

    async def _starts(self, request: Request, key: Key) -> Page:
        starts = await self._plane.starts(key, model=None, limit=STARTS_MAX)
        return await self._flow("starts", "Starts", {"starts": starts}, key)

    async def _gpus(self, request: Request, key: Key) -> Page:
        return await self._flow("gpus", "GPUs", {"gpus": self._plane.gpus(key)}, key, look="flow gpus")

    async def _requests(self, request: Request, key: Key) -> Page:
        return await self._flow("requests", "Requests", {"requests": self._request_rows(key)}, key)

    async def _flow(self, name: str, title: str, data: Json, key: Key, *, look: str = "flow") -> Page:
        """A page of moving parts and nothing else."""
        live = await self._live(name, "", key)
        return Page(template="flow.html", title=title, data=data, more={**live, "look": look})

    async def _logs(self, request: Request, key: Key) -> Page:
        engines = [
            {"model": model["id"], "replica": model["last_replica"], "phase": str(model["phase"])}
            for model in self._plane.models(key)
            if model["last_replica"]
        ]
        return Page(template="logs.html", title="Logs", data={"engines": engines})

    async def _log(self, request: Request, key: Key) -> Page:
        replica = request.path_params["replica"]
        path = inside.at("/api/logs/{replica}", replica=replica)
        text = await inside.text(request, path, query={"tail_bytes": str(TAIL_BYTES)})
        return Page(template="log.html", title=replica, data={"replica": replica, "text": text})

    async def _show_keys(self, request: Request, key: Key) -> Page:
        keys = self._keys()
        shown = [{"name": each.name, "scopes": sorted(each.scopes)} for each in keys or ()]
        data = {"keys": sorted(shown, key=lambda one: str(one["name"])), "open": keys is None}
        return Page(template="keys.html", title="Keys", data=data)
