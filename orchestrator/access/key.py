"""What a key is: frozen values, and the look-up of one by its secret. Pure."""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.metering.limits import NONE, Limits
from orchestrator.model import Scope

TENANT_DEFAULT = "default"
"""Who owns what is made while there is no key file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """What one secret may do."""

    name: str
    scopes: frozenset[Scope]
    tenant: str = TENANT_DEFAULT
    """Who owns what it makes. Keys of one tenant see each other's files."""
    models: tuple[str, ...] = ("*",)
    """Patterns as in a shell, but ``*`` crosses ``/``."""
    expires_unix: float | None = None
    limits: Limits = NONE
    priority: int = 0
    """Where requests wait for a model: each step up goes twice as often."""

    def may_use(self, model: str) -> bool:
        """Whether the model is among its patterns."""
        if "*" in self.models:
            return True
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)


ANYBODY = Key(name="", scopes=frozenset(Scope))
"""Who calls where no key file is: loopback only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """One reading of the key file: keys by the digest of their secret."""

    by_digest: Mapping[str, Key] = field(default_factory=dict)
    plain: tuple[str, ...] = ()
    """The names of keys whose secret stands in the file itself."""

    def find(self, secret: str, now_unix: float) -> Key | None:
        """The key of a secret; None when there is none, or it has expired.

        The look-up is by digest, so its time tells nothing of a secret; the comparison is constant-time.
        """
        digest = digest_of(secret)
        for known, key in self.by_digest.items():
            if hmac.compare_digest(known, digest):
                return _in_force(key, now_unix)
        return None

    def of(self, digest: str, now_unix: float) -> Key | None:
        """The key whose secret has that digest; None when there is none, or it has expired."""
        key = self.by_digest.get(digest)
        return None if key is None else _in_force(key, now_unix)


def digest_of(secret: str) -> str:
    """Hex of its SHA-256, which is all that is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _in_force(key: Key, now_unix: float) -> Key | None:
    return key if key.expires_unix is None or now_unix < key.expires_unix else None
