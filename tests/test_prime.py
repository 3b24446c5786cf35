"""Whose weights are read ahead, in what order, and what is shown of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace

import pytest

from orchestrator.gpu import Wait
from orchestrator.model import EngineKind, Fleet, Phase, Progress, Weights, WeightsState
from orchestrator.prime import Primer
from tests.values import deployment, replica

MODELS = {name: deployment(name, engine=EngineKind.VLLM, source=f"org/{name}") for name in ("a", "b")}
MODELS["c"] = deployment("c")
STARTING = Progress(note="starting vLLM")


class Disk:
    """Reads half of what it is told to, then waits to be let on."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = threading.Event()
        self.cancelled: list[bool] = []

    def __call__(self, folder: str, on_bytes: Callable[[int], None], cancelled: Callable[[], bool]) -> str:
        self.asked.append(folder)
        on_bytes(50)
        self.go.wait(10)
        self.cancelled.append(cancelled())
        return "done"


def fleet(*starting: str, waiting: tuple[str, ...] = ()) -> Fleet:
    weights = {
        name: Weights(state=WeightsState.PRESENT, path=f"/w/{name}", done_bytes=100, total_bytes=100) for name in MODELS
    }
    replicas = {name: replica(Phase.STARTING, name, of=MODELS[name]) for name in starting}
    waits = {name: Wait(place=n, seconds=1.0) for n, name in enumerate(waiting, 1)}
    return Fleet(known=True, replicas=replicas, weights=weights, waits=waits)


async def until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.001)


def spawner(tasks: asyncio.TaskGroup) -> Callable[[Coroutine[None, None, None]], None]:
    def spawn(work: Coroutine[None, None, None]) -> None:
        tasks.create_task(work)

    return spawn


def test_one_at_a_time_once_a_start_and_shown_until_the_engine_speaks() -> None:
    async def check() -> None:
        disk = Disk()
        async with asyncio.TaskGroup() as tasks:
            primer = Primer(prime=disk, spawn=spawner(tasks))
            primer.look(fleet("a", "b", "c"), MODELS)
            await until(lambda: disk.asked == ["/w/a"])
            shown = primer.shown("a", STARTING)
            assert (shown.fraction, shown.note) == (0.5, "reading weights into memory")
            assert primer.shown("b", STARTING) == STARTING
            loading = replace(STARTING, phase=Phase.LOADING, fraction=0.1)
            assert primer.shown("a", loading) == loading
            primer.look(fleet("a", "b", "c"), MODELS)
            assert disk.asked == ["/w/a"]
            disk.go.set()
            await until(lambda: primer.shown("a", STARTING) == STARTING)
            primer.look(fleet("a", "b", "c"), MODELS)
            await until(lambda: disk.asked == ["/w/a", "/w/b"])
            await until(lambda: disk.cancelled == [False, False])
            for _ in range(3):
                primer.look(fleet("a", "b", "c"), MODELS)
            assert disk.asked == ["/w/a", "/w/b"]
            primer.look(fleet(), MODELS)
            primer.look(fleet(waiting=("b",)), MODELS)
            await until(lambda: disk.asked == ["/w/a", "/w/b", "/w/b"])

    asyncio.run(check())


def test_a_start_that_is_given_up_ends_its_reading() -> None:
    async def check() -> None:
        disk = Disk()
        async with asyncio.TaskGroup() as tasks:
            primer = Primer(prime=disk, spawn=spawner(tasks))
            primer.look(fleet("a"), MODELS)
            await until(lambda: disk.asked == ["/w/a"])
            primer.look(fleet(), MODELS)
            disk.go.set()
        assert disk.cancelled == [True]

    asyncio.run(check())


@pytest.mark.parametrize("names", [(), ("c",)])
def test_nothing_is_read_for_nobody(names: tuple[str, ...]) -> None:
    work: list[object] = []
    Primer(prime=Disk(), spawn=work.append).look(fleet(*names), MODELS)
    assert work == []
