"""Browsers that have signed in: a cookie in place of a key, kept in memory until it expires or the key does."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.access.key import Key, digest_of
from orchestrator.model import Scope
from orchestrator.upstream import Headers

SESSION_S = 12 * 3600.0
"""A working day; then the browser signs in anew."""
SESSIONS_OF_KEY_MAX = 100
"""Beyond it the key's own oldest ends: nobody signs others out."""
SESSIONS_MAX = 1000
"""Beyond it the oldest ends of the key that has the most."""
LINK_S = 600.0
"""How long the sign-in link of ``serve`` holds."""
TOKEN_BYTES = 32
OPERATOR = Key(name="operator", scopes=frozenset(Scope))
"""Who signs in by the link on the terminal of ``serve``: that terminal could read every file of the service."""


@dataclass(frozen=True, slots=True)
class Session:
    """One browser."""

    digest: str | None
    """Of the secret of its key; None: it came by the link, and is the `OPERATOR`."""
    ends_at: float


class Sessions:
    """All of them. Cookies' values are kept as digests, so that memory holds nothing that could be sent."""

    def __init__(self, *, name: str, monotonic: Callable[[], float]) -> None:
        """`name`: of the cookie. Cookies know no ports, so services of one host need names of their own."""
        self.cookie = name
        self._field = name.encode() + b"="
        self._monotonic = monotonic
        self._sessions: dict[str, Session] = {}
        self._link: Session | None = None
        self._link_digest = ""

    def begin(self, secret_digest: str | None) -> str:
        """A new session for the key with that digest; returns the cookie's value."""
        now = self._monotonic()
        self._sessions = {key: session for key, session in self._sessions.items() if now < session.ends_at}
        self._make_room(secret_digest)
        value = secrets.token_urlsafe(TOKEN_BYTES)
        self._sessions[digest_of(value)] = Session(secret_digest, now + SESSION_S)
        return value

    def find(self, headers: Headers) -> Session | None:
        """The session whose cookie a request bears."""
        value = self._value(headers)
        if value is None:
            return None
        session = self._sessions.get(digest_of(value))
        return session if session is not None and self._monotonic() < session.ends_at else None

    def end(self, headers: Headers) -> None:
        """Sign a browser out."""
        if (value := self._value(headers)) is not None:
            self._sessions.pop(digest_of(value), None)

    def make_link(self) -> str:
        """The token of a link that signs in once, within `LINK_S`. An older one is void."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._link, self._link_digest = Session(None, self._monotonic() + LINK_S), digest_of(token)
        return token

    def follow_link(self, token: str) -> str | None:
        """A session's cookie for the token of the link; None when it is void."""
        link = self._link
        if link is None or self._monotonic() >= link.ends_at:
            return None
        if not secrets.compare_digest(digest_of(token), self._link_digest):
            return None
        self._link = None
        return self.begin(None)

    def _make_room(self, secret_digest: str | None) -> None:
        """For one more session of the key with that digest."""
        held = Counter(session.digest for session in self._sessions.values())
        if held[secret_digest] >= SESSIONS_OF_KEY_MAX:
            loser = secret_digest
        elif len(self._sessions) >= SESSIONS_MAX:
            loser = held.most_common(1)[0][0]
        else:
            return
        del self._sessions[next(value for value, session in self._sessions.items() if session.digest == loser)]

    def _value(self, headers: Headers) -> str | None:
        for name, value in headers:
            if name != b"cookie" or self._field not in value:
                continue
            for pair in value.split(b";"):
                if (pair := pair.strip()).startswith(self._field):
                    return pair[len(self._field) :].decode("latin-1")
        return None
