"""Priming of real files: what is resident is asked of the kernel, before and after."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import page_cache
from storage.page_cache import CHUNK_BYTES, PIECE_BYTES, Primed, free_memory_bytes, prime, resident_bytes, weight_files
from tests.missing import missing

MIB = 2**20
SIZE = 2 * CHUNK_BYTES + 3 * MIB + 123
ALMOST = SIZE * 99 // 100
"""The kernel may take back a page at any time."""


def write(path: Path, size: int = SIZE) -> Path:
    path.write_bytes(random.Random(path.name).randbytes(size))
    return path


def drop(*paths: Path) -> None:
    """Make files cold; skips the test where the filesystem keeps its pages (a tmpfs is nothing but pages)."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(resident_bytes(path) for path in paths):
        text = "this filesystem does not drop pages from its cache when asked to: let TMPDIR be on a disk"
        missing(text)


def primed(
    folder: Path, *, free_bytes: int | None = 2**40, cancelled: Callable[[], bool] = lambda: False
) -> tuple[Primed, int]:
    """What came of it, and the sum of what `on_bytes` heard."""
    heard: list[int] = []
    return prime(folder, on_bytes=heard.append, cancelled=cancelled, free_bytes=free_bytes), sum(heard)


def test_a_cold_model_is_resident_afterwards(tmp_path: Path) -> None:
    files = [write(tmp_path / f"model-{n}.safetensors") for n in (1, 2)]
    drop(*files)
    result, heard = primed(tmp_path)
    assert (result.total_bytes, result.resident_before_bytes, result.reason) == (2 * SIZE, 0, "")
    assert result.read_bytes == heard == 2 * SIZE
    assert result.seconds > 0
    assert all(resident_bytes(file) >= ALMOST for file in files)


