"""The screen of `chat`, with a model in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from textual.pilot import Pilot

from orchestrator.errors import OrchestratorError
from tests.tui.doubles import SIZE, PromptsDouble, TalkerDouble, shows
from ui.tui.chat import ChatApp
from ui.tui.conversation import MESSAGES_MAX, Finished, Message, Piece, Waiting, account, kept

DONE = Finished(prompt_tokens=3, completion_tokens=5, reason="stop")


def drive(
    talker: TalkerDouble,
    steps: Callable[[Pilot[None]], Awaitable[object]],
    prompts: PromptsDouble | None = None,
    system: str | None = None,
) -> ChatApp:
    """Open the screen over `talker` and do `steps`."""

    async def run() -> ChatApp:
        app = ChatApp(talker, prompts or PromptsDouble(), system)
        async with app.run_test(size=SIZE, notifications=True) as pilot:
            await steps(pilot)
        return app

    return asyncio.run(run())


def test_a_conversation_goes_on() -> None:
    talker = TalkerDouble([Piece("Par"), Piece("is."), DONE], [Piece("Yes."), DONE])

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press(*"capital?", "enter")
        await shows(pilot, "› capital?", "Paris.", "5 tokens")
        await pilot.press(*"sure?", "enter")
        await shows(pilot, "› sure?", "Yes.")

    prompts = PromptsDouble()
    drive(talker, steps, prompts, system="be brief")
    assert prompts.prompts == ["capital?", "sure?"]
    assert talker.asked[1] == [
        Message("system", "be brief"),
        Message("user", "capital?"),
        Message("assistant", "Paris."),
        Message("user", "sure?"),
    ]


def test_a_cold_start_shows_as_it_happens() -> None:
    talker = TalkerDouble([Waiting("loading 43 %, about 16 s"), None])

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press(*"hi", "enter")
        await shows(pilot, "cold start: loading 43 %, about 16 s · 0 s · Esc stops")

    drive(talker, steps)
    assert talker.closed == 1


def test_escape_stops_and_keeps_what_came() -> None:
    talker = TalkerDouble([Piece("once upon"), None], [Piece("more"), DONE])

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press(*"tell", "enter")
        await shows(pilot, "once upon", "answering")
        await pilot.press(*"go on", "enter")
        await shows(pilot, "Esc stops this answer first")
        await pilot.press("escape")
        await shows(pilot, "stopped")
        assert talker.closed == 1
        await pilot.press("enter")
        await shows(pilot, "more")

    drive(talker, steps)
    assert [message.text for message in talker.asked[1]] == ["tell", "once upon", "go on"]


def test_what_failed_can_be_sent_again() -> None:
    talker = TalkerDouble([OrchestratorError("acme/echo gave up: a bad day")], [Piece("ok"), DONE])

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press(*"hi", "enter")
        await shows(pilot, "✗ acme/echo gave up: a bad day")
        await pilot.press("enter")
        await shows(pilot, "ok")

    drive(talker, steps)
    assert [[message.text for message in asked] for asked in talker.asked] == [["hi"], ["hi"]]


def test_clear_begins_anew_even_in_the_middle() -> None:
    talker = TalkerDouble([Piece("first"), None], [Piece("second"), DONE])

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press(*"one", "enter")
        await shows(pilot, "first")
        await pilot.press("ctrl+l")
        assert "first" not in await shows(pilot, "a new conversation")
        await pilot.press(*"two", "enter")
        await shows(pilot, "second")

    drive(talker, steps, system="be brief")
    assert talker.asked[1] == [Message("system", "be brief"), Message("user", "two")]


def test_several_lines_and_the_prompts_before() -> None:
    talker = TalkerDouble([Piece("ok"), DONE])

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press(*"a", "ctrl+j", *"b", "up", "up", "up")
        await shows(pilot, "old")
        await pilot.press("up", "down", "down", "down")
        await pilot.press("enter")
        await shows(pilot, "ok")

    drive(talker, steps, PromptsDouble("older", "old"))
    assert talker.asked[0][0].text == "a\nb"


def test_what_a_model_writes_is_text() -> None:
    hostile = "[red]x[/red] <b>bold</b>\n\n<think>\nhm\n</think>\n\n\x1b]0;title\x07[link](javascript:x)"
    talker = TalkerDouble([Piece("thoughts", thought=True), Piece(hostile), DONE])

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press(*"hi", "enter")
        shown = await shows(pilot, "[red]x[/red] <b>bold</b>", "<think>", "5 tokens")
        assert "\x1b" not in shown and "\x07" not in shown

    drive(talker, steps)


@pytest.mark.parametrize("key", ["ctrl+q", "ctrl+c"])
def test_it_leaves_in_the_middle_of_an_answer(key: str) -> None:
    talker = TalkerDouble([Piece("on and on"), None])

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press(*"hi", "enter")
        await shows(pilot, "on and on")
        await pilot.press(key)
        await pilot.pause()

    assert drive(talker, steps).return_code == 0
    assert talker.closed == 1


def test_an_empty_prompt_is_not_sent() -> None:
    talker = TalkerDouble()

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("enter", "space", "ctrl+j", "enter")
        await pilot.pause()

    drive(talker, steps)
    assert talker.asked == []


def test_a_conversation_has_an_end() -> None:
    long = [Message("system", "s"), *(Message("user", str(n)) for n in range(MESSAGES_MAX + 5))]
    assert [m.text for m in kept(long)[:2]] == ["s", "5"]
    assert len(kept(long)) == MESSAGES_MAX + 1
    assert kept([]) == []


@pytest.mark.parametrize(
    ("finished", "first_s", "said"),
    [
        (Finished(1, 11, "stop"), 0.5, "11 tokens · 20 a second · first after 0.5 s"),
        (
            Finished(None, None, "length"),
            0.5,
            "first after 0.5 s · cut at the model's or the request's limit of tokens",
        ),
        (Finished(1, 0, "stop"), None, "0 tokens"),
    ],
)
def test_the_account_of_an_answer(finished: Finished, first_s: float | None, said: str) -> None:
    assert account(finished, first_s=first_s, spent_s=1.0) == said
