"""The key file: read strictly, and changed by one at a time. It holds digests only; a secret is seen once, when it
is made."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.access.key import Key, Keys, digest_of
from orchestrator.errors import ConfigError
from orchestrator.metering.limits import NONE, Limits
from orchestrator.model import Scope

SECRET_PREFIX = "orc_"
SECRET_BYTES = 32
KEYS_BYTES_MAX = 4 * 2**20
LIMITS = tuple(field.name for field in fields(Limits))
LIMIT_MAX = 10**15
PRIORITY_MAX = 10
SHOWN = ("name", "tenant", "scopes", "models", *LIMITS, "priority", "expires")
FIELDS = (*SHOWN, "sha256", "key")
TYPO_RATIO_MIN = 0.8
"""`difflib`'s likeness from which on an unknown field is taken for a known one, misspelt."""
NAME_CHARS_MAX = 100
"""Of a key's name, and of a tenant's."""
WRITE_WAIT_S = 10.0
"""How long one who changes the file waits for another who does."""
_SENDABLE = re.compile("[\\x21-\\x7e]+")
_OUT_OF_SIGHT = (0, 0, 0)


def read_keys(path: Path) -> Keys:
    """Read a key file; blocks on a small file. Raises `ConfigError` that names the entry, never a secret."""
    by_digest: dict[str, Key] = {}
    entries = _entries(_read(path), path)
    for entry in entries:
        name = entry["name"]
        digest = _digest(path, name, entry)
        if digest in by_digest:
            raise ConfigError(f"{path}: key {name!r} has the secret of another")
        by_digest[digest] = _key(path, name, entry)
    return Keys(by_digest=by_digest, plain=tuple(entry["name"] for entry in entries if "key" in entry))


def is_there(path: Path) -> bool:
    """Whether there is a key file, one that can't be read too."""
    return stamp(path) is not None


def new_key(
    path: Path,
    name: str,
    scopes: list[Scope],
    *,
    models: list[str],
    expires: str | None,
    tenant: str | None = None,
    limits: Mapping[str, int] | None = None,
) -> str:
    """Add a key; returns its secret, which is kept nowhere. Raises `ConfigError`. Blocks, at most `WRITE_WAIT_S`.

    `limits` are some of `LIMITS`, and ``priority``.
    """
    if not _is_name(name):
        raise ConfigError(f"a key's name is 1 to {NAME_CHARS_MAX} printable characters")
    secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    entry: dict[str, Any] = {
        "name": name,
        "sha256": digest_of(secret),
        "scopes": [str(scope) for scope in scopes],
    }
    if tenant is not None:
        entry["tenant"] = tenant
    if models:
        entry["models"] = models
    entry |= limits or {}
    if expires is not None:
        entry["expires"] = expires
    made = _key(path, name, entry)
    if made.expires_unix is not None and made.expires_unix <= time.time():
        raise ConfigError(f"key {name!r} would have expired already, at {expires}")
    with _locked(path):
        found = _read(path) if is_there(path) else {"keys": []}
        entries = _entries(found, path)
        if any(other["name"] == name for other in entries):
            raise ConfigError(f"there is a key {name!r} already; revoke it first")
        _write(path, {**found, "keys": [*entries, entry]})
    return secret


def list_keys(path: Path) -> list[dict[str, Any]]:
    """The entries' known fields, so no digest, and no secret under a misspelt one. Raises `ConfigError`."""
    entries = _entries(_read(path), path) if is_there(path) else []
    return [{k: v for k, v in entry.items() if k in SHOWN} for entry in entries]


def revoke_key(path: Path, name: str) -> None:
    """Remove a key. Raises `ConfigError` when there is none of that name. Blocks as `new_key` does."""
    if not is_there(path):
        raise ConfigError(f"there is no key {name!r}: there is no file {path}")
    with _locked(path):
        found = _read(path)
        entries = _entries(found, path)
        left = [entry for entry in entries if entry["name"] != name]
        if len(left) == len(entries):
            raise ConfigError(f"there is no key {name!r}")
        _write(path, {**found, "keys": left})


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > KEYS_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {KEYS_BYTES_MAX} bytes")
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f'{path}: it should be {{"keys": […]}}')
    return found


