"""Signing in and out: a key is exchanged at once for a cookie, so that it stays out of logs and history."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from orchestrator.access.auth import KeyRing
from orchestrator.access.key import digest_of
from orchestrator.access.sessions import SESSION_S, Sessions
from orchestrator.errors import ApiError
from orchestrator.model import Scope
from orchestrator.reader import read_body
from ui.pages import HOME, PAGE_FIELDS, Page, Pages, first_page

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
            return self._to(SIGN_IN)
        if "key" in query:
            return self._by_key(request, query["key"], HOME)
        return self._begin(request, self._sessions.follow_link(query["token"]), HOME)

    async def show(self, request: Request) -> Response:
        """The page with the form."""
        query = request.query_params
        data = {"failed": "failed" in query, "next": _local(query.get("next", "")), "needs_key": not self._keys.open}
        return self._pages.answer(request, None, Page(template="sign_in.html", title="Sign in", data=data))

    def ask(self, request: Request) -> Response:
        """Instead of a page that needs a key: the way to the form, and back."""
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return self._to(f"{SIGN_IN}?{urlencode({'next': here})}" if request.method == "GET" else SIGN_IN)

    async def sign_in(self, request: Request) -> Response:
        """The form."""
        fields = await form(request)
        return self._by_key(request, fields.get("key", ""), _local(fields.get("next", "")))

    async def sign_out(self, request: Request) -> Response:
        """The end of a session."""
        self._sessions.end(request.scope["headers"])
        answer = self._to(SIGN_IN)
        answer.delete_cookie(self._sessions.cookie, path="/", httponly=True, samesite="strict")
        return answer

    def _by_key(self, request: Request, pasted: str, target: str) -> Response:
        """A session for a key of the file. One that may not see `HOME` begins on the first page that it may see."""
        secret = pasted.strip()
        if self._keys.open:
            return self._begin(request, None, target)
        try:
            key = self._keys.admit([(b"x-api-key", secret.encode("utf-8", "surrogateescape"))], *Scope)
        except ApiError:
            return self._begin(request, None, target)
        seen = first_page(key) if target == HOME else target
        return self._begin(request, self._sessions.begin(digest_of(secret)), seen)

    def _begin(self, request: Request, value: str | None, target: str) -> Response:
        if value is None and self._keys.open:
            return self._to(HOME)
        if value is None:
            back = {} if target == HOME else {"next": target}
            return self._to(f"{SIGN_IN}?{urlencode({'failed': 1, **back})}")
        answer = self._to(target)
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

    def _to(self, path: str) -> Response:
        return RedirectResponse(path, 303, headers=PAGE_FIELDS)


def _local(target: str) -> str:
    return target if _LOCAL.fullmatch(target) else HOME


async def form(request: Request) -> Mapping[str, str]:
    """The fields of a small form; the last of each name. Raises `ApiError` 400 and 413."""
    body = await read_body(request.scope, request.receive, body_bytes_max=FORM_BYTES_MAX)
    try:
        found = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=50)
    except (UnicodeDecodeError, ValueError):
        raise ApiError(400, "the form can't be read", code="invalid_form") from None
    return {name: given[-1] for name, given in found.items()}
