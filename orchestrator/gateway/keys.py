"""The keys that a gateway lets in by itself."""

from __future__ import annotations

import time

from orchestrator.access.auth import bearer
from orchestrator.access.key import ANYBODY, Key, Keys, digest_of
from orchestrator.errors import Elsewhere
from orchestrator.gateway.table import Table, keys_of
from orchestrator.model import Scope
from orchestrator.upstream import Headers


class TableKeys:
    """Those of the last table. Implements `auth.Admission`."""

    def __init__(self) -> None:
        self._open = False
        self._keys = Keys()
        self._known: dict[bytes, Key] = {}

    def take(self, table: Table) -> None:
        """These are in force."""
        self._open, self._keys = table.open, Keys(by_digest=keys_of(table.keys))
        self.refresh()

    def refresh(self) -> None:
        """Look at expiries anew. Called every second or so."""
        self._known = {}

    def admit(self, headers: Headers, *scopes: Scope) -> Key:
        """The key of a request that may use one of `scopes`. Raises `Elsewhere`: the controller knows better."""
        if self._open:
            return ANYBODY
        secret = bearer(headers)
        key = None if secret is None else self._known.get(secret) or self._find(secret)
        if key is None or (key.scopes.isdisjoint(scopes) and Scope.ADMIN not in key.scopes):
            raise Elsewhere
        return key

    def _find(self, secret: bytes) -> Key | None:
        key = self._keys.of(digest_of(secret.decode("utf-8", "surrogateescape")), time.time())
        if key is not None:
            self._known[secret] = key
        return key
