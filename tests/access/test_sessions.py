"""Browsers that have signed in."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.access.auth import KeyRing
from orchestrator.access.key import digest_of
from orchestrator.access.key_file import new_key, revoke_key
from orchestrator.access.sessions import LINK_S, SESSION_S, SESSIONS_MAX, SESSIONS_OF_KEY_MAX, Sessions
from orchestrator.errors import ApiError
from orchestrator.model import Scope
from orchestrator.upstream import Headers


class Clock:
    """Time as a test sets it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(name="orc", monotonic=clock)


def sent(value: str, name: str = "orc") -> Headers:
    return [(b"cookie", f"theme=dark; {name}={value}; x=y".encode())]


def test_a_cookie_finds_its_session_until_it_ends(sessions: Sessions, clock: Clock) -> None:
    value = sessions.begin("digest")
    found = sessions.find(sent(value))
    assert found is not None and found.digest == "digest"
    assert sessions.find(sent(value, "other")) is None
    assert sessions.find(sent(value[:-1])) is None
    assert sessions.find([]) is None
    clock.now = SESSION_S
    assert sessions.find(sent(value)) is None


def test_a_browser_signs_out_alone(sessions: Sessions) -> None:
    mine, other = sessions.begin("a"), sessions.begin("a")
    sessions.end(sent(mine))
    sessions.end(sent(mine))
    assert sessions.find(sent(mine)) is None
    assert sessions.find(sent(other)) is not None


def test_sessions_of_a_key_are_bounded_and_its_oldest_goes(sessions: Sessions) -> None:
    other = sessions.begin("b")
    values = [sessions.begin("a") for _ in range(SESSIONS_OF_KEY_MAX + 1)]
    assert sessions.find(sent(values[0])) is None
    assert sessions.find(sent(values[1])) is not None
    assert sessions.find(sent(other)) is not None


def test_all_sessions_are_bounded_and_whoever_has_most_loses_one(sessions: Sessions) -> None:
    """Many keys together sign out none that has few."""
    other = sessions.begin("other")
    keys = [f"key {number}" for number in range(2 * SESSIONS_MAX // SESSIONS_OF_KEY_MAX)]
    values = [sessions.begin(key) for key in keys for _ in range(SESSIONS_OF_KEY_MAX)]
    found = [value for value in (other, *values) if sessions.find(sent(value)) is not None]
    assert len(found) == SESSIONS_MAX
    assert found[0] == other and found[-1] == values[-1]


def test_nothing_that_could_be_sent_is_kept(sessions: Sessions) -> None:
    value, token = sessions.begin("a"), sessions.make_link()
    assert value not in repr(vars(sessions)) and token not in repr(vars(sessions))


def test_a_link_signs_in_once_and_soon(sessions: Sessions, clock: Clock) -> None:
    token = sessions.make_link()
    assert sessions.follow_link("other") is None
    value = sessions.follow_link(token)
    assert value is not None and sessions.find(sent(value)) is not None
    assert sessions.follow_link(token) is None
    late = sessions.make_link()
    clock.now = LINK_S
    assert sessions.follow_link(late) is None


def test_a_session_may_what_its_key_may_and_ends_with_it(tmp_path: Path, sessions: Sessions) -> None:
    path = tmp_path / "keys.json"
    secret = new_key(path, "ci", [Scope.MONITOR], models=["a/*"], expires=None)
    new_key(path, "other", [Scope.ADMIN], models=[], expires=None)
    ring = KeyRing(path, sessions)
    headers = sent(sessions.begin(digest_of(secret)))
    assert ring.admit(headers, Scope.MONITOR).models == ("a/*",)
    with pytest.raises(ApiError) as lacking:
        ring.admit(headers, Scope.ADMIN)
    assert lacking.value.status == 403
    revoke_key(path, "ci")
    ring.refresh()
    with pytest.raises(ApiError) as revoked:
        ring.admit(headers, Scope.MONITOR)
    assert revoked.value.status == 401


def test_a_key_beside_a_cookie_counts(tmp_path: Path, sessions: Sessions) -> None:
    path = tmp_path / "keys.json"
    secret = new_key(path, "ci", [Scope.MONITOR], models=[], expires=None)
    ring = KeyRing(path, sessions)
    headers = sent(sessions.begin(digest_of(secret)))
    with pytest.raises(ApiError):
        ring.admit([*headers, (b"authorization", b"Bearer wrong")], Scope.MONITOR)


def test_who_came_by_the_link_is_the_operator(tmp_path: Path, sessions: Sessions) -> None:
    path = tmp_path / "keys.json"
    new_key(path, "ci", [Scope.MONITOR], models=[], expires=None)
    value = sessions.follow_link(sessions.make_link())
    assert value is not None
    assert KeyRing(path, sessions).admit(sent(value), Scope.ADMIN).name == "operator"
