"""Pages: templates, and the fields that keep a page to itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from orchestrator.access.key import Key
from orchestrator.model import Scope
from ui import values
from ui.ports import Json

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
PAGE_FIELDS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "vary": "accept, cookie",
}
HOME = "/dashboard"
STATIC = f"{HOME}/static"
STATIC_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
YEAR_S = 31_536_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One view: the same data for people and for programs."""

    template: str
    title: str
    data: Json
    """What programs get as JSON, and the template as its values."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """For the template alone."""
    status: int = 200


@dataclass(frozen=True, slots=True)
class Tab:
    """An entry of the navigation; shown to keys with one of `scopes`."""

    name: str
    path: str
    icon: str
    scopes: frozenset[Scope]
    under: str = ""
    """Where its pages of single things are, if not under `path`."""

    def holds(self, path: str) -> bool:
        """Whether a page is one of its."""
        return path == self.path or path.startswith(f"{self.under or self.path}/")


_LOOK = frozenset({Scope.MONITOR})
_READ = frozenset({Scope.REALTIME, Scope.UPLOAD})
TABS = (
    Tab("Models", HOME, "models", _LOOK, f"{HOME}/models"),
    Tab("Starts", f"{HOME}/starts", "starts", _LOOK),
    Tab("Servers", f"{HOME}/servers", "servers", _LOOK),
    Tab("GPUs", f"{HOME}/gpus", "gpu", _LOOK),
    Tab("Requests", f"{HOME}/requests", "pulse", _LOOK),
    Tab("Usage", f"{HOME}/usage", "usage", frozenset(Scope)),
    Tab("Logs", f"{HOME}/logs", "logs", _LOOK),
    Tab("Files", f"{HOME}/files", "files", _READ, f"{HOME}/stores"),
    Tab("Search", f"{HOME}/search", "search", _READ),
    Tab("Chat", f"{HOME}/chat", "chat", frozenset({Scope.REALTIME})),
    Tab("Keys", f"{HOME}/keys", "keys", frozenset({Scope.ADMIN})),
)


class Pages:
    """Draws them. Templates escape whatever they are given."""

    def __init__(self, *, version: str, signs_in: Callable[[], bool], unix: Callable[[], float]) -> None:
        """`signs_in`: whether keys are needed now."""
        self.static = _static()
        self._signs_in = signs_in
        self._env = Environment(
            loader=PackageLoader("ui"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._env.globals.update(version=version, asset=self._asset, now=unix, words=values.WORDS, dom_id=values.dom_id)
        self._env.filters.update(
            seconds=values.seconds,
            size=values.size,
            number=values.number,
            brief=values.brief,
            day=values.day,
            ago=lambda moment: values.seconds(max(unix() - moment, 0.0)),
            left=lambda moment: values.seconds(max(moment - unix(), 0.0)),
            share=lambda end, begin: values.share(begin, end, unix()),
            inpath=lambda text: quote(text, safe="/"),
            inquery=lambda text: quote(text, safe=""),
        )

    def answer(self, request: Request, key: Key | None, page: Page) -> Response:
        """The whole page. `key`: of who looks; None: nobody signed in."""
        context = {
            "title": page.title,
            "tabs": [tab for tab in TABS if key is not None and may(key, *tab.scopes)],
            "home": HOME if key is None else first_page(key),
            "here": request.url.path,
            "who": key,
            "admin": key is not None and may(key),
            "signed_in": key is not None and self._signs_in(),
            **page.data,
            **page.more,
        }
        body = self._env.get_template(page.template).render(context)
        return HTMLResponse(body, page.status, headers=PAGE_FIELDS)

    def fragment(self, template: str, id: str, content: Mapping[str, Any], *, swap: bool) -> Markup:
        """A part of a page. With `swap` htmx puts it in the place of the element with that id."""
        oob = Markup(' hx-swap-oob="true"') if swap else Markup("")
        return Markup(self._env.get_template(template).render(id=id, oob=oob, **content))

    def asset(self, name: str) -> Response | None:
        """A file of our own, or one that we brought along. Its address changes with its content."""
        content = self.static.get(name)
        if content is None:
            return None
        fields = {
            "cache-control": f"public, max-age={YEAR_S}, immutable",
            "x-content-type-options": "nosniff",
            "cross-origin-resource-policy": "same-origin",
            "content-security-policy": "default-src 'none'",
        }
        kind = STATIC_TYPES["." + name.rpartition(".")[2]]
        return Response(content, media_type=kind, headers=fields)

    def _asset(self, name: str) -> str:
        return f"{STATIC}/{name}?v={hashlib.sha256(self.static[name]).hexdigest()[:12]}"


def may(key: Key, *scopes: Scope) -> bool:
    """Whether the key has one of the scopes, or `admin`, which may do everything."""
    return Scope.ADMIN in key.scopes or not key.scopes.isdisjoint(scopes)


def first_page(key: Key) -> str:
    """The first of the navigation that the key may see; `HOME` where there is none, which says why."""
    return next((tab.path for tab in TABS if may(key, *tab.scopes)), HOME)


def wants_json(request: Request) -> bool:
    """Whether a program asks: by ``?format=json``, or by preferring JSON, as it says in ``Accept``."""
    if "format" in request.query_params:
        return request.query_params["format"] == "json"
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "text/html" not in accept


def _static() -> dict[str, bytes]:
    folder = resources.files("ui") / "static"
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if any(file.name.endswith(suffix) for suffix in STATIC_TYPES)
    }
