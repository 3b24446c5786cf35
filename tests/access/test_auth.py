"""Keys: digests, scopes, patterns, expiry, reloading. PROMISES S3, S4."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from orchestrator.access.auth import KeyRing, bearer
from orchestrator.access.key import ANYBODY, Key, Keys
from orchestrator.access.key_file import list_keys, new_key, read_keys, revoke_key
from orchestrator.errors import ApiError, ConfigError
from orchestrator.metering.limits import NONE, Limits
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


def test_one_of_several_scopes_is_enough(tmp_path: Path) -> None:
    ring = KeyRing(file(tmp_path / "keys", entry(), entry("b", "t", scopes=["monitor"])))
    assert ring.admit(call("s"), Scope.UPLOAD, Scope.REALTIME).name == "a"
    with pytest.raises(ApiError, match="lacks the scope upload or realtime"):
        ring.admit(call("t"), Scope.UPLOAD, Scope.REALTIME)


def test_a_key_is_its_own_tenant_unless_it_names_one(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    alone = new_key(path, "alone", [Scope.UPLOAD], models=[], expires=None)
    shared = new_key(path, "shared", [Scope.UPLOAD], models=[], expires=None, tenant="physics")
    ring = KeyRing(path)
    assert ring.admit(call(alone), Scope.UPLOAD).tenant == "alone"
    assert ring.admit(call(shared), Scope.UPLOAD).tenant == "physics"
    assert [key.get("tenant") for key in list_keys(path)] == [None, "physics"]
    assert ANYBODY.tenant == "default"


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
        {"name": "a", "key": "", "scopes": ["realtime"]},
        {"name": "a", "key": "s\ud800", "scopes": ["realtime"]},
        {"name": "a\n", "key": "s", "scopes": ["realtime"]},
        entry(key="s"),
        entry(scopes=[{"a": 1}]),
        entry(scopes=["root"]),
        entry(scopes=[]),
        entry(models="a"),
        entry(expires="soon"),
        entry(tenant=""),
        entry(tenant="a\nb"),
        entry(tenant=None),
        entry(tenant=7),
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


def test_a_plain_key_works_with_a_warning_that_does_not_say_it(tmp_path: Path) -> None:
    path = file(tmp_path / "keys", {"name": "a", "key": "canary", "scopes": ["realtime"]})
    with capture_logs() as logged:
        ring = KeyRing(path)
    assert ring.admit(call("canary"), Scope.REALTIME).name == "a"
    assert [line["log_level"] for line in logged] == ["warning"]
    assert "canary" not in repr(logged)


def test_what_can_not_be_looked_at_does_not_open(tmp_path: Path) -> None:
    """A link to nowhere, or a folder in the way, is no reason to let everybody in."""
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "folder").mkdir()
    for name in ("link", "folder"):
        with pytest.raises(ConfigError):
            KeyRing(tmp_path / name)


def test_changes_keep_what_they_do_not_know(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    kept = entry(max_concurrent=8, note="mine")
    path.write_text(json.dumps({"keys": [kept], "comment": "ours"}))
    new_key(path, "b", [Scope.ADMIN], models=["Qwen/*"], expires="2027-01-31T00:00:00Z")
    revoke_key(path, "b")
    assert json.loads(path.read_text()) == {"keys": [kept], "comment": "ours"}
    assert list_keys(path) == [{"name": "a", "scopes": ["realtime"], "max_concurrent": 8}]


@pytest.mark.parametrize("field", ["request_per_minute", "scope", "max_concurrency", "token_per_month"])
def test_a_misspelt_field_is_no_note(tmp_path: Path, field: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown field '{field}'; did you mean"):
        KeyRing(file(tmp_path / "keys", {**entry(), field: 5}))


def test_a_budget_needs_usage_to_be_counted(tmp_path: Path) -> None:
    path = file(tmp_path / "keys", entry(tokens_per_month=5))
    assert KeyRing(path).in_force()
    with pytest.raises(ConfigError, match=r"usage\.enabled"):
        KeyRing(path, counted=False)


@pytest.mark.parametrize("expires", ["", "2020-01-31T00:00:00Z"])
def test_no_key_is_made_that_never_expires_by_mistake_or_has_expired(tmp_path: Path, expires: str) -> None:
    with pytest.raises(ConfigError, match="expire"):
        new_key(tmp_path / "keys", "a", [Scope.ADMIN], models=[], expires=expires)


def test_keys_made_at_once_are_all_kept(tmp_path: Path) -> None:
    path, names = tmp_path / "keys", [f"k{i}" for i in range(16)]
    threads = [
        threading.Thread(target=new_key, args=(path, name, [Scope.ADMIN]), kwargs={"models": [], "expires": None})
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made["name"] for made in list_keys(path)) == sorted(names)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1b[2J", "a" * 101])
def test_a_name_that_would_spoil_the_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        new_key(tmp_path / "keys", name, [Scope.ADMIN], models=[], expires=None)
    assert not (tmp_path / "keys").exists()


@given(st.text(), st.text())
def test_a_secret_finds_its_own_key_only(secret: str, other: str) -> None:
    digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
    keys = Keys(by_digest={digest: Key(name="k", scopes=frozenset())})
    assert keys.find(secret, 0.0) is not None
    assert (keys.find(other, 0.0) is not None) == (other == secret)


@given(st.from_regex("[A-Za-z0-9._/-]{0,20}", fullmatch=True), st.from_regex("[A-Za-z0-9._/-]{0,20}", fullmatch=True))
def test_a_star_stands_for_anything_and_all_else_for_itself(start: str, end: str) -> None:
    key = Key(name="k", scopes=frozenset(), models=(f"{start}*",))
    assert key.may_use(start + end)
    assert key.may_use(end) == end.startswith(start)


def test_the_service_has_a_key_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    new_key(path, "ci", [Scope.UPLOAD], models=[], expires=None)
    ring = KeyRing(path)
    secret = ring.own(Key(name="", scopes=frozenset({Scope.REALTIME})))
    headers = [(b"authorization", f"Bearer {secret}".encode())]
    ring.refresh()
    assert ring.admit(headers, Scope.REALTIME).scopes == {Scope.REALTIME}
    with pytest.raises(ApiError):
        ring.admit(headers, Scope.UPLOAD)
    assert secret not in path.read_text()


def test_limits_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    new_key(path, "a", [Scope.REALTIME], models=[], expires=None, limits={"requests_per_minute": 6, "priority": -2})
    assert list_keys(path)[0]["requests_per_minute"] == 6
    (key,) = read_keys(path).by_digest.values()
    assert (key.limits, key.priority) == (Limits(requests_per_minute=6), -2)
    (key,) = read_keys(file(path, entry())).by_digest.values()
    assert key.limits is NONE


@pytest.mark.parametrize(
    "more",
    [
        {"requests_per_minute": 0},
        {"tokens_per_minute": "many"},
        {"max_concurrent": 1.5},
        {"request_bytes_max": True},
        {"tokens_per_month": -1},
        {"priority": 11},
    ],
)
def test_limits_are_whole_numbers(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(more))):
        read_keys(file(tmp_path / "keys", entry(**more)))
