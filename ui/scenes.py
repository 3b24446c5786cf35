"""What moves on a page: parts with an id, a template and values; drawn once, and again where values change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from orchestrator.access.key import Key
from orchestrator.model import Scope
from ui import lanes, memory, pulse, timeline, values
from ui.pages import may
from ui.ports import Doors, Json, Plane
from ui.pulse import Pulse

STARTS_SHOWN = 30
SETTLE_S = 2.0
"""A start that has just ended is in the history after this."""
KEPT_MAX = 200


@dataclass(frozen=True, slots=True)
class Part:
    """One element of a page."""

    template: str
    values: Json


Scene = dict[str, Part]
"""By the element's id, in the order of the page."""
Painter = Callable[[Key, str], Awaitable[Scene]]
"""Looks at the service now, for a key, and for the model that a page is about (empty: for all)."""


class Recent:
    """The newest starts; the history is read only after something has changed."""

    def __init__(self, plane: Plane, monotonic: Callable[[], float]) -> None:
        self._plane = plane
        self._monotonic = monotonic
        self._kept: dict[tuple[tuple[str, ...], str], tuple[float, list[Json]]] = {}
        self._changed_at = monotonic()

    def changed(self) -> None:
        """A start may have ended."""
        self._changed_at = self._monotonic()

    async def of(self, key: Key, model: str) -> list[Json]:
        """The newest first; `model` empty: of all models that the key may use."""
        place = (key.models, model)
        read_at, found = self._kept.get(place, (float("-inf"), []))
        if read_at > self._changed_at + SETTLE_S:
            return found
        now = self._monotonic()
        found = await self._plane.starts(key, model=model or None, limit=STARTS_SHOWN)
        if len(self._kept) >= KEPT_MAX:
            self._kept.clear()
        self._kept[place] = (now, found)
        return found


class Scenes:
    """The painters of all pages that move."""

    def __init__(
        self, *, plane: Plane, doors: Doors, recent: Recent, samples: Pulse, unix: Callable[[], float]
    ) -> None:
        self._plane = plane
        self._doors = doors
        self._recent = recent
        self._samples = samples
        self._unix = unix

    def painters(self) -> dict[str, Painter]:
        """By the name of the page."""
        return {
            "models": self._models,
            "card": self._one_card,
            "model": self._model,
            "starts": self._starts,
            "servers": self._servers,
            "gpus": self._gpus,
            "requests": self._requests,
        }

    def request_rows(self, key: Key) -> list[Json]:
        """What is known of each model's requests."""
        return [pulse.row(self._samples.of(model["id"]), model) for model in self._plane.models(key)]

    async def _models(self, key: Key, subject: str) -> Scene:
        models = self._plane.models(key)
        trouble = Part("_trouble.html", {"trouble": self._plane.trouble()})
        return {
            "trouble": trouble,
            "summary": Part("_summary.html", values.summary(models)),
            **self._cards(models, key),
        }

    async def _one_card(self, key: Key, subject: str) -> Scene:
        model = self._found(key, subject)
        return {} if model is None else self._cards([model], key)

    async def _model(self, key: Key, subject: str) -> Scene:
        """One model: its card, the start under way or the last one, its engines, and its earlier starts."""
        model = self._found(key, subject)
        if model is None:
            return {}
        starts = await self._recent.of(key, subject)
        return {
            **self._cards([model], key),
            "start": Part("_start.html", _start(model, starts)),
            "replicas": Part(
                "_replicas.html",
                {
                    "replicas": [_engine(r, self._unix()) for r in model["replicas"]],
                    "static": model["engine"] == "static",
                },
            ),
            "history": Part("_starts.html", {"starts": timeline.history(starts), "of_one": True}),
        }

    async def _starts(self, key: Key, subject: str) -> Scene:
        under_way = [model for model in self._plane.models(key) if model["start"] is not None]
        running = [{"model": model["id"], **timeline.running(model["start"], model["phase"])} for model in under_way]
        starts = await self._recent.of(key, "")
        return {
            "running": Part("_running.html", {"running": running}),
            "history": Part("_starts.html", {"starts": timeline.history(starts), "of_one": False}),
        }

    async def _servers(self, key: Key, subject: str) -> Scene:
        """Every server of every model, and the gateways."""
        found = lanes.found(self._plane.models(key), self._plane.servers(key), self._doors.endpoints(key))
        groups = lanes.groups(found, self._unix())
        cards = {values.dom_id("s", str(g["model"])): Part("_servers.html", {**g, "admin": may(key)}) for g in groups}
        gateways = Part("_gateways.html", {"gateways": lanes.gateways(self._doors.gateways(), self._unix())})
        return {"totals": Part("_server_totals.html", lanes.totals(found)), **cards, "gateways": gateways}

    async def _gpus(self, key: Key, subject: str) -> Scene:
        gpus = self._plane.gpus(key)
        cards = {values.dom_id("g", gpu["uuid"]): Part("_gpu.html", memory.gpu_card(gpu)) for gpu in gpus}
        return {"totals": Part("_gpu_totals.html", memory.totals(gpus)), **cards}

    async def _requests(self, key: Key, subject: str) -> Scene:
        rows = self.request_rows(key)
        return {
            "request-totals": Part("_request_totals.html", pulse.totals(rows)),
            "request-rows": Part("_request_rows.html", {"rows": rows}),
        }

    def _found(self, key: Key, name: str) -> Json | None:
        return next((model for model in self._plane.models(key) if model["id"] == name), None)

    def _cards(self, models: Sequence[Json], key: Key) -> Scene:
        names, now = values.gpu_names(self._plane.gpus(key)), self._unix()
        rights = {"admin": may(key), "chats": may(key, Scope.REALTIME)}
        cards = ((model["id"], values.model_card(model, names, now)) for model in models)
        return {values.dom_id("m", id): Part("_model.html", {**card, **rights}) for id, card in cards}


def _start(model: Json, starts: list[Json]) -> Json:
    """The start under way, else the last one, as a waterfall; with what is usual for this model."""
    if model["start"] is not None:
        return {"title": "Start under way", "fall": timeline.running(model["start"], model["phase"])}
    last = next((start for start in starts if not start["wake"]), None)
    if last is None:
        return {"title": "No start yet", "fall": None}
    title = "Last start" if last["outcome"] == "ready" else "Last start, which failed"
    earlier = [start for start in starts if start is not last]
    return {"title": title, "fall": timeline.waterfall(last["seconds"], timeline.usual(earlier))}


def _engine(replica: Json, now_unix: float) -> Json:
    """One engine; when it was made, not how old it is, so that it stays the same."""
    kept = {
        name: replica[name] for name in ("id", "phase", "host", "endpoint", "gpus", "in_flight", "adopted", "error")
    }
    return {**kept, "made_unix": round(now_unix - replica["age_s"])}
