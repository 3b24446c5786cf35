"""What only a folder can do, and do wrong: full and read-only disks, copies from another file system, power loss."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
import sys
from pathlib import Path

import pytest

from orchestrator.errors import NotFound, ObjectsUnavailable
from storage.objects_folder import TEMPORARY, FolderObjects
from tests.missing import missing
from tests.namespaces import run_alone
from tests.storage.test_objects import keys, spooled, whole

ELSEWHERE = Path("/dev/shm")
"""Another file system than that of temporary folders."""
FULL_DISK = """
set -e
mount -t tmpfs -o size=256k tmpfs "$1"
"$2" -c "$3" "$1"
mount -o remount,ro "$1"
"$2" -c "$4" "$1"
"""
HEAD = """
import asyncio, os, sys
from pathlib import Path
from orchestrator.errors import ObjectsUnavailable
from storage.objects_folder import FolderObjects
async def refused(call):
    try:
        await call
    except ObjectsUnavailable as error:
        print(error)
store = FolderObjects(Path(sys.argv[1]) / "objects")
"""
FILL = """
async def main():
    await store.put_bytes("kept", bytes(50_000))
    await refused(store.put_bytes("more", bytes(300_000)))
    source = Path("large")
    source.write_bytes(bytes(300_000))
    await refused(store.put("more", source, sha256=""))
    print(source.exists(), [each.key async for each in store.list("")], os.listdir(Path(sys.argv[1]) / "objects/.tmp"))
    await store.put_bytes("fits", bytes(50_000))
asyncio.run(main())
"""
WRITE = """
async def main():
    await refused(store.check())
    await refused(store.put_bytes("more", b""))
    await refused(store.delete("kept"))
    print(len(await store.read_bytes("kept", bytes_max=50_000)))
asyncio.run(main())
"""


def test_a_full_and_a_read_only_disk_say_so_and_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    disk, path = str(tmp_path / "disk"), {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = run_alone(
        "mount",
        FULL_DISK,
        *(disk, sys.executable, HEAD + FILL, HEAD + WRITE),
        cwd=tmp_path,
        timeout_s=60,
        env={**os.environ, **path},
    )
    root = tmp_path / "disk" / "objects"
    full = f"the disk of {root} is full: free some space"
    read_only = f"the disk of {root} is read-only: mount it writable"
    assert done.stdout.splitlines() == [full, full, "True ['kept'] []", *[read_only] * 3, "50000"], done.stderr


def test_files_are_private_and_moved_into_place(tmp_path: Path) -> None:
    async def check() -> None:
        store = FolderObjects(tmp_path / "deep" / "objects")
        source, digest = spooled(tmp_path, b"content")
        inode = source.stat().st_ino
        await store.put("a/b", source, sha256=digest)
        await store.put_bytes("a/c", b"small")
        await store.aclose()
        assert (tmp_path / "deep/objects/a/b").stat().st_ino == inode

    asyncio.run(check())
    for path in (tmp_path / "deep" / "objects", *(tmp_path / "deep" / "objects").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_file_from_another_file_system_is_copied_and_verified(tmp_path: Path) -> None:
    if not ELSEWHERE.is_dir() or ELSEWHERE.stat().st_dev == tmp_path.stat().st_dev:
        missing("needs /dev/shm on another file system than the temporary folder: set TMPDIR")

    async def check() -> None:
        store = FolderObjects(tmp_path / "objects")
        source, digest = spooled(ELSEWHERE, secrets.token_bytes(3_000_000))
        try:
            data = source.read_bytes()
            with pytest.raises(ObjectsUnavailable, match="changed on its way"):
                await store.put("x", source, sha256="0" * 64)
            assert source.exists() and await keys(store) == []
            await store.put("x", source, sha256=digest)
            assert not source.exists()
        finally:
            source.unlink(missing_ok=True)
        assert await whole(store, "x") == data
        assert list((tmp_path / "objects" / TEMPORARY).iterdir()) == []
        await store.aclose()

    asyncio.run(check())


def test_everything_is_synced_before_it_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))
        real(file)

    async def check() -> None:
        store = FolderObjects(tmp_path / "objects")
        source, digest = spooled(tmp_path, b"content")
        monkeypatch.setattr(os, "fsync", fsync)
        await store.put("a/b/c", source, sha256=digest)
        root = str(tmp_path / "objects")
        assert synced[0] == str(source)
        assert synced[-3:] == [f"{root}/a/b", f"{root}/a", root] and str(tmp_path) in synced
        synced.clear()
        await store.put_bytes("a/d", b"1")
        assert synced[0].startswith(f"{root}/{TEMPORARY}/") and synced[-2:] == [f"{root}/a", root]
        synced.clear()
        await store.delete("a/d")
        assert synced == [f"{root}/a"]
        await store.aclose()

    asyncio.run(check())


def test_sweep_removes_old_copies_only(tmp_path: Path) -> None:
    async def check() -> None:
        store = FolderObjects(tmp_path)
        assert await store.sweep(older_than_s=0) == 0
        await store.put_bytes("x", b"1")
        for name, age_s in (("old", 7200), ("new", 0)):
            path = tmp_path / TEMPORARY / name
            path.write_bytes(b"half")
            os.utime(path, (path.stat().st_mtime - age_s,) * 2)
        assert await store.sweep(older_than_s=3600) == 1
        assert [path.name for path in (tmp_path / TEMPORARY).iterdir()] == ["new"]
        assert await keys(store) == ["x"]
        await store.aclose()

    asyncio.run(check())


def test_order_is_that_of_keys_where_folders_and_files_mix(tmp_path: Path) -> None:
    async def check() -> None:
        store = FolderObjects(tmp_path)
        names = ["a-b", "a.b", "a/b", "a0", "a/b.c", "a/b-c/d", "A", "_"]
        for name in names:
            await store.put_bytes(name, b"")
        (tmp_path / "not a key").write_bytes(b"")
        assert await keys(store) == sorted(names)
        assert await keys(store, "a/b") == ["a/b", "a/b-c/d", "a/b.c"]
        await store.aclose()

    asyncio.run(check())


def test_a_reader_keeps_what_it_began_to_read(tmp_path: Path) -> None:
    async def check() -> None:
        store = FolderObjects(tmp_path)
        await store.put_bytes("x", b"1" * 600_000)
        reading = store.read("x")
        first = await anext(reading)
        await store.put_bytes("x", b"2" * 600_000)
        assert first + b"".join([data async for data in reading]) == b"1" * 600_000
        await store.delete("x")
        with pytest.raises(NotFound):
            await store.read_bytes("x", bytes_max=600_000)
        await store.aclose()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EIO, "the disk of {} has failed"),
        (errno.EACCES, "{} may not be written: give it to the user"),
        (errno.EDQUOT, "the disk quota of {} is used up"),
        (errno.ELOOP, "{} can't be used: Too many levels of symbolic links"),
    ],
)
def test_what_the_disk_says_is_told(number: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(file: int) -> None:
        raise OSError(number, os.strerror(number))

    async def check() -> None:
        store = FolderObjects(tmp_path / "objects")
        await store.check()
        monkeypatch.setattr(os, "fsync", refuses)
        with pytest.raises(ObjectsUnavailable) as caught:
            await store.put_bytes("x", b"1")
        assert str(caught.value).startswith(told.format(tmp_path / "objects"))
        assert await keys(store) == []
        await store.aclose()

    asyncio.run(check())
