"""The dashboard over HTTP, as a browser without scripts sees it: signing in, pages and their JSON, forms, events."""

from __future__ import annotations

import contextlib
import functools
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from orchestrator.access.key_file import new_key, revoke_key
from orchestrator.model import Scope
from tests.stub import Service, model_table, service, until
from ui.events import shape_of
from ui.pages import CSP

CONFIG = '[embeddings]\nmodel = ""\n'
PAGES = (
    "",
    "/starts",
    "/servers",
    "/gpus",
    "/requests",
    "/usage",
    "/logs",
    "/files",
    "/search",
    "/chat",
    "/keys",
    "/models/acme/a",
)
OF_NO_MODEL = ("/gpus", "/servers", "/keys", "/files", "/search", "/usage", "/starts", "/logs")
"""Pages that say nothing of a model that is cold."""
XSS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "</textarea><svg onload=alert(1)>",
    "{{ 7773 * 7 }}{% raw %}",
    "javascript:alert(1)//",
)


@dataclass(frozen=True, slots=True)
class Signed:
    """A running service, and a browser that may do everything."""

    running: Service
    browser: httpx.Client
    keys: Path
    secrets: dict[str, str]

    def visitor(self, **headers: str) -> httpx.Client:
        """A browser that has not signed in."""
        return httpx.Client(base_url=self.running.url, headers={"accept": "text/html", **headers}, timeout=30)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    folder = tmp_path_factory.mktemp("pages")
    keys = folder / "auth.keys.json"
    scopes = {"boss": list(Scope), **{name: [Scope.MONITOR] for name in ("ada", "eve", "kim")}}
    secrets = {name: new_key(keys, name, of, models=[], expires=None) for name, of in scopes.items()}
    with (
        service(folder, CONFIG, model_table("acme/a")) as running,
        httpx.Client(base_url=running.url, headers={"accept": "text/html"}, timeout=30) as browser,
    ):
        browser.post("/dashboard/sign-in", data={"key": secrets["boss"]})
        yield Signed(running, browser, keys, secrets)


# --- signing in and out ---


def test_a_key_in_the_address_is_exchanged_at_once(signed: Signed) -> None:
    secret = signed.secrets["ada"]
    with signed.visitor() as visitor:
        answer = visitor.get("/dashboard", params={"key": secret})
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie
        assert secret not in cookie and answer.headers["referrer-policy"] == "no-referrer"
        assert visitor.get("/dashboard").status_code == 200
    files = [file for file in signed.running.folder.rglob("*") if file.is_file()]
    assert len(files) > 5 and not [file for file in files if secret.encode() in file.read_bytes()]


def test_behind_https_the_cookie_is_for_https_alone(signed: Signed) -> None:
    with signed.visitor() as visitor:
        form = {"key": signed.secrets["ada"]}
        answer = visitor.post("/dashboard/sign-in", data=form, headers={"x-forwarded-proto": "https"})
        assert "; Secure" in answer.headers["set-cookie"]


def test_a_wrong_key_leaves_the_address_too(signed: Signed) -> None:
    with signed.visitor() as visitor:
        answer = visitor.get("/dashboard?key=wrong")
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/sign-in?failed=1")
        assert "set-cookie" not in answer.headers
        assert "not valid" in visitor.get(answer.headers["location"]).text


