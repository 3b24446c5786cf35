"""Which snapshots go, and that a removal, killed at any step, leaves nothing that looks whole and is not."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import scan_cache_dir, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model import WeightsState
from storage import disk_space, weights
from storage.disk_space import REMOVING, USED, Snapshot, choose, mark_used, remove, snapshots
from storage.weights import HubWeights, repo_folder
from tests.hub import COMMIT, Hub
from tests.stub import until
from tests.values import deployment

REPO = "org/model"
A, B, C = "a" * 40, "b" * 40, "d" * 40
CACHE = Path("/cache")
SHARED, OWN = 3000, 2000


def snap(name: str, used_at: float | None = 0.0, repo: str = "m", **blobs: int) -> Snapshot:
    return Snapshot(
        path=CACHE / f"models--{repo}" / "snapshots" / name, used_at_unix=used_at, blobs=blobs or {name: 10}
    )


def gone(name: str, **blobs: int) -> Snapshot:
    return Snapshot(path=CACHE / "models--m" / REMOVING / name, blobs=blobs or {name: 10})


@pytest.mark.parametrize(
    ("given_", "free", "keep", "names"),
    [
        ([snap("a", 1), snap("b", 2)], 20, (), ""),  # enough is free
        ([snap("b", 2), snap("a", 1)], 15, (), "a"),  # the least recently used
        ([snap("b", 2), snap("a", 1)], 0, (), "ab"),
        ([snap("b", 2), snap("a", 1)], -100, (), "ab"),  # never enough: all that may go
        ([snap("b", 2), snap("a", 1)], 15, ["/cache/models--m/snapshots/a"], "b"),
        ([snap("b", 2), snap("a", 1)], 15, ["/other/mount/models--m/snapshots/a/"], "b"),
        ([snap("b", 2), snap("a", 1, repo="org--n")], 15, ["org/n"], "b"),
        ([snap("b", 2), snap("a", 1)], 15, ["m"], ""),
        ([snap("a", None), snap("b", None)], 0, (), ""),  # another tool's
        ([snap("a", 1, x=10), snap("b", 2, x=10), snap("c", 3)], 15, (), "ab"),
        ([snap("a", 1, x=10), snap("b", None, x=10), snap("c", 3)], 15, (), "c"),  # what others hold frees nothing
        ([snap("a", 1, x=10), snap("b", 2, x=10)], 15, (), "ab"),  # shared: with the last one only
        ([snap("a", 1, x=10), snap("a", 2, repo="n", x=10)], 15, (), "a"),  # blobs of another model are others
        ([gone("a"), snap("b", 1)], 30, (), "a"),  # always finished
        ([gone("a"), snap("b", 1)], 15, (), "a"),  # and counted
        ([gone("a"), snap("b", 1)], 5, ["m"], "a"),
        ([], 0, (), ""),
    ],
)
def test_choice(given_: list[Snapshot], free: int, keep: list[str], names: str) -> None:
    chosen = choose(given_, free_bytes=free, free_bytes_min=20, keep=keep)
    assert "".join(each.path.name for each in chosen) == names


@st.composite
def caches(draw: st.DrawFn) -> list[Snapshot]:
    sizes = {name: draw(st.integers(0, 50)) for name in "uvwxyz"}
    found = []
    for number in range(draw(st.integers(0, 8))):
        blobs = {name: sizes[name] for name in draw(st.sets(st.sampled_from("uvwxyz"), max_size=3))}
        used_at = draw(st.none() | st.floats(0, 10))
        path = CACHE / f"models--{draw(st.sampled_from('mn'))}" / draw(st.sampled_from(["snapshots", REMOVING]))
        found.append(Snapshot(path=path / str(number), used_at_unix=used_at, blobs=blobs))
    return found


def left_bytes(found: list[Snapshot]) -> int:
    return sum({(each.repo, blob): size for each in found for blob, size in each.blobs.items()}.values())


@given(caches(), st.integers(-50, 200), st.sets(st.integers(0, 7)))
def test_laws(found: list[Snapshot], free: int, kept: set[int]) -> None:
    keep = {str(each.path) for each in found if int(each.path.name) in kept and not each.removing}
    chosen = choose(found, free_bytes=free, free_bytes_min=100, keep=keep)
    assert not {str(each.path) for each in chosen} & keep
    assert all(each.removing or each.used_at_unix is not None for each in chosen)
    assert len({each.path for each in chosen}) == len(chosen)

    def freed(going: list[Snapshot]) -> int:
        return left_bytes(found) - left_bytes([each for each in found if each not in going])

    candidates = [each for each in found if each.used_at_unix is not None and str(each.path) not in keep]
    broken_off = [each for each in found if each.removing]
    enough = free + freed(list(chosen)) >= 100
    possible = free + freed(broken_off + candidates) >= 100
    assert enough == possible
    if not possible:
        assert freed(list(chosen)) == freed(broken_off + candidates)
    ours = [each for each in chosen if not each.removing]
    if ours:  # one less of the prefix is not enough, and whoever is passed over was used later or frees nothing
        assert free + freed(list(chosen[:-1])) < 100
        last = max(each.used_at_unix or 0 for each in ours)
        for each in candidates:
            if each not in chosen and not each.removing and (each.used_at_unix or 0) < last:
                assert freed([*chosen, each]) == freed(list(chosen))


def blob(folder: Path, name: str, size: int) -> str:
    path = folder / "blobs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(name).randbytes(size))
    return name


def revision(cache: Path, commit: str, *, used_at: float | None, ref: str = "", repo: str = REPO) -> Path:
    """A whole snapshot with a shared and an own blob, as the library lays it out."""
    folder = repo_folder(cache, repo)
    path = folder / "snapshots" / commit
    files = {
        "config.json": blob(folder, "c" + commit[1:], 5),
        "model-1.safetensors": blob(folder, "shared", SHARED),
        "model-2.safetensors": blob(folder, commit, OWN),
        "extra.gguf": blob(folder, "g" + commit[1:], 7),
        "deep/er/tokenizer.json": blob(folder, "t" + commit[1:], 3),
    }
    for name, target in files.items():
        link = path / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("../" * (2 + name.count("/")) + f"blobs/{target}")
    if ref:
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    if used_at is not None:
        mark_used(path, now_unix=used_at)
    return path


def look(cache: Path, path: Path) -> Snapshot:
    return next(each for each in snapshots(cache) if each.path == path)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def whole(cache: Path, commit: str) -> bool:
    return weights.snapshot(cache, REPO, commit) is not None


def test_what_is_in_a_cache(tmp_path: Path) -> None:
    a, b = revision(tmp_path, A, used_at=5.0), revision(tmp_path, B, used_at=None)
    (tmp_path / "datasets--x" / "snapshots" / A).mkdir(parents=True)
    (tmp_path / "version.txt").write_text("1")
    found = {each.path: each for each in snapshots(tmp_path)}
    assert set(found) == {a, b}
    assert (found[a].used_at_unix, found[b].used_at_unix) == (5.0, None)
    assert found[a].repo == REPO
    assert sorted(found[a].blobs.values()) == [3, 5, 7, OWN, SHARED]
    assert snapshots(tmp_path / "nowhere") == ()


def test_a_mark_lasts_and_says_the_last_time(tmp_path: Path) -> None:
    path = revision(tmp_path, A, used_at=5.0)
    mark_used(path, now_unix=9.0)
    for file in path.rglob("*"):
        os.utime(file, (99, 99))  # what other tools do
    assert look(tmp_path, path).used_at_unix == 9.0
    assert weights.snapshot(tmp_path, REPO, A) == path
    assert not scan_cache_dir(tmp_path).warnings


def test_a_folder_that_is_no_snapshot_is_not_marked(tmp_path: Path) -> None:
    mark_used(tmp_path)
    mark_used(tmp_path / "models--gone" / "snapshots" / A)
    assert not tree(tmp_path)


def test_a_revision_goes_with_its_refs_and_leaves_what_is_shared(tmp_path: Path) -> None:
    a, b = revision(tmp_path, A, used_at=1.0, ref="main"), revision(tmp_path, B, used_at=2.0, ref="pr/1")
    before = snapshot_download(REPO, cache_dir=tmp_path, local_files_only=True)
    assert before == str(a)
    assert remove(look(tmp_path, a))
    assert not whole(tmp_path, A) and not whole(tmp_path, "main")
    assert whole(tmp_path, B) and whole(tmp_path, "pr/1")
    folder = repo_folder(tmp_path, REPO)
    assert {path.name for path in (folder / "blobs").iterdir()} == {"shared", *(kind + B[1:] for kind in "cbgt")}
    assert {path.name for path in (folder / USED).iterdir()} == {B}
    assert not (folder / REMOVING).exists() and not (folder / "refs" / "main").exists()
    assert not scan_cache_dir(tmp_path).warnings
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download(REPO, cache_dir=tmp_path, local_files_only=True)
    assert remove(look(tmp_path, b))
    assert not list((folder / "blobs").iterdir())
    assert not snapshots(tmp_path)


def test_removing_twice_is_harmless(tmp_path: Path) -> None:
    found = look(tmp_path, revision(tmp_path, A, used_at=1.0))
    assert remove(found) and remove(found)


def test_what_another_tool_put_there_is_not_touched(tmp_path: Path) -> None:
    path = revision(tmp_path, A, used_at=None)
    with pytest.raises(ValueError, match="not ours"):
        remove(look(tmp_path, path))
    assert whole(tmp_path, A)


@pytest.mark.parametrize("link", [False, True])
def test_a_snapshot_with_somebodys_file_is_his(tmp_path: Path, link: bool) -> None:
    path, notes = revision(tmp_path, A, used_at=1.0), tmp_path / "notes"
    notes.write_text("mine")
    found = look(tmp_path, path)
    if link:
        (path / "deep" / "notes").symlink_to(notes)
    else:
        (path / "deep" / "notes").write_text("mine")
    assert look(tmp_path, path).used_at_unix is None
    assert not remove(found)  # nor when it came after we had looked
    assert whole(tmp_path, A) and (path / "deep" / "notes").read_text() == "mine"


def test_links_out_of_the_cache_are_not_followed(tmp_path: Path) -> None:
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    revision(outside, A, used_at=1.0)
    revision(cache, B, used_at=1.0, repo="org/other")
    (cache / "models--org--model").symlink_to(outside / "models--org--model")
    (repo_folder(cache, "org/other") / "snapshots" / C).symlink_to(
        repo_folder(outside, REPO) / "snapshots" / A, target_is_directory=True
    )
    assert [each.path.name for each in snapshots(cache)] == [B]
    before = tree(outside)
    assert remove(snapshots(cache)[0])
    assert tree(outside) == before


@pytest.mark.parametrize("name", ["blobs", "snapshots", REMOVING])
def test_a_model_kept_elsewhere_is_left_alone(tmp_path: Path, name: str) -> None:
    revision(tmp_path / "cache", A, used_at=1.0)
    folder, elsewhere = repo_folder(tmp_path / "cache", REPO), tmp_path / "elsewhere"
    (folder / name).rename(elsewhere) if name != REMOVING else elsewhere.mkdir()
    (folder / name).symlink_to(elsewhere, target_is_directory=True)
    assert snapshots(tmp_path / "cache") == ()


def test_a_link_up_and_out_is_no_blob(tmp_path: Path) -> None:
    path = revision(tmp_path, A, used_at=1.0)
    victim = tmp_path / "blobs" / "victim"
    victim.parent.mkdir()
    victim.write_text("x")
    (path / "evil.json").symlink_to("../../../blobs/victim")
    assert look(tmp_path, path).used_at_unix is None and "victim" not in look(tmp_path, path).blobs


def test_use_between_the_look_and_the_removal_keeps_it(tmp_path: Path) -> None:
    path = revision(tmp_path, A, used_at=1.0)
    found = look(tmp_path, path)
    mark_used(path, now_unix=2.0)
    assert not remove(found)
    assert whole(tmp_path, A)


def test_a_locked_model_is_left_for_later(tmp_path: Path) -> None:
    found = look(tmp_path, revision(tmp_path, A, used_at=1.0))
    locks = tmp_path / ".locks" / repo_folder(tmp_path, REPO).name
    locks.mkdir(parents=True)
    with FileLock(locks / "orchestrator.lock"):
        assert not remove(found)
        assert whole(tmp_path, A)
    assert remove(found)


KILL_AT = """
import os, signal, sys
from pathlib import Path
from storage import disk_space
left = int(sys.argv[2])
def hook(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") and "models--" in str(arguments[0]):
        if ".locks" in str(arguments[0]):
            return
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
found = next(each for each in disk_space.snapshots(Path(sys.argv[1])) if each.used_at_unix == 1.0)
sys.addaudithook(hook)
assert disk_space.remove(found)
"""


def killed_at(cache: Path, step: int) -> bool:
    """Remove the oldest snapshot in a process that kills itself before its nth change; False: it came to the end."""
    root = Path(__file__).parents[2]
    done = subprocess.run((sys.executable, "-c", KILL_AT, str(cache), str(step)), cwd=root, check=False)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


def intact(cache: Path, commit: str) -> bool:
    path = repo_folder(cache, REPO) / "snapshots" / commit
    names = ("config.json", "model-1.safetensors", "model-2.safetensors", "extra.gguf", "deep/er/tokenizer.json")
    return all((path / name).exists() for name in names)


@pytest.mark.slow
def test_kill_9_at_every_step(tmp_path: Path) -> None:
    """Never whole in looks only; the other revision never harmed; and the next round finishes it."""
    step, outcomes = 0, set()
    while True:
        cache = tmp_path / str(step)
        path = revision(cache, A, used_at=1.0, ref="main")
        revision(cache, B, used_at=2.0, ref="other")
        killed = killed_at(cache, step)
        for name in (A, "main"):
            assert not whole(cache, name) or intact(cache, A)
        assert whole(cache, "other") and intact(cache, B)
        outcomes.add(path.exists())
        for each in choose(snapshots(cache), free_bytes=0, free_bytes_min=1, keep=[f"{path.parent}/{B}"]):
            assert remove(each)
        folder = repo_folder(cache, REPO)
        assert {each.name for each in (folder / "blobs").iterdir()} == {"shared", *(kind + B[1:] for kind in "cbgt")}
        assert [each.path.name for each in snapshots(cache)] == [B]
        assert not (folder / REMOVING).exists() or not tree(folder / REMOVING)
        assert {each.name for each in (folder / USED).iterdir()} == {B}
        assert intact(cache, B)
        if not killed:
            break
        step += 1
    assert step > 10 and outcomes == {True, False}


def test_what_was_pulled_again_outlives_the_end_of_the_old_removal(tmp_path: Path) -> None:
    path = revision(tmp_path, A, used_at=1.0, ref="main")
    assert killed_at(tmp_path, 2) and not path.exists()
    revision(tmp_path, A, used_at=3.0, ref="main")
    (left,) = [each for each in snapshots(tmp_path) if each.removing]
    assert remove(left)
    assert whole(tmp_path, "main") and intact(tmp_path, A)
    assert [(each.path, each.used_at_unix) for each in snapshots(tmp_path)] == [(path, 3.0)]


def test_a_blob_that_can_not_go_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(tmp_path, revision(tmp_path, A, used_at=1.0))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(PermissionError):
            remove(found)
    assert not whole(tmp_path, A)
    for each in choose(snapshots(tmp_path), free_bytes=1, free_bytes_min=0, keep=()):
        assert remove(each)
    assert not list((repo_folder(tmp_path, REPO) / "blobs").iterdir()) and not snapshots(tmp_path)


def test_what_can_not_be_listed_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the blobs that the unreadable revision shares would be taken from it."""
    a, b = revision(tmp_path, A, used_at=1.0), revision(tmp_path, B, used_at=None)
    found, walk = look(tmp_path, a), os.walk

    def refuse(top: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
        if top == b:
            onerror(PermissionError(13, "Permission denied", str(top)))
        return walk(top, onerror=onerror)

    with monkeypatch.context() as patch:
        patch.setattr(os, "walk", refuse)
        assert snapshots(tmp_path) == ()
        with pytest.raises(PermissionError):
            remove(found)
    assert whole(tmp_path, B) and intact(tmp_path, B)


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {"config.json": b"{}", "model.safetensors": random.Random(1).randbytes(3_000_000)}
    with Hub({REPO: files}) as running:
        yield running


def test_a_pull_and_a_removal_never_meet(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    found = look(cache, revision(cache, A, used_at=1.0))
    hub.bytes_per_s = 3_000_000
    store = HubWeights(pulls_max=1, environ={"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url})
    wanted = deployment(source=REPO)

    async def both() -> None:
        pull = asyncio.create_task(store.pull(wanted))
        await asyncio.to_thread(until, lambda: hub.sent.get("model.safetensors"))
        assert not await asyncio.to_thread(remove, found)
        assert whole(cache, A)
        hub.bytes_per_s = None
        await pull

    asyncio.run(both())
    assert remove(found)
    assert store.look(wanted).state is WeightsState.PRESENT and whole(cache, COMMIT)


def test_a_pull_waits_for_a_removal(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being removed is pulled again whole, not linked to blobs that are about to go."""
    cache = tmp_path / "hub"
    store = HubWeights(pulls_max=1, environ={"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url})
    wanted = deployment(source=REPO)
    monkeypatch.setattr(weights, "LOCK_POLL_S", 0.01)
    asyncio.run(store.pull(wanted))
    path = Path(store.look(wanted).path or "")
    mark_used(path)
    found = look(cache, path)
    finish = disk_space._finish
    pulls: list[WeightsState] = []

    async def both() -> None:
        loop = asyncio.get_running_loop()
        started = asyncio.Event()

        def slowly(out: Path) -> None:
            loop.call_soon_threadsafe(started.set)
            until(lambda: store.look(wanted).state is WeightsState.PULLING)
            pulls.append(store.look(wanted).state)
            finish(out)

        monkeypatch.setattr(disk_space, "_finish", slowly)
        removal = asyncio.create_task(asyncio.to_thread(remove, found))
        await started.wait()
        await asyncio.gather(store.pull(wanted), removal)

    asyncio.run(both())
    assert pulls == [WeightsState.PULLING]
    assert store.look(wanted).state is WeightsState.PRESENT and whole(cache, "main")
    assert (path / "model.safetensors").stat().st_size == 3_000_000
