"""What pages of other sites may make a browser ask: nothing that changes or tells."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.access.browsers import Said, by_browser, objection, said
from orchestrator.access.key_file import new_key
from orchestrator.model import Scope
from tests.stub import ask, model_table, service, until

OURS = "127.0.0.1:8000"


def asked(method: str = "POST", *, host: str = OURS, key: bool = False, **fields: str) -> Said:
    headers = [(b"host", host.encode())]
    headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    headers += [(b"authorization", b"Bearer orc_x")] if key else []
    return said(method, headers)


@pytest.mark.parametrize(
    ("request_", "fine"),
    [
        (asked(), True),
        (asked(sec_fetch_site="same-origin", origin=f"http://{OURS}"), True),
        (asked(sec_fetch_site="none"), True),
        (asked(sec_fetch_site="same-site", origin="http://127.0.0.1:3000"), False),
        (asked(sec_fetch_site="cross-site", origin="https://evil.example"), False),
        (asked(sec_fetch_site="cross-site", sec_fetch_mode="navigate", origin="https://evil.example"), False),
        (asked(origin=f"http://{OURS}"), True),
        (asked(origin=f"https://{OURS}"), True),
        (asked(origin="http://127.0.0.1:3000"), False),
        (asked(origin="null"), False),
        (asked(origin="http://[broken"), False),
        (asked(origin="https://friend.example", sec_fetch_site="cross-site"), True),
        (asked("GET", sec_fetch_site="cross-site", sec_fetch_mode="navigate"), True),
        (asked("GET", sec_fetch_site="cross-site", sec_fetch_mode="no-cors"), False),
        (asked("GET", sec_fetch_site="same-site", sec_fetch_mode="cors", origin="http://127.0.0.1:1"), False),
        (asked("OPTIONS", sec_fetch_site="cross-site", sec_fetch_mode="cors", origin="https://a.example"), False),
    ],
)
@pytest.mark.parametrize("everybody", [True, False])
def test_who_may_ask(request_: Said, fine: bool, everybody: bool) -> None:
    assert (not objection(request_, everybody=everybody, origins=["https://friend.example"])) is fine


def test_a_page_with_a_key_of_its_own_may_ask_where_keys_count() -> None:
    from_elsewhere = asked(key=True, sec_fetch_site="cross-site", origin="https://a.example")
    assert not objection(from_elsewhere, everybody=False, origins=())
    assert objection(from_elsewhere, everybody=True, origins=())


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("localhost:8000", True),
        ("dash.localhost", True),
        ("orchestrator", True),
        ("10.0.0.7:80", True),
        ("", True),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("user@evil.example", False),
        ("[broken", False),
    ],
)
def test_without_keys_only_names_of_this_machine_are_answered(host: str, fine: bool) -> None:
    assert (not objection(asked("GET", host=host), everybody=True, origins=())) is fine
    assert not objection(asked("GET", host=host), everybody=False, origins=())


@given(st.text(max_size=40), st.text(max_size=40), st.sampled_from(["", "cross-site", "same-site", "x"]))
def test_no_page_of_another_site_changes_anything(origin: str, host: str, site: str) -> None:
    """Whatever it is called: unless its origin is ours, in which case the browser says so."""
    page = Said(
        method="POST", host=host.lower(), origin=f"https://{origin}.evil.example", site=site, mode="", has_key=False
    )
    assert objection(page, everybody=True, origins=())


def test_marks_of_a_browser() -> None:
    assert by_browser([(b"host", b"x"), (b"cookie", b"a=b")])
    assert by_browser([(b"origin", b"null")])
    assert not by_browser([(b"host", b"x"), (b"authorization", b"Bearer a")])


FRIEND = {"origin": "https://friend.example", "sec-fetch-site": "cross-site"}
EVIL = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}


def test_it_holds_on_every_way_in(tmp_path: Path) -> None:
    """The data plane's too, warm and cold; allowed pages may read every kind of answer."""
    head = '[server]\ncors_origins = ["https://friend.example"]\n'
    with service(tmp_path, model_table("acme/a"), head=head) as running, running.client() as client:
        assert client.post("/api/models/acme/a/start", headers=EVIL).status_code == 403
        assert client.post("/v1/chat/completions", json=ask("acme/a"), headers=EVIL).status_code == 403
        assert running.phase("acme/a") == "cold"
        client.post("/api/models/acme/a/start")
        until(lambda: running.phase("acme/a") == "ready")
        for _ in range(2):  # the second over an idle connection to the engine
            assert client.post("/v1/chat/completions", json=ask("acme/a"), headers=EVIL).status_code == 403
            for body in (ask("acme/a"), ask("acme/a", stream=True), ask("unknown")):
                answer = client.post("/v1/chat/completions", json=body, headers=FRIEND)
                assert answer.headers["access-control-allow-origin"] == "https://friend.example"
                assert answer.headers["vary"] == "origin"
        preflight = client.options("/v1/models", headers={**FRIEND, "access-control-request-method": "GET"})
        assert (preflight.status_code, "authorization" in preflight.headers["access-control-allow-headers"]) == (
            204,
            True,
        )
        rebound = client.get("/api/models", headers={"host": "evil.example"})
        assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "cross_site")
        assert "access-control-allow-origin" not in client.get("/api/models").headers


def test_where_keys_count_a_page_needs_one(tmp_path: Path) -> None:
    secret = new_key(tmp_path / "auth.keys.json", "ci", [Scope.MONITOR], models=[], expires=None)
    with service(tmp_path) as running, running.client(host="orchestrator.example") as client:
        assert client.get("/api/models", headers=EVIL).status_code == 403
        with_key: httpx.Response = client.get("/api/models", headers={**EVIL, "authorization": f"Bearer {secret}"})
        assert with_key.status_code == 200
        assert "access-control-allow-origin" not in with_key.headers
