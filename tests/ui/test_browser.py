"""The dashboard in a real Chromium: what people do there works, live, and nothing goes wrong behind their backs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from orchestrator.access.key_file import new_key
from orchestrator.model import Scope
from tests.documents.served import EMBEDDER
from tests.fault_proxy import FaultProxy
from tests.nvml.library import StubNvml, gpu
from tests.servers.machines import machines, static_table
from tests.stub import Service, model_table, service
from tests.ui.chromium import Watched, running_browser, screenshot, visitor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SLOW, ECHO, BROKEN = "acme/slow", "acme/echo", "acme/broken"
POOL, GONE = "acme/pool", "http://127.0.0.1:9"
"""A static model, and one of its servers: nothing listens there."""
TABLES = (
    f'[embeddings]\nmodel = "{EMBEDDER}"\n',
    model_table(EMBEDDER),
    model_table(SLOW, "--start-s", "2.5", "--lines", "40", idle_timeout_s=4, gpus=1),
    model_table(ECHO, "--start-s", "1.5", "--token-delay-s", "0.05", idle_timeout_s=600),
    '[models."acme/broken"]\nengine = "command"\ncommand = ["/bin/sh", "-c", "echo no such device >&2; exit 3"]\n',
)
SIZES = [(1280, False), (1280, True), (375, False), (375, True)]
SERIOUS = ("serious", "critical")


@dataclass(frozen=True, slots=True)
class Stage:
    """A running service behind a proxy, a browser, and a key that may do everything."""

    running: Service
    proxy: FaultProxy
    browser: Browser
    secret: str
    talker: str
    """The secret of a key that may only use models."""

    def sign_in(self, watched: Watched) -> Page:
        """By the form."""
        page = watched.open("")
        enter(page, self.secret)
        expect(page.get_by_role("heading", name="Models", level=1)).to_be_visible()
        return page

    def forget(self, watched: Watched) -> None:
        """The service forgets the window's session, as a new start of it does; the window still has its cookie."""
        cookies = {one["name"]: one["value"] for one in watched.context.cookies()}
        with httpx.Client(base_url=self.running.url, cookies=cookies) as other:
            assert other.post("/dashboard/sign-out").status_code == 303


def enter(page: Page, secret: str) -> None:
    """Fill in the form."""
    page.get_by_label("API key").fill(secret)
    page.get_by_role("button", name="Sign in").click()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("browser")
    secret = new_key(folder / "auth.keys.json", "ada", list(Scope), models=[], expires=None)
    new_key(folder / "auth.keys.json", "<script>alert(1)</script>", [Scope.MONITOR], models=[], expires=None)
    talker = new_key(folder / "auth.keys.json", "talker", [Scope.REALTIME], models=[], expires=None)
    nvml = StubNvml(folder)
    nvml.write(gpu(0, used_mib=20_000), gpu(1, used_mib=0))
    with (
        machines((), ()) as (one, two),
        service(folder, *TABLES, static_table(POOL, one.url, two.url, GONE), **nvml.env()) as running,
        running_browser() as browser,
    ):
        proxy = FaultProxy(int(running.url.rpartition(":")[2]))
        yield Stage(running, proxy, browser, secret, talker)
        proxy.close()


def card(page: Page, model: str) -> Locator:
    """What the page shows of a model."""
    return page.get_by_role("article", name=model, exact=True)


def test_a_cold_start_is_watched_from_wake_to_reaped(stage: Stage) -> None:
    """Live: nothing here loads a page anew."""
    with visitor(stage.browser, stage.proxy.url) as watched:
        page = stage.sign_in(watched)
        expect(page.locator("#line")).to_have_attribute("data-state", "live")
        assert stage.secret not in page.content()
        slow = card(page, SLOW)
        expect(slow).to_contain_text("Cold")
        slow.get_by_role("button", name="Wake").click()
        expect(slow).to_have_attribute("data-phase", "starting")
        expect(slow.get_by_role("progressbar")).to_be_visible()
        expect(slow).to_contain_text("Ready in")
        screenshot(page, "cold-start")
        expect(slow).to_have_attribute("data-phase", "ready")
        expect(slow).to_contain_text("Stops in")
        expect(slow).to_have_attribute("data-phase", "cold")
        page.get_by_role("link", name=SLOW).click()
        expect(page.get_by_role("heading", name="Last start")).to_be_visible()
        expect(page.get_by_role("row", name="Starting").first).to_be_visible()
        screenshot(page, "model")


def test_a_model_is_pinned_and_drained(stage: Stage) -> None:
    with visitor(stage.browser, stage.proxy.url) as watched:
        page = stage.sign_in(watched)
        echo = card(page, ECHO)
        echo.get_by_role("button", name="Pin").press("Enter")
        expect(echo).to_contain_text("pinned")
        expect(echo).to_have_attribute("data-phase", "ready")
        echo.get_by_role("button", name="Unpin").click()
        expect(echo).not_to_contain_text("pinned")
        echo.get_by_role("button", name="Drain").click()
        expect(echo).to_have_attribute("data-phase", "cold")


