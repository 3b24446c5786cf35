"""Pulls against a real hub server: progress, resuming, sharing, and each way to fail."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import WeightsError, WeightsGated, WeightsMissing, WeightsTooLarge, WeightsUnreachable
from orchestrator.model import Deployment, WeightsState
from storage.download import PART_SUFFIX, part_of
from storage.hub import choose
from storage.weights import HubWeights, repo_folder
from tests.hub import COMMIT, Hub
from tests.stub import until
from tests.values import deployment

REPO = "org/model"
BIG = 3_000_000


@pytest.fixture
def hub() -> Iterator[Hub]:
    data = random.Random(1).randbytes(BIG)
    files = {
        "config.json": b'{"architectures": ["X"]}',
        "tokenizer.json": b"{}",
        "model-00001-of-00002.safetensors": data,
        "model-00002-of-00002.safetensors": data[::-1],
        "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00002.safetensors",'
        b' "b": "model-00002-of-00002.safetensors"}}',
        "pytorch_model.bin": b"x" * 1000,
        "modeling.py": b"import os",
    }
    with Hub({REPO: files}) as running:
        yield running


def store(hub: Hub, home: Path, **more: str) -> HubWeights:
    return HubWeights(pulls_max=2, environ={"HF_HOME": str(home), "HF_ENDPOINT": hub.url, **more})


def wanted(revision: str | None = None, source: str = REPO) -> Deployment:
    return deployment(source=source, revision=revision)


def test_a_pull_lands_where_the_library_looks(hub: Hub, tmp_path: Path) -> None:
    weights = store(hub, tmp_path)
    assert weights.look(wanted()).state is WeightsState.ABSENT
    asyncio.run(weights.pull(wanted()))
    found = weights.look(wanted())
    assert (found.state, found.done_bytes) == (WeightsState.PRESENT, 2 * BIG)
    from huggingface_hub import snapshot_download

    folder = snapshot_download(REPO, cache_dir=tmp_path / "hub", local_files_only=True)
    assert folder == found.path
    assert not {"pytorch_model.bin", "modeling.py"} & {path.name for path in Path(folder).iterdir()}
    again = store(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert again.look(wanted(COMMIT)).state is WeightsState.PRESENT


def test_a_cut_is_resumed_within_a_pull(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after_bytes = 1_000_000
    asyncio.run(store(hub, tmp_path).pull(wanted()))
    assert hub.sent["model-00001-of-00002.safetensors"] < BIG + 300_000


@pytest.mark.slow
def test_kill_9_in_mid_pull_loses_nothing_that_came(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_s = 1_500_000
    code = (
        "import asyncio;from storage.weights import HubWeights;from tests.values import deployment;"
        f"asyncio.run(HubWeights(pulls_max=1).pull(deployment(source={REPO!r})))"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
    with subprocess.Popen((sys.executable, "-c", code), env=env, cwd=Path(__file__).parents[2]) as process:
        until(lambda: hub.sent.get("model-00001-of-00002.safetensors", 0) > 1_500_000)
        process.send_signal(signal.SIGKILL)
    hub.bytes_per_s = None
    time.sleep(0.1)  # what is on its way to the dead process still counts as sent
    weights = store(hub, tmp_path)
    assert weights.look(wanted()).state is WeightsState.ABSENT
    asyncio.run(weights.pull(wanted()))
    assert weights.look(wanted()).state is WeightsState.PRESENT
    total = sum(hub.sent[f"model-0000{n}-of-00002.safetensors"] for n in (1, 2))
    assert total < 2 * BIG + 3_000_000  # what sockets held at the kill, and no more: nothing from the start
    assert not list((tmp_path / "hub").rglob(f"*{PART_SUFFIX}"))


def test_twenty_who_ask_share_one_pull(hub: Hub, tmp_path: Path) -> None:
    weights = store(hub, tmp_path)

    async def twenty() -> None:
        await asyncio.gather(*(weights.pull(wanted()) for _ in range(20)))

    asyncio.run(twenty())
    assert set(hub.sent.values()) <= {BIG, *map(len, hub.models[REPO].values())}


def test_progress_is_known_from_the_first_byte(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_s = 3_000_000
    weights = store(hub, tmp_path)

    async def watch() -> list[tuple[int, int]]:
        pull = asyncio.create_task(weights.pull(wanted()))
        seen = []
        while not pull.done():
            found = weights.look(wanted())
            if found.state is WeightsState.PULLING and found.total_bytes:
                seen.append((found.done_bytes, found.total_bytes))
            await asyncio.sleep(0.05)
        await pull
        return seen

    seen = asyncio.run(watch())
    assert len({total for _, total in seen}) == 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({done for done, _ in seen}) > 3


def failure(hub: Hub, home: Path, source: str = REPO, revision: str | None = None, **environ: str) -> WeightsError:
    weights = store(hub, home, **environ)
    with pytest.raises(WeightsError) as caught:
        asyncio.run(weights.pull(wanted(revision, source)))
    looked = weights.look(wanted(revision, source))
    assert (looked.state, looked.error) == (WeightsState.FAILED, str(caught.value))
    assert looked.permanent == caught.value.permanent
    return caught.value


def test_each_failure_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    assert isinstance(failure(hub, tmp_path, "org/nobody"), WeightsMissing)
    assert "no revision" in str(failure(hub, tmp_path, revision="v9"))
    offline = failure(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert isinstance(offline, WeightsUnreachable) and "HF_HUB_OFFLINE" in str(offline)
    hub.gated = True
    gated = failure(hub, tmp_path, HF_TOKEN="hf_canary")
    assert isinstance(gated, WeightsGated)
    assert "accept its terms" in str(gated) and "hf_canary" not in str(gated)
    hub.gated, hub.refuses = False, True
    assert isinstance(failure(hub, tmp_path), WeightsUnreachable)


def test_a_dead_hub_is_unreachable(tmp_path: Path) -> None:
    with Hub({}) as gone:
        pass
    assert isinstance(failure(gone, tmp_path), WeightsUnreachable)


def test_a_full_disk_is_seen_before_the_first_byte(hub: Hub, tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
    weights = HubWeights(pulls_max=1, environ=environ, free_bytes=lambda _: 1_000_000)
    with pytest.raises(WeightsTooLarge, match=r"0\.0 GB free"):
        asyncio.run(weights.pull(wanted()))
    assert not hub.sent


def test_wrong_bytes_never_get_their_name(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.download.BACKOFF_S", 0.01)
    hub.corrupts = True
    assert "digest" in str(failure(hub, tmp_path))
    blobs = repo_folder(tmp_path / "hub", REPO) / "blobs"
    assert not [path for path in blobs.iterdir() if not path.name.endswith(PART_SUFFIX)]


def test_local_folders_are_sources(tmp_path: Path, hub: Hub) -> None:
    weights = store(hub, tmp_path)
    assert weights.look(wanted(source=str(tmp_path))).path == str(tmp_path)
    missing = weights.look(wanted(source=str(tmp_path / "no")))
    assert (missing.state, missing.permanent) == (WeightsState.FAILED, True)
    assert weights.look(wanted(source="")).state is WeightsState.PRESENT


def test_a_snapshot_of_the_library_counts_and_a_broken_one_does_not(hub: Hub, tmp_path: Path) -> None:
    asyncio.run(store(hub, tmp_path).pull(wanted()))
    folder = repo_folder(tmp_path / "hub", REPO)
    shard = folder / "snapshots" / COMMIT / "model-00002-of-00002.safetensors"
    shard.resolve().unlink()
    assert store(hub, tmp_path).look(wanted()).state is WeightsState.ABSENT


def test_junk_is_swept_but_not_what_somebody_writes(hub: Hub, tmp_path: Path) -> None:
    blobs = repo_folder(tmp_path / "hub", REPO) / "blobs"
    blobs.mkdir(parents=True)
    old, fresh = blobs / "a.123.incomplete", blobs / "b.456.incomplete"
    ours = part_of(blobs / ("f" * 64))
    for path in (old, fresh, ours):
        path.write_bytes(b"junk")
    os.utime(old, (0, 0))
    os.utime(ours, (0, 0))
    asyncio.run(store(hub, tmp_path).pull(wanted()))
    assert fresh.exists() and not old.exists() and not ours.exists()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], ["config.json", "model.safetensors"]),
        (["config.json", "pytorch_model.bin", "x.gguf"], ["config.json", "pytorch_model.bin"]),
        (["a.Q4.gguf", "README.md"], ["a.Q4.gguf"]),
        (["consolidated.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors", "params.json"]),
        (["onnx/model.onnx", "model.safetensors", ".gitattributes", "original/x.pth"], ["model.safetensors"]),
        (["chat_template.jinja", "m.safetensors", "evil.py"], ["chat_template.jinja", "m.safetensors"]),
    ],
)
def test_choice_of_files(names: list[str], chosen: list[str]) -> None:
    assert list(choose(names)) == chosen
