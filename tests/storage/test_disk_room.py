"""Weights make room for others when the disk is full, in a real cache."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orchestrator.errors import WeightsTooLarge
from orchestrator.model import WeightsState
from storage.disk_room import DiskRoom
from storage.disk_space import mark_used
from storage.weights import DISK_MARGIN_BYTES, HubWeights
from tests.hub import Hub
from tests.values import deployment

SIZE = 100_000
MODELS = {f"org/m{n}": {"config.json": b"{}", "model.safetensors": bytes([n]) * SIZE} for n in range(3)}


class Disk:
    """So much is free, less what the cache holds."""

    def __init__(self, cache: Path, free_bytes: int) -> None:
        self.cache, self.capacity = cache, free_bytes

    def free(self, path: Path) -> int:
        return self.capacity - sum(f.stat().st_size for f in self.cache.rglob("blobs/*") if f.is_file())


def test_the_least_recently_used_goes_for_a_pull_and_never_what_is_kept(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    cache.mkdir()
    disk = Disk(cache, DISK_MARGIN_BYTES + 2 * SIZE + 1000)
    room = DiskRoom(cache, free_bytes_min=0, free_bytes=disk.free)
    m0, m1, m2 = (deployment(name, source=name) for name in MODELS)

    async def check(hub: Hub) -> None:
        environ = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}
        store = HubWeights(pulls_max=1, environ=environ, free_bytes=disk.free, make_room=room.make)
        for used_at, model in enumerate((m0, m1)):
            await store.pull(model)
            mark_used(Path(store.look(model).path or ""), now_unix=1000.0 + used_at)
        with pytest.raises(WeightsTooLarge):  # who is in use is not known yet
            await store.pull(m2)
        room.keep = {m0.source}
        await store.pull(m2)
        states = [store.look(model).state for model in (m0, m1, m2)]
        assert states == [WeightsState.PRESENT, WeightsState.ABSENT, WeightsState.PRESENT]
        room.keep = {m0.source, m2.source}
        with pytest.raises(WeightsTooLarge):
            await store.pull(m1)
        await store.aclose()

    with Hub(MODELS) as hub:
        asyncio.run(check(hub))


def test_the_limit_is_kept_free_and_not_more(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    cache.mkdir()
    disk = Disk(cache, 10**9)
    models = [deployment(name, source=name) for name in MODELS]

    async def fill(hub: Hub) -> None:
        store = HubWeights(pulls_max=1, environ={"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)})
        for used_at, model in enumerate(models):
            await store.pull(model)
            mark_used(Path(store.look(model).path or ""), now_unix=1000.0 + used_at)
        await store.aclose()

    with Hub(MODELS) as hub:
        asyncio.run(fill(hub))
    room = DiskRoom(cache, free_bytes_min=10**9 - 2 * SIZE - 1000, free_bytes=disk.free)
    room.keep = set()
    room.make()
    assert [bool(list(cache.glob(f"models--org--m{n}/snapshots/*"))) for n in range(3)] == [False, True, True]
    room.make()
    assert len(list(cache.glob("models--*/snapshots/*"))) == 2
