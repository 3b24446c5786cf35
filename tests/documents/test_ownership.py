"""One orchestrator on an object store at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.documents.keys import OWNER
from orchestrator.documents.ownership import RENEW_S, STALE_S, Owned, Ownership
from orchestrator.documents.ports import ObjectStore
from orchestrator.errors import ObjectsUnavailable
from storage.objects_folder import FolderObjects
from tests.documents.served import WORDS_ONLY
from tests.stub import service, until


class Time:
    """A clock that is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Folder:
    """A data folder: its catalogue notes turns."""

    def __init__(self, objects: ObjectStore, instance: str, time: Time) -> None:
        self.turn = 0
        self.objects = objects
        self._instance = instance
        self._time = time
        self._mark = self.restarted()

    def restarted(self) -> Ownership:
        """Another process takes over."""
        self._mark = Ownership(self.objects, instance=self._instance, monotonic=self._time, note=self._note)
        return self._mark

    async def claim(self) -> bool:
        return await self._mark.claim(self.turn)

    async def keep(self) -> None:
        await self._mark.keep()

    async def leave(self) -> None:
        await self._mark.leave()

    async def caught_up(self) -> None:
        await self._mark.caught_up()

    async def _note(self, turn: int) -> None:
        self.turn = turn


def owner(objects: ObjectStore, instance: str, time: Time) -> Folder:
    return Folder(objects, instance, time)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def refused(claim: Folder) -> str:
    with pytest.raises(Owned) as caught:
        await claim.claim()
    return str(caught.value)


def test_the_first_has_it_and_the_second_waits(tmp_path: Path) -> None:
    async def test() -> None:
        objects, time = FolderObjects(tmp_path), Time()
        first, second = owner(objects, "a", time), owner(objects, "b", time)
        assert not await first.claim()
        assert "storage.url" in await refused(second)
        for _ in range(20):
            time.now += STALE_S / 10
            await first.keep()
            await refused(second)

    run(test())


def test_the_same_folder_has_it_back_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        objects, time = FolderObjects(tmp_path), Time()
        folder = owner(objects, "a", time)
        await folder.claim()
        folder.restarted()
        assert not await folder.claim()
        await folder.keep()

    run(test())


class FullObjects(FolderObjects):
    """One that can be read and not written."""

    async def put_bytes(self, key: str, data: bytes, *, content_type: str = "") -> None:
        raise ObjectsUnavailable("full")


def test_on_a_full_disk_the_same_folder_still_has_it(tmp_path: Path) -> None:
    async def test() -> None:
        objects, time = FolderObjects(tmp_path), Time()
        folder = owner(objects, "a", time)
        await folder.claim()
        folder.objects = FullObjects(tmp_path)
        again = folder.restarted()
        assert not await folder.claim()
        await again.caught_up()
        with pytest.raises(ObjectsUnavailable):
            await again.keep()
        folder.objects = objects
        folder.restarted()
        assert not await folder.claim()
        await folder.keep()
        with pytest.raises(Owned):
            await again.keep()

    run(test())


def test_one_that_is_gone_is_followed_and_its_facts_are_read(tmp_path: Path) -> None:
    async def test() -> None:
        objects, time = FolderObjects(tmp_path), Time()
        first, second = owner(objects, "a", time), owner(objects, "b", time)
        await first.claim()
        assert f"{STALE_S:.0f} s" in await refused(second)
        time.now += STALE_S - 1
        await refused(second)
        time.now += 1
        assert await second.claim()
        with pytest.raises(Owned):  # it was only asleep
            await first.keep()
        await first.leave()
        await second.keep()

    run(test())


def test_until_it_has_caught_up_it_is_behind(tmp_path: Path) -> None:
    async def test() -> None:
        objects, time = FolderObjects(tmp_path), Time()
        first = owner(objects, "a", time)
        await first.claim()
        await first.leave()
        second = owner(objects, "b", time)
        assert await second.claim()
        second.restarted()  # killed before it was done
        assert await second.claim()
        await second.caught_up()
        second.restarted()
        assert not await second.claim()

    run(test())


def test_a_catalogue_from_a_backup_is_behind(tmp_path: Path) -> None:
    async def test() -> None:
        objects, time = FolderObjects(tmp_path), Time()
        folder = owner(objects, "a", time)
        await folder.claim()
        backup = folder.turn
        time.now += RENEW_S
        await folder.keep()
        await folder.leave()
        folder.restarted()
        folder.turn, last = backup, folder.turn
        assert await folder.claim()
        assert folder.turn > last
        await folder.caught_up()
        folder.restarted()
        assert not await folder.claim()

    run(test())


def test_a_mark_is_renewed_seldom_and_comes_back(tmp_path: Path) -> None:
    async def test() -> None:
        objects, time = FolderObjects(tmp_path), Time()
        mine = owner(objects, "a", time)
        await mine.claim()
        before = await objects.read_bytes(OWNER, bytes_max=10_000)
        time.now += RENEW_S / 2
        await mine.keep()
        assert await objects.read_bytes(OWNER, bytes_max=10_000) == before
        time.now += RENEW_S / 2
        await mine.keep()
        assert await objects.read_bytes(OWNER, bytes_max=10_000) != before
        await objects.delete(OWNER)
        await mine.keep()
        assert await objects.read_bytes(OWNER, bytes_max=10_000)

    run(test())


def test_a_mark_that_makes_no_sense_is_waited_for(tmp_path: Path) -> None:
    async def test() -> None:
        objects, time = FolderObjects(tmp_path), Time()
        await objects.put_bytes(OWNER, b"?")
        mine = owner(objects, "a", time)
        await refused(mine)
        time.now += STALE_S
        assert await mine.claim()

    run(test())


def test_two_services_on_one_store(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    url = {"ORCHESTRATOR_STORAGE__URL": f"file://{tmp_path / 'shared'}"}
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(service(tmp_path / "a", WORDS_ONLY, **url))
        kept = httpx.post(f"{first.url}/v1/files", files={"file": ("a", b"x")}, data={"purpose": "user_data"}).json()
        second = stack.enter_context(service(tmp_path / "b", WORDS_ONLY, **url))
        answer = httpx.get(f"{second.url}/v1/files")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
        assert "another orchestrator" in httpx.get(f"{second.url}/health").json()["checks"]["documents"]["detail"]
        assert httpx.get(f"{second.url}/ready?for=inference").status_code == 200
        assert httpx.get(f"{first.url}/v1/files/{kept['id']}").status_code == 200
        assert first.end() == 0
        until(lambda: httpx.get(f"{second.url}/ready").status_code == 200)
        assert httpx.get(f"{second.url}/v1/files/{kept['id']}/content").content == b"x"
