"""What every runtime promises, whatever its engines are: the same tests for all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from orchestrator.errors import LaunchFailed, NotFound
from orchestrator.model import Instance, InstanceState
from orchestrator.ports import LaunchSpec, Runtime
from runtimes.fake import FakeRuntime, LaunchFault
from runtimes.process import ProcessRuntime
from tests.stub import STUB

WAIT_S = 10.0
TALKS = (sys.executable, "-S", str(STUB), "--port", "{port}", "--lines", "3")


class Kit(Protocol):
    """A runtime to test, and the hands that reach behind it."""

    runtime: Runtime

    def end(self, replica: str) -> None:
        """Its engine dies of its own."""

    def refused(self, replica: str) -> LaunchSpec:
        """What can't be launched."""


class Now:
    """A clock that stands still."""

    def monotonic(self) -> float:
        return 100.0

    def unix(self) -> float:
        return 1e9


class FakeKit:
    def __init__(self) -> None:
        self.fake = FakeRuntime(clock=Now())
        self.runtime: Runtime = self.fake

    def end(self, replica: str) -> None:
        self.fake.end(replica, exit_code=-9)

    def refused(self, replica: str) -> LaunchSpec:
        self.fake.launch_fault = LaunchFault.REFUSED
        return spec(replica)


class ProcessKit:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime: Runtime = ProcessRuntime(
            folder=folder, instance=str(folder), log_bytes_max=2**20, environ=os.environ
        )

    def end(self, replica: str) -> None:
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.environ().get("ORCHESTRATOR_ENGINE_REPLICA") == replica:
                    process.kill()

    def refused(self, replica: str) -> LaunchSpec:
        return spec(replica, argv=("/no/such/program",))


@contextlib.asynccontextmanager
async def kit(kind: str, folder: Path) -> AsyncIterator[Kit]:
    """A runtime of this kind, and nothing of it left afterwards."""
    made: Kit = FakeKit() if kind == "fake" else ProcessKit(folder / "replicas")
    try:
        yield made
    finally:
        for left in await made.runtime.list():
            await made.runtime.stop(left.id, grace_s=0)
        assert await made.runtime.list() == ()


def spec(id: str, **more: object) -> LaunchSpec:
    facts = {"model": "acme/echo", "spec": "spec-1", "argv": TALKS, **more}
    return LaunchSpec(id=id, **facts)  # type: ignore[arg-type]  # any field


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what a process does in its own time."""
    ends_at = time.monotonic() + WAIT_S
    while not await condition():
        assert time.monotonic() < ends_at, "not within WAIT_S"
        await asyncio.sleep(0.01)


async def only(runtime: Runtime) -> Instance:
    [instance] = await runtime.list()
    return instance


each = pytest.mark.parametrize("kind", ["process", "fake"])


@each
def test_what_is_launched_is_listed_with_its_facts(kind: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with kit(kind, tmp_path) as k:
            await k.runtime.launch(spec("echo-a-0", gpus=("GPU-1",)))
            seen = await only(k.runtime)
            assert (seen.id, seen.model, seen.spec) == ("echo-a-0", "acme/echo", "spec-1")
            assert (seen.state, seen.gpus, seen.exit_code) == (InstanceState.RUNNING, ("GPU-1",), None)
            assert seen.endpoint is not None
            assert seen.endpoint.startswith("http://127.0.0.1:")

    asyncio.run(check())


@each
def test_launching_an_id_again_does_nothing(kind: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with kit(kind, tmp_path) as k:
            await asyncio.gather(*(k.runtime.launch(spec("echo-a-0")) for _ in range(8)))
            first = await only(k.runtime)
            await k.runtime.launch(spec("echo-a-0", spec="another"))
            assert await only(k.runtime) == first

    asyncio.run(check())


@each
def test_refused_launch_leaves_nothing(kind: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with kit(kind, tmp_path) as k:
            with pytest.raises(LaunchFailed):
                await k.runtime.launch(k.refused("echo-a-0"))
            assert await k.runtime.list() == ()

    asyncio.run(check())


@each
def test_an_ended_engine_is_listed_until_it_is_cleared(kind: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with kit(kind, tmp_path) as k:
            await k.runtime.launch(spec("echo-a-0"))
            k.end("echo-a-0")

            async def ended() -> bool:
                return (await only(k.runtime)).state is InstanceState.EXITED

            await until(ended)
            assert (await only(k.runtime)).exit_code == -9
            await k.runtime.launch(spec("echo-a-0"))
            assert (await only(k.runtime)).state is InstanceState.EXITED
            await k.runtime.stop("echo-a-0", grace_s=5)
            assert await k.runtime.list() == ()

    asyncio.run(check())


@each
def test_stop_ends_and_forgets_however_often_it_is_called(kind: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with kit(kind, tmp_path) as k:
            await k.runtime.stop("nobody", grace_s=5)
            await k.runtime.launch(spec("echo-a-0"))
            await k.runtime.launch(spec("echo-a-1"))
            await asyncio.gather(*(k.runtime.stop("echo-a-0", grace_s=5) for _ in range(3)))
            assert (await only(k.runtime)).id == "echo-a-1"
            await k.runtime.stop("echo-a-0", grace_s=5)

    asyncio.run(check())


@each
def test_a_stop_in_progress_shows(kind: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with kit(kind, tmp_path) as k:
            await k.runtime.launch(spec("echo-a-0", argv=(*TALKS, "--ignore-sigterm")))
            stop = asyncio.create_task(k.runtime.stop("echo-a-0", grace_s=0.3))
            await asyncio.sleep(0)
            assert (await only(k.runtime)).state is InstanceState.STOPPING
            await stop

    asyncio.run(check())


@each
def test_logs_outlive_their_engine(kind: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with kit(kind, tmp_path) as k:
            assert await k.runtime.log_tail("nobody", tail_bytes=100) == ""
            for name in ("nobody", "../../etc/passwd"):
                with pytest.raises(NotFound):
                    await anext(k.runtime.logs(name, tail_bytes=100))
            await k.runtime.launch(spec("echo-a-0"))
            if isinstance(k, FakeKit):
                k.fake.write("echo-a-0", b"line 0 \nline 1 \nline 2 \n")

            async def spoken() -> bool:
                return "line 2" in await k.runtime.log_tail("echo-a-0", tail_bytes=10_000)

            await until(spoken)
            await k.runtime.stop("echo-a-0", grace_s=5)
            whole = b"".join([chunk async for chunk in k.runtime.logs("echo-a-0", tail_bytes=10_000)])
            assert whole.startswith(b"line 0")
            assert await k.runtime.log_tail("echo-a-0", tail_bytes=7) == whole[-7:].decode()

    asyncio.run(check())


@each
def test_following_a_log_ends_with_the_engine(kind: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with kit(kind, tmp_path) as k:
            await k.runtime.launch(spec("echo-a-0"))
            follow = asyncio.create_task(read_all(k.runtime))
            await asyncio.sleep(0)
            if isinstance(k, FakeKit):
                k.fake.write("echo-a-0", b"line 2")

            async def spoken() -> bool:
                return "line 2" in await k.runtime.log_tail("echo-a-0", tail_bytes=10_000)

            await until(spoken)
            assert not follow.done()
            k.end("echo-a-0")
            assert b"line 2" in await asyncio.wait_for(follow, WAIT_S)

    asyncio.run(check())


async def read_all(runtime: Runtime) -> bytes:
    return b"".join([chunk async for chunk in runtime.logs("echo-a-0", tail_bytes=10_000, follow=True)])
