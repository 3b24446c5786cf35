"""The screen of `top`, with a service in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from textual.pilot import Pilot

from tests.tui.doubles import SIZE, BoardDouble, model, replica, screen, server, shows
from ui.tui import top
from ui.tui.top import TopApp

READY = model("acme/ready", phase="ready", last_replica="r1", replicas=[replica("r1", "acme/ready")])


def drive(
    board: BoardDouble, steps: Callable[[Pilot[None]], Awaitable[object]], size: tuple[int, int] = SIZE
) -> TopApp:
    """Open the screen over `board` and do `steps`."""

    async def run() -> TopApp:
        app = TopApp(board, await board.snapshot())
        async with app.run_test(size=size, notifications=True) as pilot:
            await steps(pilot)
        return app

    return asyncio.run(run())


def test_an_event_shows_at_once() -> None:
    board = BoardDouble(model("acme/a"), READY)

    async def steps(pilot: Pilot[None]) -> None:
        await shows(pilot, "● live", "○ cold", "● ready", "1/2 ready")
        board.news.put_nowait(("model", model("acme/a", phase="loading", progress=0.5, note="shards")))
        board.news.put_nowait(("something new", {}))
        shown = await shows(pilot, "◑ loading 50%", "shards")
        assert all(len(line) <= SIZE[0] for line in shown.splitlines())

    drive(board, steps)


def test_keys_ask_for_the_row_under_the_cursor() -> None:
    board = BoardDouble(model("acme/a"), model("acme/b", pinned=True))

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("down", "w", "p", "up", "p")
        await pilot.press("d")
        await shows(pilot, "Drain and stop acme/a?")
        await pilot.press("n", "down", "d", "y")
        await pilot.pause()

    drive(board, steps)
    assert board.asked == [("acme/b", "start"), ("acme/b", "unpin"), ("acme/a", "pin"), ("acme/b", "stop")]


def test_a_service_that_can_not_pin_has_no_key_for_it() -> None:
    view = model("acme/a")
    del view["pinned"]
    board = BoardDouble(view)

    async def steps(pilot: Pilot[None]) -> None:
        shown = await shows(pilot, "Wake")
        assert "Pin" not in shown
        await pilot.press("p")

    drive(board, steps)
    assert board.asked == []


def test_a_refusal_is_told() -> None:
    board = BoardDouble(model("acme/a"))
    board.refusal = "this key lacks the scope admin; set ORCHESTRATOR_API_KEY"

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("w")
        await shows(pilot, "lacks the scope admin")

    drive(board, steps)


def test_without_events_it_polls_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "POLL_S", 0.01)
    board = BoardDouble(model("acme/a"))
    board.eventless = "too many listeners"

    async def steps(pilot: Pilot[None]) -> None:
        await shows(pilot, "◔ polling · too many listeners")
        board.models = (model("acme/a", phase="failed", error="a bad day"),)
        await shows(pilot, "✗ failed", "a bad day")

    drive(board, steps)


def test_it_says_that_the_service_is_lost_and_comes_back_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "LOST_S", 0.01)
    monkeypatch.setattr(top, "LIVE_S", 0.01)
    board = BoardDouble(model("acme/a"))

    async def steps(pilot: Pilot[None]) -> None:
        await shows(pilot, "● live")
        board.away = "no orchestrator answers"
        await shows(pilot, "✗ lost, trying again", "no orchestrator answers", "acme/a")
        board.away = ""
        board.news.put_nowait((":", {}))
        await shows(pilot, "● live", "0/1 ready")

    drive(board, steps)


def test_servers_and_a_configuration_that_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "LIVE_S", 0.01)
    board = BoardDouble(READY)
    board.servers = (server("r1", "acme/ready", load=1.5, running=2),)
    board.trouble = "configuration: endpoint: unknown key"

    async def steps(pilot: Pilot[None]) -> None:
        await shows(pilot, "✗ configuration: endpoint: unknown key")
        await pilot.press("5")
        await shows(pilot, "[5 servers]", "SERVER ▲", "● closed", "1.50")
        board.servers, board.trouble = (server("r1", "acme/ready", breaker="open", in_rotation=False),), ""
        assert "unknown key" not in await shows(pilot, "✗ open")

    drive(board, steps)


def test_a_dialog_does_not_stop_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "LIVE_S", 0.01)
    board = BoardDouble(model("acme/a"))

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("d")
        await shows(pilot, "Drain and stop acme/a?")
        board.models = (model("acme/a", phase="starting"),)
        await shows(pilot, "◔ starting", "Drain and stop acme/a?")
        await pilot.press("ctrl+c")
        await pilot.pause()

    assert drive(board, steps).return_code == 0


def test_filter_sort_and_views() -> None:
    board = BoardDouble(model("acme/a"), READY)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press(*"/ready")
        assert "acme/a " not in await shows(pilot, "only with “ready”")
        await pilot.press("enter", "2")
        await shows(pilot, "[2 replicas]", "REPLICA ▲", "r1")
        await pilot.press("1")
        await shows(pilot, "only with “ready”")
        await pilot.press("escape")
        await shows(pilot, "acme/a ")
        await pilot.press("o", "r")
        await shows(pilot, "PHASE ▼")
        await pilot.press("3")
        await shows(pilot, "no GPU on this machine")
        await pilot.press("tab")
        await shows(pilot, "[4 requests]", "REQ/S")
        await pilot.press("question_mark")
        await shows(pilot, "drain and stop it; asks first")
        await pilot.press("escape")
        assert "asks first" not in screen(pilot.app)  # type: ignore[arg-type]  # the pilot does not know its app

    drive(board, steps)


def test_the_log_of_the_chosen_model() -> None:
    board = BoardDouble(model("acme/a"), READY)
    board.logs["r1"] = ["    indented [red]not markup[/red]", "weights loaded", "ready"]

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("l")
        await shows(pilot, "not started since the service began")
        await pilot.press("1", "down", "l")
        await shows(pilot, "    indented [red]not markup[/red]", "— the engine has ended —")
        await pilot.press(*"/weights")
        assert "indented" not in await shows(pilot, "weights loaded")
        await pilot.press("escape", "1")
        await shows(pilot, "[1 models]")
        await pilot.press("w")
        await pilot.pause()

    drive(board, steps)
    assert board.asked == [("acme/ready", "start")]


def test_hostile_names_are_text() -> None:
    name = "a/[red]x[/red][@click=app.quit]y[/]\x1b]0;z\x07"
    board = BoardDouble(model(name, note="[bold]n[/bold]\x1b[2J", error="[link=x]e[/]"))

    async def steps(pilot: Pilot[None]) -> None:
        shown = await shows(pilot, "[red]x[/red]", "[bold]n[/bold]")
        assert "\x1b" not in shown
        await pilot.press("w", "d")
        await shows(pilot, "Drain and stop a/[red]x[/red]")

    drive(board, steps, (140, 24))


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
def test_it_leaves(key: str) -> None:
    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press(key)
        await pilot.pause()

    assert drive(BoardDouble(model()), steps).return_code == 0


@pytest.mark.parametrize("size", [(20, 5), (40, 10), (200, 60)])
def test_any_size(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None]) -> None:
        for key in "12345":
            await pilot.press(key)
            await pilot.pause()

    drive(BoardDouble(model(), READY), steps, size)