def _entries(found: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    entries = found.get("keys")
    if not isinstance(entries, list):
        raise ConfigError(f'{path}: it should be {{"keys": […]}}')
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_name(entry.get("name")):
            raise ConfigError(f"{path}: keys[{place}] has no name (1 to {NAME_CHARS_MAX} printable characters)")
    return entries


def _is_name(name: object) -> bool:
    """It is shown on terminals and in logs."""
    return isinstance(name, str) and 0 < len(name) <= NAME_CHARS_MAX and name.isprintable() and not name.isspace()


def _digest(path: Path, name: str, entry: Mapping[str, Any]) -> str:
    plain, digest = entry.get("key"), entry.get("sha256")
    if "key" in entry:
        if digest is not None or not isinstance(plain, str) or not _SENDABLE.fullmatch(plain):
            raise ConfigError(f"{path}: key {name!r}: key is visible ASCII, and stands without sha256")
        return digest_of(plain)
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise ConfigError(f"{path}: key {name!r} needs sha256: 64 hex digits")
    return digest.lower()


def _key(path: Path, name: str, entry: Mapping[str, Any]) -> Key:
    for field in entry.keys() - set(FIELDS):  # notes are welcome, a limit that is none because of a typo is not
        if meant := difflib.get_close_matches(field, FIELDS, n=1, cutoff=TYPO_RATIO_MIN):
            raise ConfigError(f"{path}: key {name!r}: unknown field {field!r}; did you mean {meant[0]}?")
    scopes, models = entry.get("scopes"), entry.get("models", ["*"])
    if not isinstance(scopes, list) or not scopes or not all(isinstance(s, str) and s in set(Scope) for s in scopes):
        raise ConfigError(f"{path}: key {name!r}: scopes are some of {', '.join(Scope)}")
    if not isinstance(models, list) or not all(isinstance(m, str) and m for m in models):
        raise ConfigError(f"{path}: key {name!r}: models is a list of patterns")
    tenant = entry.get("tenant", name)
    if not _is_name(tenant):
        raise ConfigError(f"{path}: key {name!r}: tenant is 1 to {NAME_CHARS_MAX} printable characters")
    return Key(
        name=name,
        scopes=frozenset(Scope(s) for s in scopes),
        tenant=tenant,
        models=tuple(models),
        expires_unix=_expiry(path, name, entry.get("expires")),
        limits=_limits(path, name, entry),
        priority=_whole(path, name, entry, "priority", -PRIORITY_MAX, PRIORITY_MAX) or 0,
    )


def _limits(path: Path, name: str, entry: Mapping[str, Any]) -> Limits:
    found = {field: _whole(path, name, entry, field, 1, LIMIT_MAX) for field in LIMITS}
    given = {field: value for field, value in found.items() if value is not None}
    return Limits(**given) if given else NONE


def _whole(path: Path, name: str, entry: Mapping[str, Any], field: str, low: int, high: int) -> int | None:
    """A whole number; None where none is given."""
    value = entry.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{path}: key {name!r}: {field} is a whole number from {low} to {high}")
    return value


def _expiry(path: Path, name: str, text: object) -> float | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        raise ConfigError(f"{path}: key {name!r}: expires is a time as 2027-01-31T00:00:00Z") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among those who change the file: two at once would lose one's key."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / f".{path.name}.lock", timeout=WRITE_WAIT_S):
            yield
    except Timeout:
        raise ConfigError(f"{path}: somebody else has been changing it for {WRITE_WAIT_S:.0f} s") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file at once, readable by its owner only. A link stays, what it points to is replaced."""
    path = path.resolve()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None only where there is none, so that one out of sight opens nothing."""
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _OUT_OF_SIGHT if path.is_symlink() else None
    except OSError:
        return _OUT_OF_SIGHT
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