def test_a_link_of_another_site_signs_nobody_in(signed: Signed) -> None:
    secret = signed.secrets["ada"]
    with signed.visitor(**{"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}) as visitor:
        answer = visitor.get("/dashboard", params={"key": secret})
        assert (answer.status_code, "set-cookie" in answer.headers) == (303, False)


@pytest.mark.parametrize(
    ("target", "sent_to"),
    [
        ("/dashboard/models/acme/a", "/dashboard/models/acme/a"),
        ("/dashboard/search?q=a", "/dashboard/search?q=a"),
        ("https://evil.example", "/dashboard"),
        ("//evil.example", "/dashboard"),
        ("/dashboard\\evil", "/dashboard"),
        ("/dashboardevil", "/dashboard"),
        ("/dashboard/a\r\nset-cookie: a=b", "/dashboard"),
    ],
)
def test_after_signing_in_one_stays_here(signed: Signed, target: str, sent_to: str) -> None:
    with signed.visitor() as visitor:
        answer = visitor.post("/dashboard/sign-in", data={"key": signed.secrets["ada"], "next": target})
        assert answer.headers["location"] == sent_to


def test_without_a_key_every_page_leads_to_the_form_and_back(signed: Signed) -> None:
    with signed.visitor() as visitor:
        answer = visitor.get("/dashboard/search?q=a b")
        assert answer.status_code == 303
        page = visitor.get(answer.headers["location"]).text
        assert 'name="key"' in page and 'value="/dashboard/search?q=a%20b"' in page
        assert visitor.get("/dashboard/gpus?format=json").json()["error"]["code"] == "invalid_api_key"


def test_signing_out_ends_the_session_itself(signed: Signed) -> None:
    with signed.visitor() as visitor:
        visitor.post("/dashboard/sign-in", data={"key": signed.secrets["ada"]})
        cookie = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
        assert visitor.post("/dashboard/sign-out").status_code == 303
        assert not visitor.cookies
        assert visitor.get("/dashboard", headers={"cookie": cookie}).status_code == 303


def test_a_revoked_key_ends_its_sessions_and_their_streams(signed: Signed) -> None:
    with signed.visitor() as visitor:
        visitor.post("/dashboard/sign-in", data={"key": signed.secrets["eve"]})
        with visitor.stream("GET", live_address(visitor, "/dashboard")) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: paint"
            revoke_key(signed.keys, "eve")
            began = time.monotonic()
            assert any(line == "event: ended" for line in lines)
            assert time.monotonic() - began < 5
        assert visitor.get("/dashboard").headers["location"] == "/dashboard/sign-in?next=%2Fdashboard"


def test_a_revoked_key_hears_nothing_more_of_streams_of_the_api(signed: Signed) -> None:
    headers = {"authorization": f"Bearer {signed.secrets['kim']}"}
    with signed.visitor(**headers) as visitor, visitor.stream("GET", "/api/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: model"
        revoke_key(signed.keys, "kim")
        until(lambda: signed.browser.get("/api/models", headers=headers).status_code == 401)
        signed.browser.post("/dashboard/models/acme/a/start")
        assert not [line for line in lines if line.startswith("data:")][1:]
    signed.browser.post("/dashboard/models/acme/a/stop")


def test_serve_prints_a_link_that_signs_in_once_and_on_a_terminal_only(tmp_path: Path, signed: Signed) -> None:
    assert "token=" not in signed.running.log()
    new_key(tmp_path / "auth.keys.json", "ada", [Scope.MONITOR], models=[], expires=None)
    ours, theirs = pty.openpty()
    argv = (sys.executable, "-m", "orchestrator", "serve", "--port", "0")
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        try:
            said = ""
            while (found := re.search(r"dashboard: (\S+token=\S+) \(", said)) is None:
                said += os.read(ours, 4096).decode("utf-8", "replace")
            assert "ada" not in said.partition("dashboard:")[2]
            assert process.stdout is not None and process.stdout.readline().startswith(b"listening on ")
            with httpx.Client(headers={"accept": "text/html"}) as visitor:
                page = urlsplit(found[1])._replace(query="").geturl()
                assert visitor.get(found[1]).headers["location"] == "/dashboard"
                assert visitor.get(f"{page}/keys").status_code == 200
                visitor.cookies.clear()
                assert visitor.get(found[1]).headers["location"] == "/dashboard/sign-in?failed=1"
        finally:
            process.terminate()
            os.close(ours)


def test_a_page_of_another_site_can_not_use_the_cookie(signed: Signed) -> None:
    for headers in ({"sec-fetch-site": "same-site"}, {"origin": "http://127.0.0.1:1"}):
        assert signed.browser.post("/dashboard/models/acme/a/start", headers=headers).status_code == 403
        assert signed.browser.post("/api/models/acme/a/start", headers=headers).status_code == 403
    ours = {"origin": signed.running.url, "sec-fetch-site": "same-origin"}
    assert signed.browser.post("/api/models/acme/a/pull", headers=ours).status_code == 202


# --- pages ---


@pytest.mark.parametrize("page", PAGES)
def test_each_page_is_one_address_for_people_and_programs(signed: Signed, page: str) -> None:
    answer = signed.browser.get(f"/dashboard{page}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"] == CSP
    assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-store", "nosniff")
    told = [
        signed.browser.get(f"/dashboard{page}", headers={"accept": "application/json"}),
        signed.browser.get(f"/dashboard{page}", params={"format": "json"}),
    ]
    assert all(isinstance(each.json(), dict) and each.headers["cache-control"] == "no-store" for each in told)
    assert "acme/a" in answer.text or page in OF_NO_MODEL


def test_pages_ask_for_nothing_but_what_is_here(signed: Signed) -> None:
    text = signed.browser.get("/dashboard").text
    for address in re.findall(r'(?:src|href)="([^"]+)"', text):
        if address.startswith("/dashboard/static/"):
            answer = signed.browser.get(address)
            assert (answer.status_code, "immutable" in answer.headers["cache-control"]) == (200, True)
        assert address.startswith(("/dashboard", "#")), address
    assert signed.browser.get("/dashboard/static/..%2fpages.py").status_code == 404
    assert signed.browser.get("/dashboard/static/MANIFEST.sha256").status_code == 404


def test_a_model_is_woken_pinned_and_stopped_by_forms(signed: Signed) -> None:
    def act(what: str) -> None:
        answer = signed.browser.post(f"/dashboard/models/acme/a/{what}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/models/acme/a")

    def view() -> dict[str, object]:
        found: dict[str, object] = signed.browser.get("/dashboard/models/acme/a?format=json").json()["model"]
        return found

    act("start")
    until(lambda: view()["phase"] == "ready")
    page = signed.browser.get("/dashboard/models/acme/a").text
    assert "Drain" in page and "Last start" in page and "Application startup complete" in log_page(signed)
    act("pin")
    assert view()["pinned"] and "Unpin" in signed.browser.get("/dashboard").text
    act("unpin")
    act("stop")
    until(lambda: view()["phase"] == "cold")
    assert signed.browser.get("/dashboard/starts?format=json").json()["starts"][0]["model"] == "acme/a"
    assert signed.browser.post("/dashboard/models/acme/none/start").status_code == 404


def log_page(signed: Signed) -> str:
    """The page of the newest engine's log."""
    engines = signed.browser.get("/dashboard/logs?format=json").json()["engines"]
    return signed.browser.get(f"/dashboard/logs/{engines[0]['replica']}").text


def test_a_key_without_the_scope_sees_no_buttons_and_is_told_why(signed: Signed) -> None:
    with signed.visitor() as visitor:
        visitor.post("/dashboard/sign-in", data={"key": signed.secrets["ada"]})
        page = visitor.get("/dashboard").text
        assert "acme/a" in page and "/start" not in page.replace("/starts", "") and "/dashboard/chat" not in page
        answer = visitor.post("/dashboard/models/acme/a/start")
        assert (answer.status_code, "lacks the scope admin" in answer.text) == (403, True)


def test_files_go_up_are_read_and_found(signed: Signed) -> None:
    made = signed.browser.post("/dashboard/stores", data={"name": "handbook"})
    store = made.headers["location"]
    content = ("leave.md", b"# Leave\n\nThirty days of leave a year.\n")
    sent = signed.browser.post(f"{store}/files", data={"purpose": "assistants"}, files={"file": content})
    assert (sent.status_code, sent.headers["location"]) == (303, store)
    until(functools.partial(is_read, signed, store))
    assert "Read" in signed.browser.get(store).text
    page = signed.browser.get(
        "/dashboard/search", params={"store": store.rpartition("/")[2], "q": "days of leave"}
    ).text
    assert "Thirty days" in page and "By words" in page
    again = signed.browser.post("/dashboard/files", data={"purpose": "assistants"}, files={"file": content})
    assert again.headers["location"] == "/dashboard/files"
    unknown = signed.browser.post(
        "/dashboard/stores/vs_no/files", data={"purpose": "assistants"}, files={"file": content}
    )
    assert unknown.status_code == 404
    assert signed.browser.get("/dashboard/files?format=json").json()["files"][0]["filename"] == "leave.md"


# --- live ---


def live_address(browser: httpx.Client, page: str) -> str:
    """Where a page hears of changes."""
    found = re.search(r'sse-connect="([^"]+)"', browser.get(page).text)
    assert found
    return found[1].replace("&amp;", "&")


def test_a_live_page_hears_of_a_start(signed: Signed) -> None:
    with signed.browser.stream("GET", live_address(signed.browser, "/dashboard")) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert next(lines) == "event: paint"
        signed.browser.post("/dashboard/models/acme/a/start")
        assert any('data-phase="ready"' in line for line in lines)
    signed.browser.post("/dashboard/models/acme/a/stop")


def test_a_page_that_is_not_there_has_no_events(signed: Signed) -> None:
    assert signed.browser.get("/dashboard/events?page=nothing&format=json").status_code == 404
    with signed.browser.stream("GET", f"/dashboard/events?page=model&subject=none&shape={shape_of({})}") as stream:
        assert stream.status_code == 200


# --- names are data ---


class Tags(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def inert(page: str) -> bool:
    """Whether all scripts are ours, and no element has a handler."""
    tags = Tags()
    tags.feed(page)
    scripts = [attrs.get("src") or "" for tag, attrs in tags.seen if tag == "script"]
    handlers = [name for _, attrs in tags.seen for name in attrs if name.startswith("on")]
    links = [attrs.get("href") or "" for tag, attrs in tags.seen if tag == "a"]
    return (
        all(src.startswith("/dashboard/static/") for src in scripts)
        and not handlers
        and not any(link.startswith("javascript:") for link in links)
        and not any(tag == "img" for tag, _ in tags.seen)
    )


def is_read(signed: Signed, store: str) -> bool:
    """Whether the store's newest file has been read."""
    status = signed.browser.get(f"{store}?format=json").json()["files"][0]["status"]
    return bool(status == "completed")


def test_hostile_names_are_words_on_every_page(signed: Signed) -> None:
    """Of keys, stores and files, and in what is asked for. The configuration refuses such names of models."""
    for text in XSS:
        new_key(signed.keys, text, [Scope.MONITOR], models=[], expires=None)
        store = signed.browser.post("/dashboard/stores", data={"name": text}).headers["location"]
        file = {"file": (text, text.encode() + b" hostile", "text/plain")}
        assert signed.browser.post(f"{store}/files", data={"purpose": "assistants"}, files=file).status_code == 303
        until(functools.partial(is_read, signed, store))
        query = {"store": store.rpartition("/")[2], "q": f"{text} hostile"}
        for page in (
            signed.browser.get(store),
            signed.browser.get("/dashboard/search", params=query),
            signed.browser.get("/dashboard/chat", params={"model": text}),
            signed.browser.get("/dashboard/logs/" + text.replace("/", "%2f").replace("%}", "%25}")),
            signed.browser.get("/dashboard/models/" + text),
            signed.browser.get("/dashboard/search", params={"store": text, "q": text}),
        ):
            assert inert(page.text), (text, page.url)
    until(lambda: "alert(1)" in signed.browser.get("/dashboard/keys").text)
    for listing in ("/dashboard/files", "/dashboard/search", "/dashboard/keys"):
        page = signed.browser.get(listing)
        assert inert(page.text) and "54411" not in page.text, listing


def test_without_keys_the_dashboard_is_open_to_this_machine(tmp_path: Path) -> None:
    with service(tmp_path, CONFIG) as running, running.client(accept="text/html") as visitor:
        assert "No models are configured" in visitor.get("/dashboard").text
        assert visitor.get("/dashboard?key=orc_anything").headers["location"] == "/dashboard"
        assert "There is no key file" in visitor.get("/dashboard/keys").text
        assert visitor.get("/dashboard", headers={"host": "rebound.example"}).status_code == 403


@pytest.mark.slow
def test_twenty_viewers_cost_less_than_a_hundredth_of_a_core(tmp_path: Path) -> None:
    """Beyond what the service does anyway, while two of ten models serve, one starts, and everybody looks."""
    tables = [model_table(f"acme/m{n}", "--start-s", "60" if n == 9 else "0", idle_timeout_s=600) for n in range(10)]
    with service(tmp_path, CONFIG, *tables) as running, running.client(accept="text/html") as browser:
        for n in (0, 1, 9):
            browser.post(f"/api/models/acme/m{n}/start")
        until(lambda: running.phase("acme/m0") == running.phase("acme/m1") == "ready")
        alone_s = used_s(running, OBSERVED_S)
        with contextlib.ExitStack() as viewers:
            address = live_address(browser, "/dashboard")
            ends = threading.Event()
            for _ in range(20):
                viewers.enter_context(reader(running.url + address, ends))
            with_viewers_s = used_s(running, OBSERVED_S)
            ends.set()
        assert (with_viewers_s - alone_s) / OBSERVED_S < 0.01


OBSERVED_S = 15.0


def used_s(running: Service, for_s: float) -> float:
    """The CPU seconds that the service takes from now on, for so long."""
    process = psutil.Process(running.process.pid)
    before = process.cpu_times()
    time.sleep(for_s)  # what is measured is the time
    after = process.cpu_times()
    return after.user + after.system - before.user - before.system


@contextlib.contextmanager
def reader(address: str, ends: threading.Event) -> Iterator[None]:
    """Somebody who looks at a live page."""
    begun = threading.Event()

    def read() -> None:
        with httpx.stream("GET", address, timeout=None) as stream:
            for _ in stream.iter_raw():
                begun.set()
                if ends.is_set():
                    return

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(10)
    yield
    thread.join(30)