def test_chat_shows_the_cold_start_as_it_happens(stage: Stage) -> None:
    with visitor(stage.browser, stage.proxy.url) as watched:
        stage.sign_in(watched)
        page = watched.open(f"/chat?model={ECHO}")
        page.get_by_label("Message").fill("What is the capital of France?")
        page.get_by_label("Message").press("Enter")
        expect(page.locator("[data-waiting]")).to_contain_text("its start begins now")
        expect(card(page, ECHO)).to_have_attribute("data-phase", "starting")
        screenshot(page, "chat-cold")
        answer = page.locator("[data-talk] li[data-role=assistant]")
        expect(answer).to_contain_text("The capital of France is Paris.")
        expect(answer).to_contain_text("first words after")
        expect(page.locator("[data-waiting]")).to_be_hidden()
        expect(page.get_by_label("Message")).to_be_focused()
        screenshot(page, "chat")


def test_files_go_up_are_read_and_searched(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / '"><img src=x onerror=alert(1)>.md'
    file.write_text("# Leave\n\nEvery employee has thirty days of leave a year.\n")
    with visitor(stage.browser, stage.proxy.url) as watched:
        stage.sign_in(watched)
        page = watched.open("/files")
        page.get_by_label("Name of a new store").fill("handbook")
        page.get_by_role("button", name="New store").click()
        expect(page.get_by_role("heading", name="handbook", level=1)).to_be_visible()
        page.get_by_label("Upload a file").set_input_files(file)
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_role("row", name=file.name)).to_contain_text("Read")
        screenshot(page, "store")
        page.get_by_role("link", name="Search this store").click()
        page.get_by_label("Query").fill("days of leave")
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_text("thirty days of leave")).to_be_visible()
        for ranking in ("By words", "By vectors", "Fused"):
            expect(page.get_by_role("heading", name=ranking)).to_be_visible()
        expect(page.locator(".ranks ol").nth(1)).to_contain_text(file.name)
        screenshot(page, "search")


def test_a_log_is_followed_filtered_and_paused(stage: Stage) -> None:
    with visitor(stage.browser, stage.proxy.url) as watched:
        page = stage.sign_in(watched)
        card(page, SLOW).get_by_role("button", name="Wake").click()
        expect(card(page, SLOW)).to_have_attribute("data-phase", "ready")
        card(page, SLOW).get_by_role("link", name="Log").click()
        lines = page.locator("[data-lines]")
        expect(lines).to_contain_text("Application startup complete")
        page.get_by_role("searchbox").fill("line 7")
        expect(page.locator("[data-count]")).to_contain_text("1 of")
        expect(lines).not_to_contain_text("line 8")
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("button", name="Resume")).to_have_attribute("aria-pressed", "true")
        page.get_by_role("button", name="Resume").click()
        page.get_by_role("searchbox").fill("")
        expect(lines).to_contain_text("line 8")
        screenshot(page, "log")
        expect(page.locator("[data-line]")).to_contain_text("the engine has ended")


def test_a_page_reconnects_by_itself_and_says_so(stage: Stage) -> None:
    with visitor(stage.browser, stage.proxy.url) as watched:
        page = stage.sign_in(watched)
        line = page.locator("#line")
        expect(line).to_contain_text("live")
        stage.proxy.refuse()
        expect(line).to_contain_text("reconnecting")
        screenshot(page, "reconnecting")
        stage.proxy.up()
        expect(line).to_have_text("live")
        watched.faults.clear()  # of the lost connection, which the browser tells, too


def test_a_page_whose_session_ended_while_it_was_cut_off_leads_to_the_form_and_back(stage: Stage) -> None:
    with visitor(stage.browser, stage.proxy.url) as watched:
        stage.sign_in(watched)
        page = watched.open("/requests?model=all")
        expect(page.locator("#line")).to_have_text("live")
        stage.proxy.refuse()
        expect(page.locator("#line")).to_contain_text("reconnecting")
        stage.forget(watched)
        stage.proxy.up()
        enter(page, stage.secret)
        expect(page.locator("#line")).to_have_text("live")
        assert page.url.endswith("/dashboard/requests?model=all")
        watched.faults.clear()  # of the lost connection


def test_chat_without_a_session_asks_to_sign_in(stage: Stage) -> None:
    with visitor(stage.browser, stage.proxy.url) as watched:
        page = watched.open(f"/chat?model={ECHO}")
        enter(page, stage.talker)
        page.get_by_label("Message").fill("What is the capital of France?")
        stage.forget(watched)
        page.get_by_label("Message").press("Enter")
        answer = page.locator("[data-talk] li[data-role=assistant]")
        expect(answer).to_contain_text("You are signed out.")
        screenshot(page, "chat-signed-out")
        answer.get_by_role("link", name="Sign in").click()
        enter(page, stage.talker)
        expect(page.get_by_label("Message")).to_be_visible()
        assert page.url.endswith(f"/dashboard/chat?model={ECHO}")
        (fault,) = watched.faults
        assert "401" in fault
        watched.faults.clear()


