"""What moves on a page: parts with an id, a template and values; drawn once, and again where values change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from orchestrator.key import Key
from orchestrator.model import Scope
from ui import values
from ui.pages import may
from ui.ports import Json, Plane


@dataclass(frozen=True, slots=True)
class Part:
    """One element of a page."""

    template: str
    values: Json


Scene = dict[str, Part]
"""By the element's id, in the order of the page."""
Painter = Callable[[Key, str], Awaitable[Scene]]
"""Looks at the service now, for a key, and for the model that a page is about (empty: for all)."""


class Scenes:
    """The painters of all pages that move."""

    def __init__(self, plane: Plane, unix: Callable[[], float]) -> None:
        self._plane = plane
        self._unix = unix

    def painters(self) -> dict[str, Painter]:
        """By the name of the page."""
        return {"models": self._models, "model": self._model}

    async def _models(self, key: Key, subject: str) -> Scene:
        models = self._plane.models(key)
        names = values.gpu_names(self._plane.gpus(key))
        cards = {values.dom_id("m", model["id"]): self._card(model, names, key) for model in models}
        return {"summary": Part("_summary.html", values.summary(models)), **cards}

    async def _model(self, key: Key, subject: str) -> Scene:
        names = values.gpu_names(self._plane.gpus(key))
        found = [model for model in self._plane.models(key) if model["id"] == subject]
        return {values.dom_id("m", model["id"]): self._card(model, names, key) for model in found}

    def _card(self, model: Json, names: dict[str, str], key: Key) -> Part:
        card = values.model_card(model, names, self._unix())
        return Part("_model.html", {**card, "admin": may(key), "chats": may(key, Scope.REALTIME)})
