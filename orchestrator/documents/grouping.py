"""Work that is cheaper together: what is asked while a round runs makes up the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Grouped(Generic[Item, Result]):
    """Collects items from many callers and hands them to `work` in rounds of at most `round_max`, one at a time.

    `work` gives a result for each item, in order. Where a round of several callers' items fails, each caller's items
    are worked alone, so that one bad item spoils no other's; but not for errors of `shared`, which concern all.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        round_max: int,
        shared: tuple[type[Exception], ...] = (),
    ) -> None:
        self._work = work
        self._round_max = round_max
        self._shared = shared
        self._waiting: list[tuple[Sequence[Item], asyncio.Future[Sequence[Result]]]] = []
        self._lead = asyncio.Lock()

    async def __call__(self, items: Sequence[Item]) -> Sequence[Result]:
        """The results of `items` (at most `round_max`). Raises what `work` raises for them."""
        assert len(items) <= self._round_max
        mine: asyncio.Future[Sequence[Result]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, mine))
        try:
            while not mine.done():
                async with self._lead:  # whoever gets here first works for all who wait
                    if not mine.done():
                        await self._round()
        finally:
            mine.cancel()  # nobody waits for it any more
        return mine.result()

    async def _round(self) -> None:
        self._waiting = [(items, future) for items, future in self._waiting if not future.done()]
        taken, size = 0, 0
        for items, _ in self._waiting:
            if taken and size + len(items) > self._round_max:
                break
            taken, size = taken + 1, size + len(items)
        group, self._waiting = self._waiting[:taken], self._waiting[taken:]
        try:
            await self._work_together(group)
        except asyncio.CancelledError:  # the one who leads has left; the others' items wait for the next
            self._waiting = [*(one for one in group if not one[1].done()), *self._waiting]
            raise

    async def _work_together(self, group: list[tuple[Sequence[Item], asyncio.Future[Sequence[Result]]]]) -> None:
        try:
            results = await self._work([item for items, _ in group for item in items])
        except Exception as error:
            if len(group) == 1 or isinstance(error, self._shared):
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
                return
            for one in group:
                await self._work_together([one])
            return
        begin = 0
        for items, future in group:
            if not future.done():
                future.set_result(results[begin : begin + len(items)])
            begin += len(items)