def test_a_button_without_a_session_leads_to_the_form(stage: Stage) -> None:
    with visitor(stage.browser, stage.proxy.url) as watched:
        page = stage.sign_in(watched)
        stage.proxy.hang()  # so that the page does not hear of it first
        stage.forget(watched)
        card(page, ECHO).get_by_role("button", name="Pin").click()
        stage.proxy.up()
        expect(page.get_by_label("API key")).to_be_visible()
        watched.faults.clear()


def test_a_log_that_is_followed_without_a_session_leads_to_the_form(stage: Stage) -> None:
    with visitor(stage.browser, stage.proxy.url) as watched:
        page = stage.sign_in(watched)
        card(page, ECHO).get_by_role("button", name="Pin").click()
        expect(card(page, ECHO)).to_have_attribute("data-phase", "ready")
        card(page, ECHO).get_by_role("link", name="Log").click()
        expect(page.locator("[data-line]")).to_have_text("live")
        stage.proxy.refuse()
        expect(page.locator("[data-line]")).to_contain_text("reconnecting")
        stage.forget(watched)
        stage.proxy.up()
        enter(page, stage.secret)
        expect(page.locator("[data-line]")).to_have_text("live")
        watched.faults.clear()  # of the lost connection


def test_a_server_is_drained_and_taken_back(stage: Stage) -> None:
    """Live."""
    with visitor(stage.browser, stage.proxy.url) as watched:
        stage.sign_in(watched)
        page = watched.open("/servers")
        pool = page.get_by_role("region", name=f"Table: Servers of {POOL}")
        expect(pool.get_by_text("Ready")).to_have_count(2)
        expect(pool.get_by_text("it takes no connections")).to_be_visible()
        page.get_by_role("button", name="Drain http").first.click()
        expect(pool.get_by_text("Draining")).to_be_visible()
        screenshot(page, "servers-draining")
        page.get_by_role("button", name="again").click()
        expect(pool.get_by_text("Ready")).to_have_count(2)


def test_without_scripts_pages_are_static_and_forms_work(stage: Stage) -> None:
    with visitor(stage.browser, stage.proxy.url, scripts=False) as watched:
        page = stage.sign_in(watched)
        card(page, ECHO).get_by_role("button", name="Wake").or_(
            card(page, ECHO).get_by_role("button", name="Pin")
        ).first.click()
        expect(page.get_by_role("heading", name=ECHO, level=1)).to_be_visible()
        expect(page.locator("#line")).to_contain_text("as of loading")
        watched.page.goto(f"{watched.url}/dashboard/chat")
        expect(page.get_by_text("Chat needs JavaScript")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("API key")).to_be_visible()


def test_everything_is_reached_by_keyboard(stage: Stage) -> None:
    with visitor(stage.browser, stage.proxy.url) as watched:
        page = stage.sign_in(watched)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        reached = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.textContent.trim()"))
        assert {ECHO, "Wake", "Pin", "Log", "Chat"} <= reached


@pytest.mark.parametrize(("width", "dark"), SIZES, ids=lambda value: str(value))
def test_every_page_is_sound_at_every_size_and_in_every_light(stage: Stage, width: int, dark: bool) -> None:
    """No error, no violation, nobody else asked (`visitor`); no sideways scrolling; nothing serious by axe."""
    with visitor(stage.browser, stage.proxy.url, width=width, dark=dark) as watched:
        look(watched.open("/sign-in"), f"sign-in-{width}-{'dark' if dark else 'light'}")
        page = stage.sign_in(watched)
        engine = linked(watched.open("/logs"), "/logs/")
        store = linked(watched.open("/files"), "/stores/")
        paths = {
            "models": "",
            "model": f"/models/{SLOW}",
            "starts": "/starts",
            "servers": "/servers",
            "gpus": "/gpus",
            "requests": "/requests",
            "usage": "/usage",
            "logs": "/logs",
            "files": "/files",
            "search": "/search?q=leave",
            "chat": f"/chat?model={ECHO}",
            "keys": "/keys",
            "missing": "/logs/none",
        }
        paths |= {name: path for name, path in (("log", engine), ("store", store)) if path}
        for name, path in paths.items():
            page = watched.open(path)
            if page.locator("#line").count():
                expect(page.locator("#line")).to_have_text("live")
            look(page, f"{name}-{width}-{'dark' if dark else 'light'}")
        missing = "Failed to load resource: the server responded with a status of 404 (Not Found)"
        watched.faults.remove(f"console: {missing}")


def linked(page: Page, part: str) -> str:
    """The first page of single things that a listing leads to; none where an earlier test was left out."""
    links = page.locator(f".list a[href*='{part}']")
    found = links.first.get_attribute("href") if links.count() else None
    return (found or "").removeprefix("/dashboard")


def look(page: Page, name: str) -> None:
    """Judge what a page looks like."""
    screenshot(page, name)
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, name
    found = Axe().run(page).response["violations"]
    serious = [(one["id"], [node["target"] for node in one["nodes"]]) for one in found if one["impact"] in SERIOUS]
    assert serious == [], name