def test_a_warm_model_is_not_read_again(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors").read_bytes()
    result, heard = primed(tmp_path)
    assert (result.read_bytes, heard, result.resident_before_bytes, result.reason) == (0, 0, SIZE, "")


def test_only_the_missing_ranges_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors")
    drop(file)
    with file.open("rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # so that nothing is read ahead
        os.pread(opened.fileno(), CHUNK_BYTES, 0)
    had = resident_bytes(file)
    assert CHUNK_BYTES <= had < SIZE
    result, _ = primed(tmp_path)
    assert result.resident_before_bytes == had and result.read_bytes == SIZE - had
    assert resident_bytes(file) >= ALMOST


def test_files_larger_than_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, whatever is looked at in one call."""
    monkeypatch.setattr("storage.page_cache.WINDOW_BYTES", CHUNK_BYTES)
    files = [write(tmp_path / f"model-{n}.safetensors") for n in (1, 2)]
    drop(*files)
    result, heard = primed(tmp_path)
    assert result.read_bytes + result.resident_before_bytes == 2 * SIZE and result.read_bytes == heard
    assert all(resident_bytes(file) >= ALMOST for file in files)


def test_what_does_not_fit_is_left_alone(tmp_path: Path) -> None:
    first, second = write(tmp_path / "model-1.safetensors"), write(tmp_path / "model-2.safetensors")
    drop(first, second)
    result, _ = primed(tmp_path, free_bytes=SIZE + MIB)
    assert result.read_bytes == SIZE + MIB and "fit in free memory" in result.reason
    assert resident_bytes(first) >= ALMOST
    ahead = 16 * MIB  # the kernel reads ahead of a read, by as much as the disk is set to
    assert MIB <= resident_bytes(second) <= MIB + ahead
    drop(first, second)
    assert primed(tmp_path, free_bytes=0)[0].read_bytes == 0
    assert resident_bytes(first) == 0


def test_pages_that_are_there_count_against_the_bound(tmp_path: Path) -> None:
    """Free memory counts them as free, so reading as much again would push them out."""
    first, second = write(tmp_path / "model-1.safetensors"), write(tmp_path / "model-2.safetensors")
    drop(first, second)
    first.read_bytes()
    assert primed(tmp_path, free_bytes=SIZE)[0].read_bytes == 0


def test_links_are_resolved_and_a_blob_counts_once(tmp_path: Path) -> None:
    blob = write(tmp_path / "blob")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "a.safetensors").symlink_to("../blob")
    (folder / "b.safetensors").symlink_to("../blob")
    (folder / "c.safetensors").hardlink_to(blob)
    drop(blob)
    result, _ = primed(folder)
    assert result.total_bytes == SIZE == result.read_bytes
    assert resident_bytes(blob) >= ALMOST


@pytest.mark.parametrize(
    ("names", "index", "loaded"),
    [
        (["model-10.safetensors", "model-2.safetensors"], [], ["model-2.safetensors", "model-10.safetensors"]),
        (["model.safetensors", "pytorch_model.bin", "x.gguf", "config.json"], [], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt"], [], ["pytorch_model.bin"]),
        (["b.safetensors", "consolidated.safetensors"], ["b.safetensors", "gone.safetensors"], ["b.safetensors"]),
        (["b.safetensors"], ["../../etc.safetensors"], ["b.safetensors"]),
        (["x.Q4.gguf"], [], ["x.Q4.gguf"]),
        (["config.json"], [], []),
    ],
)
def test_order_and_choice(tmp_path: Path, names: list[str], index: list[str], loaded: list[str]) -> None:
    for name in names:
        write(tmp_path / name, 10)
    if index:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(index))}))
    assert [blob.path.name for blob in weight_files(tmp_path)] == loaded


def test_an_index_that_is_broken_is_ignored(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", 10)
    for text in ("", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        assert [blob.path.name for blob in weight_files(tmp_path)] == ["a.safetensors"]


def test_cancel_is_seen_within_one_read_of_each_reader(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", 4 * CHUNK_BYTES)
    drop(file)
    stop, stopped_at, heard = threading.Event(), [0.0], [0]

    def on_bytes(count: int) -> None:
        heard[0] += count
        if heard[0] >= 4 * MIB and not stop.is_set():
            stopped_at[0] = time.monotonic()
            stop.set()

    result = prime(tmp_path, on_bytes=on_bytes, cancelled=stop.is_set, free_bytes=2**40)
    assert time.monotonic() - stopped_at[0] < 1.0  # some 5 ms on a machine that does nothing else
    assert result.reason == "cancelled"
    assert result.read_bytes == heard[0] <= 4 * MIB + page_cache.READERS * PIECE_BYTES


def test_cancel_is_seen_where_nothing_has_to_be_read(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors").read_bytes()
    assert primed(tmp_path, cancelled=lambda: True)[0].reason == "cancelled"


def test_a_file_that_vanishes_ends_it_quietly(tmp_path: Path) -> None:
    long = 2 * page_cache.READERS * CHUNK_BYTES  # so that no reader has come to the second when the first byte is told
    files = [write(tmp_path / f"model-{n}.safetensors", long) for n in (1, 2)]
    drop(*files)

    def on_bytes(_: int) -> None:
        files[1].unlink(missing_ok=True)

    result = prime(tmp_path, on_bytes=on_bytes, cancelled=lambda: False, free_bytes=2**40)
    assert "model-2.safetensors" in result.reason and "No such file" in result.reason
    assert 0 < result.read_bytes <= long


def test_a_file_that_shrinks_ends_it_quietly(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", 8 * CHUNK_BYTES)
    drop(file)
    result = prime(
        tmp_path, on_bytes=lambda _: os.truncate(file, PIECE_BYTES), cancelled=lambda: False, free_bytes=2**40
    )
    assert result.reason == "a.safetensors is shorter than it was"


def test_an_error_of_the_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.safetensors")
    drop(file)

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("storage.page_cache.os.preadv", broken)
    result, heard = primed(tmp_path)
    assert result.reason == f"{file}: Input/output error"
    assert (result.read_bytes, heard, result.total_bytes) == (0, 0, SIZE)


def test_no_folder_and_a_dangling_link_are_told(tmp_path: Path) -> None:
    assert "No such file" in primed(tmp_path / "no")[0].reason
    (tmp_path / "a.safetensors").symlink_to("nowhere")
    assert "a.safetensors" in primed(tmp_path)[0].reason


def test_an_empty_file_and_an_empty_folder_are_primed_at_once(tmp_path: Path) -> None:
    assert primed(tmp_path)[0].reason == ""
    write(tmp_path / "a.safetensors", 0)
    assert (primed(tmp_path)[0].reason, resident_bytes(tmp_path / "a.safetensors")) == ("", 0)


def test_where_the_kernel_does_not_tell_all_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mincore calls every page of somebody else's read-only file resident: believing it would prime nothing."""
    write(tmp_path / "a.safetensors")
    monkeypatch.setattr("storage.page_cache._may_tell", lambda _: False)
    result, _ = primed(tmp_path)
    assert (result.resident_before_bytes, result.read_bytes) == (0, SIZE)


def test_a_callback_that_fails_is_heard_of(tmp_path: Path) -> None:
    drop(write(tmp_path / "a.safetensors"))

    def on_bytes(_: int) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        prime(tmp_path, on_bytes=on_bytes, cancelled=lambda: False, free_bytes=2**40)


def test_no_thread_and_no_file_is_left_open(tmp_path: Path) -> None:
    drop(write(tmp_path / "a.safetensors"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    primed(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prime")]


@pytest.mark.parametrize(
    ("line", "folder", "limit", "usage"),
    [
        ("0::/a/b", "a/b", "memory.max", "memory.current"),
        ("0::/a/b", "a", "memory.max", "memory.current"),  # a limit of a group above holds, too
        ("0::/docker/id", "", "memory.max", "memory.current"),  # the path is the host's, the mount ours
        ("4:memory:/a", "memory/a", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("4:cpu,memory:/x", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_a_control_group_bounds_what_is_free(tmp_path: Path, line: str, folder: str, limit: str, usage: str) -> None:
    group = tmp_path / "groups" / folder
    group.mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(f"1:name=systemd:/\n{line}\n")
    (group / limit).write_text("100000000\n")
    (group / usage).write_text("70000000\n")
    (group / "memory.stat").write_text("anon 1\nactive_file 5000000\ninactive_file 1000000\n")
    assert free_memory_bytes(tmp_path, tmp_path / "groups") == 36_000_000
    (group / limit).write_text("max\n")
    assert free_memory_bytes(tmp_path, tmp_path / "groups") > 36_000_000


def test_free_memory_of_this_machine() -> None:
    assert free_memory_bytes() > 0
