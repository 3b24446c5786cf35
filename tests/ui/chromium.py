"""A real browser for tests, and someone who watches what it does behind one's back."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.missing import missing

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
SCREENSHOTS = "DASHBOARD_SCREENSHOTS"
"""The environment variable that names a folder for screenshots; without it none are kept."""
WAIT_MS = 20_000
_TELL_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


def chromium() -> str:
    """The machine's Chromium; skips the test where there is none, which is a failure in CI."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        reason = "no Chromium: `apt-get install --no-install-recommends chromium`"
        missing(reason)
    return found


@contextlib.contextmanager
def running_browser() -> Iterator[Browser]:
    """One browser, with a new profile."""
    program = chromium()
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """One visitor's browser window, and all that went wrong in it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.context = context
        self.faults: list[str] = []
        context.set_default_timeout(WAIT_MS)
        context.add_init_script(_TELL_VIOLATIONS)
        context.on("request", self._on_request)
        context.on("console", self._on_console)
        context.on("weberror", lambda error: self.faults.append(f"uncaught: {error.error}"))
        self.page: Page = context.new_page()

    def open(self, path: str) -> Page:
        """Go to a page of the dashboard; what went wrong on the last is noted before it is left."""
        self.note_violations()
        self.page.goto(f"{self.url}/dashboard{path}")
        return self.page

    def note_violations(self) -> None:
        """Of the content security policy, on this page."""
        if self.page.url.startswith(self.url):
            self.faults += [f"policy: {each}" for each in self.page.evaluate("window.violations ?? []")]

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith(self.url):
            self.faults.append(f"asked elsewhere: {request.url}")

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text}")


@contextlib.contextmanager
def visitor(
    browser: Browser, url: str, *, width: int = 1280, dark: bool = False, scripts: bool = True
) -> Iterator[Watched]:
    """A window of a browser of its own; fails at the end if anything went wrong in it that nobody has looked at."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        java_script_enabled=scripts,
        reduced_motion="reduce",
    )
    try:
        watched = Watched(context, url)
        yield watched
        if scripts:
            watched.note_violations()
        assert not watched.faults, watched.faults
    finally:
        context.close()


def screenshot(page: Page, name: str) -> None:
    """Keep what it looks like, where a folder is named."""
    if folder := os.environ.get(SCREENSHOTS):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
