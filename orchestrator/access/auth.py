"""Who calls, and whether they may: the keys in force, and a request's key among them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import structlog

from orchestrator.access.key import ANYBODY, Key, Keys
from orchestrator.access.key_file import SECRET_BYTES, SECRET_PREFIX, read_keys, stamp
from orchestrator.access.sessions import OPERATOR, Sessions
from orchestrator.errors import ApiError, ConfigError
from orchestrator.model import Scope
from orchestrator.upstream import Headers

log = structlog.get_logger()


class Admission(Protocol):
    """Who may come in; see `KeyRing`."""

    def admit(self, headers: Headers, *scopes: Scope) -> Key:
        """The key of a request that may use one of `scopes`. Raises `ApiError` 401 or 403."""


class KeyRing:
    """The keys in force. Re-reads the file when it changes; a bad or missing one keeps the old in force.

    Raises `ConfigError` when the file is there at start and can't be used.
    """

    def __init__(self, path: Path, sessions: Sessions | None = None, *, counted: bool = True) -> None:
        """`sessions`: the browsers whose cookie stands for a key. `counted`: whether usage is, as budgets need it."""
        self._path = path
        self._sessions = sessions
        self._counted = counted
        self._stamp = stamp(path)
        self._keys = self._read() if self._stamp else None
        self._known: dict[bytes, Key] = {}
        self._ours: dict[bytes, Key] = {}
        self.error = ""

    @property
    def open(self) -> bool:
        """Whether everybody may do everything, since there has been no key file."""
        return self._keys is None

    def own(self, key: Key) -> str:
        """The secret of a key that is in no file: for requests that the service sends to itself, until it ends."""
        secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        self._ours[secret.encode()] = key
        return secret

    def refresh(self) -> None:
        """Take a changed file. Cheap when it has not changed; called every second or so."""
        found = stamp(self._path)
        if found == self._stamp:
            self._known = {}  # expiries are looked at anew
            return
        self._stamp = found
        try:
            self._keys = self._read()
            self.error = ""
        except ConfigError as error:
            self.error = f"the changed key file is not used, the old keys stay in force: {error}"
            log.error("keys_not_reloaded", error=str(error))
        self._known = {}

    def admit(self, headers: Headers, *scopes: Scope) -> Key:
        """The key of a request that may use one of `scopes`. Raises `ApiError` 401 or 403."""
        if self._keys is None:
            return ANYBODY
        secret = bearer(headers)
        if secret is None:
            key = self._signed_in(headers)
        else:
            key = self._known.get(secret) or self._ours.get(secret) or self._find(secret)
        if key.scopes.isdisjoint(scopes) and Scope.ADMIN not in key.scopes:
            raise ApiError(403, f"this key lacks the scope {' or '.join(scopes)}", code="insufficient_scope")
        return key

    def in_force(self) -> tuple[Key, ...]:
        """The keys of the file, expired ones too."""
        return tuple(self.by_digest.values())

    @property
    def by_digest(self) -> Mapping[str, Key]:
        """The same, by the SHA-256 of their secrets."""
        return self._keys.by_digest if self._keys is not None else {}

    def _read(self) -> Keys:
        keys = read_keys(self._path)
        for key in keys.by_digest.values():
            if key.limits.tokens_per_month and not self._counted:
                raise ConfigError(f"{self._path}: key {key.name!r}: tokens_per_month needs usage.enabled = true")
        for name in keys.plain:
            log.warning("plain_key", key=name, remedy="store its sha256 instead: `orchestrator keys new`")
        return keys

    def _signed_in(self, headers: Headers) -> Key:
        """The key that a browser signed in with, as long as it is in force."""
        assert self._keys is not None
        session = self._sessions.find(headers) if self._sessions is not None else None
        if session is None:
            raise _unauthorized("no API key given: send Authorization: Bearer …")
        key = OPERATOR if session.digest is None else self._keys.of(session.digest, time.time())
        if key is None:
            raise _unauthorized("the key of this session is not valid any more")
        return key

    def _find(self, secret: bytes) -> Key:
        assert self._keys is not None
        key = self._keys.find(secret.decode("utf-8", "surrogateescape"), time.time())
        if key is None:
            raise _unauthorized("the API key is not valid")
        self._known[secret] = key
        return key


def bearer(headers: Headers) -> bytes | None:
    """The secret of ``Authorization: Bearer`` or, as Anthropic's SDK sends it, ``x-api-key``."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            return value
    return None


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
