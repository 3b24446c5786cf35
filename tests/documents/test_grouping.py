"""Rounds of work: who shares one, and whose errors are whose."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from orchestrator.documents.grouping import Grouped


class Doubler:
    """Works slowly enough that callers meet."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.rounds.append(list(items))
        await self.gate.wait()
        if 13 in items:
            raise ValueError("thirteen")
        if 66 in items:
            raise ConnectionError("down")
        return [2 * item for item in items]


def test_calls_share_rounds_and_get_their_own_results() -> None:
    async def scenario() -> None:
        work = Doubler()
        grouped = Grouped(work, round_max=4)
        calls = [asyncio.create_task(grouped(items)) for items in ([1], [2, 3], [4], [5, 6], [7])]
        await asyncio.sleep(0)
        work.gate.set()
        assert await asyncio.gather(*calls) == [[2], [4, 6], [8], [10, 12], [14]]
        assert work.rounds == [[1, 2, 3, 4], [5, 6, 7]] or work.rounds == [[1], [2, 3, 4], [5, 6, 7]]

    asyncio.run(scenario())


def test_a_bad_item_spoils_no_other() -> None:
    async def scenario() -> None:
        work = Doubler()
        work.gate.set()
        grouped = Grouped(work, round_max=8)
        results = await asyncio.gather(*(grouped([n]) for n in (1, 13, 2)), return_exceptions=True)
        assert results[0] == [2] and results[2] == [4]
        assert isinstance(results[1], ValueError)

    asyncio.run(scenario())


def test_an_error_that_concerns_all_is_not_tried_alone() -> None:
    async def scenario() -> None:
        work = Doubler()
        grouped = Grouped(work, round_max=8, shared=(ConnectionError,))
        calls = [asyncio.create_task(grouped([n])) for n in (0, 66, 2)]
        await asyncio.sleep(0)
        work.gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(result, ConnectionError) for result in results) >= 1
        assert len(work.rounds) <= 2

    asyncio.run(scenario())


def test_a_caller_that_leaves_holds_nobody_up() -> None:
    async def scenario() -> None:
        work = Doubler()
        grouped = Grouped(work, round_max=8)
        first, second = asyncio.create_task(grouped([1])), asyncio.create_task(grouped([2]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        work.gate.set()
        assert await asyncio.wait_for(second, 5) == [4]

    asyncio.run(scenario())
