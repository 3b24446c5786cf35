"""Signing in and out: a key is exchanged at once for a cookie, so that it stays out of logs and history."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from orchestrator.auth import KeyRing
from orchestrator.errors import ApiError
from orchestrator.model import Scope
from orchestrator.reader import read_body
from orchestrator.sessions import SESSION_S, Sessions, digest_of
from ui.pages import HOME, PAGE_FIELDS, Page, Pages

FORM_BYTES_MAX = 16 * 2**10
SIGN_IN = f"{HOME}/sign-in"
_LOCAL = re.compile(rf"{HOME}([/?][\w./?=&%+~-]*)?")
"""Where one may be sent after signing in: our own pages."""


class SignIn:
    """The handlers."""

    def __init__(self, pages: Pages, keys: KeyRing, sessions: Sessions) -> None:
        self._pages = pages
        self._keys = keys
        self._sessions = sessions

    def exchange(self, request: Request) -> Response:
        """``/dashboard?key=…`` or ``?token=…``: the same address without, and the cookie if it was good.

        A link on a page of another site signs nobody in: it could be into somebody else's account.
        """
        query = request.query_params
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return self._to(request, SIGN_IN)
        if "key" in query:
            return self._begin(request, self._by_key(query["key"]), HOME)
        return self._begin(request, self._sessions.follow_link(query["token"]), HOME)

    async def show(self, request: Request) -> Response:
        """The page with the form."""
        return self.page(request, failed="failed" in request.query_params)

    async def sign_in(self, request: Request) -> Response:
        """The form."""
        fields = await form(request)
        target = fields.get("next", "")
        return self._begin(request, self._by_key(fields.get("key", "")), target if _LOCAL.fullmatch(target) else HOME)

    async def sign_out(self, request: Request) -> Response:
        """The end of a session."""
        self._sessions.end(request.scope["headers"])
        answer = self._to(request, SIGN_IN)
        answer.delete_cookie(self._sessions.cookie, path="/", httponly=True, samesite="strict")
        return answer

    def page(self, request: Request, *, failed: bool = False, status: int = 200, ended: bool = False) -> Response:
        """The page with the form, in place of one that needs a key."""
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        target = here if status == 401 and request.method == "GET" and _LOCAL.fullmatch(here) else HOME
        data = {"failed": failed, "ended": ended, "next": target, "needs_key": not self._keys.open}
        answer = self._pages.answer(
            request, None, Page(template="sign_in.html", title="Sign in", data=data, status=status)
        )
        if status == 401:
            answer.headers["www-authenticate"] = "Bearer"
        return answer

    def _by_key(self, secret: str) -> str | None:
        """A session's cookie for a key of the file."""
        if self._keys.open:
            return None
        try:
            self._keys.admit([(b"x-api-key", secret.encode("utf-8", "surrogateescape"))], *Scope)
        except ApiError:
            return None
        return self._sessions.begin(digest_of(secret))

    def _begin(self, request: Request, value: str | None, target: str) -> Response:
        if value is None:
            return self._to(request, HOME if self._keys.open else f"{SIGN_IN}?failed=1")
        answer = self._to(request, target)
        forwarded = request.headers.get("x-forwarded-proto", "")
        answer.set_cookie(
            self._sessions.cookie,
            value,
            max_age=int(SESSION_S),
            path="/",
            httponly=True,
            samesite="strict",
            secure="https" in (request.url.scheme, forwarded),
        )
        return answer

    def _to(self, request: Request, path: str) -> Response:
        return RedirectResponse(path, 303, headers=PAGE_FIELDS)


async def form(request: Request) -> Mapping[str, str]:
    """The fields of a small form; the last of each name. Raises `ApiError` 400 and 413."""
    body = await read_body(request.scope, request.receive, body_bytes_max=FORM_BYTES_MAX)
    try:
        found = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=50)
    except (UnicodeDecodeError, ValueError):
        raise ApiError(400, "the form can't be read", code="invalid_form") from None
    return {name: given[-1] for name, given in found.items()}
