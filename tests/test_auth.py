"""Keys: digests, scopes, patterns, expiry, reloading. PROMISES S3, S4."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.auth import ANYBODY, Key, KeyRing, bearer, new_key, read_keys, revoke_key
from orchestrator.errors import ApiError, ConfigError
from orchestrator.model import Scope


def file(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"keys": entries}))
    os.utime(path, ns=(path.stat().st_mtime_ns + len(entries), path.stat().st_mtime_ns + 1000 * len(entries)))
    return path


def entry(name: str = "a", secret: str = "s", **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), "scopes": ["realtime"], **more}


def call(secret: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + secret.encode())]


def test_no_file_lets_everybody_in_and_a_file_nobody_else(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys")
    assert ring.admit([], Scope.ADMIN) is ANYBODY
    file(tmp_path / "keys", entry())
    ring.refresh()
    assert ring.admit(call("s"), Scope.REALTIME).name == "a"
    for headers, scope, status in (
        ([], Scope.REALTIME, 401),
        (call("x"), Scope.REALTIME, 401),
        (call("s"), Scope.ADMIN, 403),
    ):
        with pytest.raises(ApiError) as caught:
            ring.admit(headers, scope)
        assert caught.value.status == status


def test_admin_may_all(tmp_path: Path) -> None:
    ring = KeyRing(file(tmp_path / "keys", entry(scopes=["admin"])))
    for scope in Scope:
        assert ring.admit(call("s"), scope)


def test_expired_keys_are_no_keys(tmp_path: Path) -> None:
    keys = read_keys(file(tmp_path / "keys", entry(expires="2027-01-31T00:00:00Z")))
    assert keys.find("s", 1801267199.0)
    assert keys.find("s", 1801353600.0) is None


@pytest.mark.parametrize(
    ("pattern", "model", "may"),
    [
        ("*", "a/b", True),
        ("Qwen/*", "Qwen/x", True),
        ("Qwen/*", "qwen/x", False),
        ("Qwen/*", "Qwen", False),
        ("a?", "ab", True),
        ("a", "ab", False),
    ],
)
def test_patterns(pattern: str, model: str, may: bool) -> None:
    assert Key(name="k", scopes=frozenset(), models=(pattern,)).may_use(model) is may


def test_a_bad_or_missing_file_keeps_the_old_keys(tmp_path: Path) -> None:
    path = file(tmp_path / "keys", entry())
    ring = KeyRing(path)
    path.write_text("{")
    ring.refresh()
    assert ring.error and ring.admit(call("s"), Scope.REALTIME)
    path.unlink()
    ring.refresh()
    assert ring.error and not ring.open
    with pytest.raises(ApiError):
        ring.admit([], Scope.REALTIME)


def test_revoked_keys_stop_at_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    secret = new_key(path, "ci", [Scope.REALTIME], models=[], expires=None)
    assert secret not in path.read_text() and path.stat().st_mode & 0o777 == 0o600
    ring = KeyRing(path)
    assert ring.admit(call(secret), Scope.REALTIME)
    revoke_key(path, "ci")
    ring.refresh()
    with pytest.raises(ApiError):
        ring.admit(call(secret), Scope.REALTIME)


@pytest.mark.parametrize(
    "bad",
    [
        {"name": ""},
        {"name": "a", "scopes": ["realtime"]},
        {"name": "a", "sha256": "zz", "scopes": ["realtime"]},
        entry(scopes=["root"]),
        entry(scopes=[]),
        entry(models="a"),
        entry(expires="soon"),
        "text",
    ],
)
def test_bad_entries_are_named(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(ConfigError):
        read_keys(file(tmp_path / "keys", bad))


def test_secrets_come_from_headers_only() -> None:
    assert bearer([(b"authorization", b"bearer abc ")]) == b"abc"
    assert bearer([(b"x-api-key", b"abc")]) == b"abc"
    assert bearer([(b"authorization", b"Basic abc")]) is None
    assert bearer([(b"cookie", b"key=abc")]) is None
