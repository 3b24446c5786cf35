"""Live pages: drawn once for all who look, and never more than they can take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from orchestrator.access.key import Key
from orchestrator.errors import OrchestratorError
from orchestrator.model import Scope
from ui.events import PAINT_S_MIN, VIEWERS_MAX, Board, shape_of
from ui.scenes import Part, Recent, Scene

ADA = Key(name="ada", scopes=frozenset({Scope.MONITOR}))
BOB = Key(name="bob", scopes=frozenset({Scope.MONITOR}))
EVE = Key(name="eve", scopes=frozenset({Scope.MONITOR}), models=("eve/*",))
SHAPE = shape_of({"a": 0, "b": 0})


class Paper:
    """Draws a part as its values, and counts."""

    drawn = 0

    def fragment(self, template: str, id: str, content: Any, *, swap: bool) -> str:
        self.drawn += 1
        return f"<p id={id}>{content['n']}</p>\n<p>{'x' * content.get('pad', 0)}</p>"


class Stage:
    """A board with one page of two parts, that a test sets."""

    def __init__(self) -> None:
        self.parts: Scene = {"a": Part("t", {"n": 0}), "b": Part("t", {"n": 0})}
        self.paper = Paper()
        self.looks = 0
        self.board = Board(self.paper, {"page": self._paint})  # type: ignore[arg-type]  # paper stands for pages

    def set(self, id: str, n: int) -> None:
        self.parts = {**self.parts, id: Part("t", {"n": n})}
        self.board.changed()

    def look(
        self, key: Key = ADA, shape: str = SHAPE, admitted: Callable[[], bool] = lambda: True
    ) -> AsyncIterator[bytes]:
        return self.board.stream("page", "", shape, key, admitted)

    async def _paint(self, key: Key, subject: str) -> Scene:
        self.looks += 1
        return self.parts


def played(scene: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a test's scene with the board at work."""

    async def run() -> None:
        stage = Stage()
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            work = tasks.create_task(stage.board.run())
            await scene(stage)
            work.cancel()

    asyncio.run(run())


def test_a_change_is_drawn_once_and_only_what_changed_is_sent() -> None:
    async def scene(stage: Stage) -> None:
        streams = [stage.look(key) for key in (ADA, BOB) for _ in range(10)]
        first = [await anext(stream) for stream in streams]
        assert {event.count(b"<p id=") for event in first} == {2}
        assert stage.paper.drawn == 2
        stage.set("b", 7)
        news = {await anext(stream) for stream in streams}
        assert news == {b"event: paint\ndata: <p id=b>7</p>\ndata: <p></p>\n\n"}
        assert stage.paper.drawn == 3

    played(scene)


def test_who_may_see_other_models_gets_a_drawing_of_his_own() -> None:
    async def scene(stage: Stage) -> None:
        for key in (ADA, EVE):
            await anext(stage.look(key))
        assert stage.paper.drawn == 4

    played(scene)


def test_who_is_slow_gets_things_as_they_are() -> None:
    async def scene(stage: Stage) -> None:
        slow, quick = stage.look(), stage.look()
        await anext(slow), await anext(quick)
        for n in range(1, 4):
            stage.set("a", n)
            await anext(quick)
        assert await anext(slow) == b"event: paint\ndata: <p id=a>3</p>\ndata: <p></p>\n\n"

    played(scene)


def test_a_page_with_other_parts_is_told_to_load_anew() -> None:
    async def scene(stage: Stage) -> None:
        assert await anext(stage.look(shape="old")) == b"event: stale\ndata:\n\n"
        stream = stage.look()
        await anext(stream)
        stage.set("c", 1)
        assert await anext(stream) == b"event: stale\ndata:\n\n"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    played(scene)


def test_a_key_that_is_revoked_ends_its_streams() -> None:
    async def scene(stage: Stage) -> None:
        valid = True
        stream = stage.look(admitted=lambda: valid)
        await anext(stream)
        valid = False
        stage.set("a", 1)
        assert await anext(stream) == b"event: ended\ndata:\n\n"

    played(scene)


def test_nothing_is_drawn_when_nobody_looks() -> None:
    async def scene(stage: Stage) -> None:
        stream = stage.look()
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # a generator, which its type does not tell
        looks = stage.looks
        stage.set("a", 1)
        await asyncio.sleep(2 * PAINT_S_MIN)  # that nothing happens can only be waited for
        assert stage.looks == looks

    played(scene)


def test_what_can_not_be_looked_at_is_tried_again() -> None:
    async def scene(stage: Stage) -> None:
        paint, failures = stage.board.painters["page"], iter([OrchestratorError("away")])

        async def painter(key: Key, subject: str) -> Scene:
            if (error := next(failures, None)) is not None:
                raise error
            return await paint(key, subject)

        stage.board.painters = {"page": painter}
        assert b"<p id=a>" in await anext(stage.look())

    played(scene)


def test_viewers_are_bounded_and_close_ends_all() -> None:
    async def scene(stage: Stage) -> None:
        streams = [stage.look() for _ in range(VIEWERS_MAX)]
        for stream in streams:
            await anext(stream)
        assert stage.board.full
        stage.board.close()
        for stream in streams:
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    played(scene)


class Past:
    """A plane that has a history only, and counts who reads it."""

    reads = 0

    async def starts(self, key: Key, *, model: str | None, limit: int) -> list[dict[str, Any]]:
        self.reads += 1
        return [{"model": model}]


def test_the_history_is_read_after_changes_only() -> None:
    now, past = 100.0, Past()
    recent = Recent(past, lambda: now)  # type: ignore[arg-type]  # of a plane, its history alone

    def read(times: int) -> int:
        for _ in range(times):
            asyncio.run(recent.of(ADA, "a"))
        return past.reads

    assert read(3) == 3  # something may just have changed
    now = 110.0
    assert read(5) == 4
    recent.changed()
    now = 110.5
    assert read(2) == 6
    now = 120.0
    assert read(5) == 7
