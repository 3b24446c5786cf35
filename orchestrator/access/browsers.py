"""What a web page may make a browser ask of us.

A page of another site can make its visitor's browser send requests here, with our cookie or, where no key file is, to
a service that lets everybody on this machine do everything. So requests of browsers are judged by what browsers say of
them and pages can't forge: ``Sec-Fetch-Site``, ``Origin`` and ``Host``. Those that bring an API key are not: no page
of another site knows one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator import wire
from orchestrator.access.auth import bearer
from orchestrator.answering import CYCLE
from orchestrator.errors import ApiError
from orchestrator.upstream import Headers

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
PREFLIGHT_S = 600
SHOWN = b"x-request-id, retry-after, preference-applied, openai-poll-after-ms"
"""The fields of an answer that a page of an allowed origin may read."""
_MARKS = frozenset({b"origin", b"sec-fetch-site", b"cookie"})


@dataclass(frozen=True, slots=True)
class Said:
    """What a request says of where it comes from."""

    method: str
    host: str
    origin: str
    site: str
    """``Sec-Fetch-Site``; browsers leave it out where the page is neither HTTPS nor on this machine."""
    mode: str
    has_key: bool


def said(method: str, headers: Headers) -> Said:
    """Read it from a request's head."""
    found = {
        name: value.decode("latin-1")
        for name, value in headers
        if name in (b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode")
    }
    return Said(
        method=method,
        host=found.get(b"host", "").lower(),
        origin=found.get(b"origin", ""),
        site=found.get(b"sec-fetch-site", ""),
        mode=found.get(b"sec-fetch-mode", ""),
        has_key=bearer(headers) is not None,
    )


def by_browser(headers: Headers) -> bool:
    """Whether a request may come from a web page. Cheap."""
    for name, _ in headers:  # noqa: SIM110 - on the hot path: a third of what any() takes
        if name in _MARKS:
            return True
    return False


def objection(asked: Said, *, everybody: bool, origins: Collection[str]) -> str:
    """Why a request is refused; empty: it is not. `everybody`: no key is needed.

    1. With no key needed, under a name that anybody could have pointed here (DNS rebinding): refused.
    2. From a page of an allowed origin: let through. With a key, where one is needed: too.
    3. From a page of another origin: refused, but for following a link to us.
    4. A change, in no page's name: let through; browsers say where changes come from.
    """
    if everybody and not _names_this_machine(asked.host):
        return "this service has no keys, so it answers to the names of this machine only; make a key to open it"
    if asked.origin in origins or (asked.has_key and not everybody):
        return ""
    if asked.site:
        ours = asked.site in ("same-origin", "none")
    else:
        ours = not asked.origin or asked.origin.partition("://")[2].lower() == asked.host
    follows = asked.method in SAFE and asked.mode == "navigate"
    return "" if ours or follows else "a page of another site may not ask this"


class Browsers:
    """ASGI: refuses what pages of other sites have no business to ask, and lets those of `origins` read answers."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        everybody: Callable[[], bool],
        origins: Collection[str],
        request_id: Callable[[], bytes],
    ) -> None:
        """`everybody`: whether no key is needed now."""
        self._app = app
        self._request_id = request_id
        self._everybody = everybody
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: Headers = scope["headers"]
        asked = said(scope["method"], headers)
        why = objection(asked, everybody=self._everybody(), origins=self._origins)
        if why:
            await wire.send_error(send, ApiError(403, why, code="cross_site"), self._request_id())
            return
        if asked.origin in self._origins:
            self._let_read(scope, asked.origin.encode())
            if asked.method == "OPTIONS" and any(name == b"access-control-request-method" for name, _ in headers):
                await _preflight(send)
                return
        await self._app(scope, receive, send)

    def _let_read(self, scope: Scope, origin: bytes) -> None:
        """uvicorn puts these on whatever is answered, past ASGI too."""
        cycle = scope["extensions"][CYCLE]
        told = [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", SHOWN),
            (b"vary", b"origin"),
        ]
        cycle.default_headers = [*cycle.default_headers, *told]


async def _preflight(send: Send) -> None:
    allowed = [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", b"*, authorization"),
        (b"access-control-max-age", str(PREFLIGHT_S).encode()),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": allowed})
    await send({"type": "http.response.body", "body": b""})


def _names_this_machine(host: str) -> bool:
    """An address, or a name that nobody else can own: one without a dot, or under localhost. No name: no browser."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return "." not in name or name.endswith(".localhost") or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
