"""`top` and `chat` as users have them: a real terminal of 80 × 24, a real service."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_proxy import fault_proxy
from tests.stub import Service, model_table, service, until
from tests.tui.tmux import terminal

pytestmark = pytest.mark.slow

LONG = "acme/a-model-whose-name-is-far-too-long-for-a-column-of-a-narrow-terminal"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    tables = (
        model_table("acme/echo", "--start-s", "2", "--lines", "3"),
        model_table("acme/cold", "--start-s", "3"),
        model_table("acme/slow", "--token-delay-s", "0.2", "--tokens", "500"),
        model_table(LONG),
    )
    with service(tmp_path_factory.mktemp("tui"), *tables) as found:
        yield found


def test_top_wakes_watches_and_drains_a_model(tmp_path: Path, running: Service) -> None:
    with terminal(tmp_path, "top", "--url", running.url) as top:
        top.shows("● live", "acme/echo", "acme/a-model-w", "○ cold", "0/4 ready", "q Quit")
        top.send("/")
        top.shows("show what holds")
        top.send("echo", "Enter")
        top.shows("only with “echo”")
        top.send("w")
        top.shows("◔ starting")
        top.shows("● ready", "1/4 ready", "stops in")
        top.send("p")
        top.shows("  pinned")
        top.send("p")
        top.shows("stops in")
        top.send("6")
        top.shows("line 2", "Application startup complete.")
        top.send("2")
        top.shows("REPLICA ▲", "acme-echo-")
        top.send("1", "d")
        top.shows("Drain and stop acme/echo?")
        top.send("y")
        top.shows("○ cold", "0/4 ready")
        until(lambda: running.phase("acme/echo") == "cold")
        top.send("q")
        assert top.ended() == 0


def test_top_keeps_to_its_window_and_to_the_sixteen_colours(tmp_path: Path, running: Service) -> None:
    with terminal(tmp_path, "top", "--url", running.url) as top:
        top.shows("● live", "acme/echo")
        assert not re.search(r"\x1b\[[\d;]*[34]8[;:][25]", top.screen(styled=True)), "a colour of our own"
        for width, height in ((40, 12), (160, 50), (80, 24)):
            top.resize(width, height)
            top.shows("● live", "acme/")
        top.send("C-c")
        assert top.ended() == 0


def test_top_without_colours(tmp_path: Path, running: Service) -> None:
    with terminal(tmp_path, "top", "--url", running.url, NO_COLOR="1") as top:
        top.shows("● live", "○ cold")
        assert not re.search(r"\x1b\[[\d;]*(3[1-6]|9[1-6])[;m]", top.screen(styled=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_top_leaves_the_terminal_as_it_was_on_a_signal(tmp_path: Path, running: Service, number: int) -> None:
    with terminal(tmp_path, "top", "--url", running.url) as top:
        top.shows("● live")
        top.signal(number)
        assert top.ended() == 0


def test_top_outlives_the_service(tmp_path: Path, running: Service) -> None:
    port = int(running.url.rpartition(":")[2])
    with fault_proxy(port) as between, terminal(tmp_path, "top", "--url", between.url) as top:
        top.shows("● live", "○ cold")
        between.refuse()
        top.shows("✗ lost, trying again", "no orchestrator answers")
        between.up()
        top.shows("● live", "/4 ready")


def test_chat_over_a_cold_start(tmp_path: Path, running: Service) -> None:
    with terminal(tmp_path, "chat", "acme/cold", "--url", running.url) as chat:
        chat.shows("acme/cold · 127.0.0.1", "Enter Send")
        chat.send("first line", "C-j", "second line", "Enter")
        chat.shows("› first line", "cold start: ", "Esc stops")
        chat.shows("echo: first line second", "5 tokens", "first after")
        chat.send("C-l")
        assert "echo:" not in chat.shows("a new conversation")
        chat.send("Up")
        chat.shows("first line\nsecond line")
        chat.send("C-q")
        assert chat.ended() == 0
    history = tmp_path / "state/orchestrator/chat-history"
    assert history.read_text() == '"first line\\nsecond line"\n'
    assert history.stat().st_mode & 0o777 == 0o600


def test_chat_stops_the_engine(tmp_path: Path, running: Service) -> None:
    with terminal(tmp_path, "chat", "acme/slow", "--url", running.url) as chat:
        chat.shows("Enter Send")
        chat.send("go on", "Enter")
        chat.shows("echo: go on …", "answering")
        chat.send("Escape")
        chat.shows("stopped")
        until(lambda: running.model("acme/slow")["in_flight"] == 0)
        chat.send("C-c")
        assert chat.ended() == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("top", "--url", "http://127.0.0.1:9"), "no orchestrator answers at http://127.0.0.1:9; start it with"),
        (("chat", "acme/ekho"), "no model 'acme/ekho'; did you mean acme/echo"),
    ],
)
def test_what_can_not_begin_is_one_line(tmp_path: Path, running: Service, args: tuple[str, ...], said: str) -> None:
    with terminal(tmp_path, *args, size=(160, 24), ORCHESTRATOR_URL=running.url) as shown:
        assert shown.ended() == 1
        lines = [line for line in shown.screen().splitlines() if line]
        assert len(lines) == 2
        assert said in lines[0]
