"""Coming in and falling out: where one lands, what a wrong key costs, what a page hears when its session is gone."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from orchestrator.access.key_file import new_key
from orchestrator.access.sessions import SESSIONS_OF_KEY_MAX
from orchestrator.model import Scope
from tests.stub import model_table, service
from tests.ui.test_pages import CONFIG, Signed, live_address

FORM = "/dashboard/sign-in"
LANDS = {Scope.MONITOR: "", Scope.ADMIN: "", Scope.REALTIME: "/usage", Scope.UPLOAD: "/usage"}
"""On which page a key with that scope alone begins."""


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    """A service with a key for each scope, and a browser that may look."""
    folder = tmp_path_factory.mktemp("sign_in")
    keys = folder / "auth.keys.json"
    secrets = {str(scope): new_key(keys, str(scope), [scope], models=[], expires=None) for scope in Scope}
    with (
        service(folder, CONFIG, model_table("acme/a")) as running,
        httpx.Client(base_url=running.url, headers={"accept": "text/html"}, timeout=30) as browser,
    ):
        browser.post(FORM, data={"key": secrets["monitor"]})
        yield Signed(running, browser, keys, secrets)


def test_a_page_whose_session_is_gone_hears_so(signed: Signed) -> None:
    """Also from a service that knows nothing of it: an ``EventSource`` can't tell a redirect from a lost connection."""
    address = live_address(signed.browser, "/dashboard")
    with signed.visitor(accept="text/event-stream", cookie="orc=of-before-the-restart") as visitor:
        answer = visitor.get(address)
    assert (answer.status_code, answer.text) == (200, "event: ended\ndata:\n\n")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"


def test_who_signs_in_again_and_again_signs_nobody_else_out(signed: Signed) -> None:
    with signed.visitor() as other, signed.visitor() as busy:
        other.post(FORM, data={"key": signed.secrets["upload"]})
        for _ in range(SESSIONS_OF_KEY_MAX + 1):
            busy.post(FORM, data={"key": signed.secrets["realtime"]})
        assert other.get("/dashboard/usage").status_code == busy.get("/dashboard/usage").status_code == 200


@pytest.mark.parametrize("around", ["{} ", " {}", "\t{}\r\n"])
def test_space_around_a_pasted_key_is_no_part_of_it(signed: Signed, around: str) -> None:
    with signed.visitor() as visitor:
        pasted = around.format(signed.secrets["monitor"])
        assert visitor.post(FORM, data={"key": pasted}).headers["location"] == "/dashboard"
        assert visitor.get("/dashboard").status_code == 200
        assert visitor.get("/dashboard", params={"key": pasted}).headers["location"] == "/dashboard"


def test_after_a_wrong_key_one_still_gets_where_one_was_going(signed: Signed) -> None:
    with signed.visitor() as visitor:
        answer = visitor.post(FORM, data={"key": "wrong", "next": "/dashboard/search?q=a&store=b"})
        page = visitor.get(answer.headers["location"]).text
        assert "not valid" in page and 'value="/dashboard/search?q=a&amp;store=b"' in page


@pytest.mark.parametrize(("scope", "page"), LANDS.items())
def test_a_key_lands_on_a_page_that_it_may_see(signed: Signed, scope: Scope, page: str) -> None:
    with signed.visitor() as visitor:
        form = {"key": signed.secrets[scope], "next": "/dashboard"}
        answer = visitor.post(FORM, data=form)
        assert answer.headers["location"] == f"/dashboard{page}"
        shown = visitor.get(answer.headers["location"])
        assert shown.status_code == 200
        assert f'class="brand" href="/dashboard{page}"' in shown.text
        elsewhere = visitor.post(FORM, data={**form, "next": "/dashboard/keys"})
        assert elsewhere.headers["location"] == "/dashboard/keys"


@pytest.mark.parametrize("page", ["/nosuch", "/", "/stores", "/sign-out", "/static/no/such"])
def test_a_page_that_is_not_there_is_a_page(signed: Signed, page: str) -> None:
    answer = signed.browser.get(f"/dashboard{page}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "Not found" in answer.text and 'aria-label="Pages"' in answer.text
    told = signed.browser.get(f"/dashboard{page}", headers={"accept": "application/json"})
    assert (told.status_code, told.json()["error"]["code"]) == (404, "not_found")
    with signed.visitor() as visitor:
        assert visitor.get(f"/dashboard{page}").headers["location"].startswith(FORM)
