"""The held line: order, pace, bounds, and no turn lost."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.access.key import ANYBODY as KEY
from orchestrator.access.key import Key
from orchestrator.hold import WINDOW_START, Line, Turn
from orchestrator.patience import CLIENT_TIMEOUT_SHARE, RETRY_HOLD_DEFAULT_S, patience


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_window_doubles_with_each_round() -> None:
    async def rounds() -> list[int]:
        line = Line()
        tasks = [asyncio.create_task(line.stand(KEY, 60)) for _ in range(100)]
        await settle()
        assert not any(task.done() for task in tasks)
        line.open()
        sizes, seen = [], 0
        while seen < 100:
            await settle()
            turns = [task.result() for task in tasks if task.done()][seen:]
            sizes.append(len(turns))
            seen += len(turns)
            for turn in turns:
                assert turn is not None
                turn.begun()
        return sizes

    assert asyncio.run(rounds()) == [WINDOW_START, 8, 16, 32, 40]


def test_first_come_first_served() -> None:
    async def order() -> list[int]:
        line, went = Line(), []

        async def one(number: int) -> None:
            turn = await line.stand(KEY, 60)
            went.append(number)
            assert turn is not None
            turn.begun()

        tasks = [asyncio.create_task(one(n)) for n in range(20)]
        await settle()
        line.open()
        await asyncio.gather(*tasks)
        return went

    assert asyncio.run(order()) == list(range(20))


def test_who_leaves_frees_the_place_and_the_turn() -> None:
    async def leave() -> None:
        line = Line()
        tasks = [asyncio.create_task(line.stand(KEY, 60)) for _ in range(WINDOW_START + 1)]
        await settle()
        tasks[0].cancel()
        await settle()
        assert line.held == WINDOW_START
        line.open()
        tasks[1].cancel()  # its turn has been given out but not taken
        await settle()
        assert [task.done() for task in tasks] == [True] * (WINDOW_START + 1)
        assert tasks[1].cancelled()
        for task in tasks[2:]:
            turn = task.result()
            assert isinstance(turn, Turn)
            turn.over()
            turn.over()  # settled once only
        assert not line.busy

    asyncio.run(leave())


def test_time_out_and_dismissal_give_no_turn() -> None:
    async def none() -> None:
        line = Line()
        assert await line.stand(KEY, 0.01) is None
        task = asyncio.create_task(line.stand(KEY, 60))
        await settle()
        line.dismiss()
        assert await task is None
        assert line.held == 0

    asyncio.run(none())


@pytest.mark.parametrize(
    ("headers", "hold_s", "applied", "progress"),
    [
        ({}, 0, None, False),
        ({b"prefer": b"wait=10"}, 10, b"wait=10", False),
        ({b"prefer": b"wait=9999"}, 300, b"wait=300", False),
        ({b"prefer": b"respond-async, Wait = 10, progress"}, 10, b"wait=10", True),
        ({b"prefer": b'wait="7"'}, 7, b"wait=7", False),
        ({b"prefer": b"wait=-5"}, 0, None, False),
        ({b"prefer": b"wait=1e9"}, 0, None, False),
        ({b"prefer": b"\xff\xfe"}, 0, None, False),
        ({b"x-stainless-retry-count": b"0"}, 0, None, False),
        ({b"x-stainless-retry-count": b"1"}, RETRY_HOLD_DEFAULT_S, None, False),
        ({b"x-stainless-retry-count": b"1", b"x-stainless-read-timeout": b"600"}, 300, None, False),
        ({b"x-stainless-retry-count": b"2", b"x-stainless-timeout": b"20"}, 20 * CLIENT_TIMEOUT_SHARE, None, False),
        ({b"x-stainless-retry-count": b"many"}, 0, None, False),
    ],
)
def test_patience(headers: dict[bytes, bytes], hold_s: float, applied: bytes | None, progress: bool) -> None:
    found = patience(list(headers.items()), 300)
    assert (found.hold_s, found.applied, found.progress) == (hold_s, applied, progress)


def key(name: str, priority: int = 0) -> Key:
    return Key(name=name, scopes=frozenset(), priority=priority)


def test_keys_take_turns_by_priority() -> None:
    async def order() -> str:
        line, went = Line(), []
        line.places = 1

        async def one(who: Key) -> None:
            turn = await line.stand(who, 60)
            went.append(who.name)
            assert turn is not None
            turn.over()

        line.shut()
        tasks = [asyncio.create_task(one(key("n"))) for _ in range(9)]
        await settle()
        tasks += [asyncio.create_task(one(key("q"))) for _ in range(2)]
        tasks += [asyncio.create_task(one(key("u", priority=1))) for _ in range(4)]
        await settle()
        line.open()
        await asyncio.gather(*tasks)
        return "".join(went)

    assert asyncio.run(order()) == "nquunquunnnnnnn"


def test_a_model_has_so_many_places_and_one_is_kept_for_who_shares_it() -> None:
    async def places() -> None:
        line = Line()
        line.places = 4
        line.open()
        alone = [line.enter(key("noisy")) for _ in range(5)]
        assert [turn is not None for turn in alone] == [True] * 4 + [False]
        assert line.enter(key("quiet")) is None, "it is known now"
        waiting = [asyncio.create_task(line.stand(key("noisy"), 60)) for _ in range(9)]
        await settle()
        first = alone[0]
        assert first is not None
        first.over()
        await settle()
        assert line.held == 9, "the place is kept"
        assert line.enter(key("quiet")) is None, "others wait, so it stands in line, but goes first"
        quiet = asyncio.create_task(line.stand(key("quiet"), 60))
        await settle()
        assert quiet.done()
        turn = quiet.result()
        assert turn is not None
        turn.over()
        await settle()
        assert line.held == 9
        line.places = 0
        line.open()
        await settle()
        assert line.held == 9 - WINDOW_START
        for task in waiting:
            task.cancel()
        await settle()
        assert not line.held

    asyncio.run(places())


def test_one_place_is_nobodys_own() -> None:
    async def place() -> None:
        line = Line()
        line.places = 1
        line.open()
        turn = line.enter(key("a"))
        assert turn is not None
        assert line.enter(key("b")) is None
        turn.begun()
        turn.over()
        turn.over()
        assert line.enter(key("b")) is not None

    asyncio.run(place())
