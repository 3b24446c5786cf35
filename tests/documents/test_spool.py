"""The spool: bounds, faults of a real disk, and how much memory large and many uploads take. PROMISES H4, R11."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from orchestrator.documents.spool import BUFFER_BYTES, Spool
from orchestrator.errors import ApiError
from tests.documents.app import sha256
from tests.stub import until

MIB = 2**20


def spool(folder: Path, *, files_max: int = 2, free_bytes_min: int = 0) -> Spool:
    """An empty one."""
    return Spool(folder, files_max=files_max, free_bytes_min=free_bytes_min)


def test_what_was_written_is_there_with_its_digest(tmp_path: Path) -> None:
    pieces = [bytes([number]) * size for number, size in enumerate((1, 0, BUFFER_BYTES, BUFFER_BYTES - 1, 7))]

    async def run() -> None:
        async with spool(tmp_path).file() as file:
            await file.write(*pieces)
            for piece in pieces:
                await file.write(memoryview(piece))
            await file.finish()
            whole = b"".join(pieces) * 2
            assert (file.bytes, file.sha256, file.path.read_bytes()) == (len(whole), sha256(whole), whole)
            assert file.path.stat().st_mode & 0o777 == 0o600

    asyncio.run(run())
    assert not list(tmp_path.iterdir())


def test_many_small_pieces_are_one_write_after_the_other(tmp_path: Path) -> None:
    async def run() -> None:
        async with spool(tmp_path).file() as file:
            await file.write(*[b"x"] * 5000)
            await file.finish()
            assert file.path.read_bytes() == b"x" * 5000

    asyncio.run(run())


def test_a_moved_file_stays_where_it_went(tmp_path: Path) -> None:
    async def run() -> None:
        async with spool(tmp_path / "spool").file() as file:
            await file.write(b"x")
            await file.finish()
            file.path.rename(tmp_path / "kept")

    asyncio.run(run())
    assert (tmp_path / "kept").read_bytes() == b"x"


def test_a_cancelled_upload_leaves_nothing_and_frees_its_place(tmp_path: Path) -> None:
    """Cancelled while its bytes are on their way to the disk."""

    async def run() -> None:
        one = spool(tmp_path, files_max=1)

        async def upload() -> None:
            async with one.file() as file:
                while True:
                    await file.write(bytes(BUFFER_BYTES))

        for _ in range(20):
            task = asyncio.create_task(upload())
            await asyncio.sleep(0.002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with one.file() as file:
            await file.finish()

    asyncio.run(run())
    until(lambda: not list(tmp_path.iterdir()))


def test_no_more_than_so_many_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        one = spool(tmp_path, files_max=1)
        async with one.file():
            with pytest.raises(ApiError) as caught:
                async with one.file():
                    pass
            assert (caught.value.status, caught.value.code) == (503, "too_many_uploads")

    asyncio.run(run())


def test_room_is_kept_free(tmp_path: Path) -> None:
    async def run(bytes_told: int, free_bytes_min: int) -> None:
        async with spool(tmp_path, free_bytes_min=free_bytes_min).file(bytes_told):
            pass

    for told, kept in ((2**60, 0), (0, 2**60)):
        with pytest.raises(ApiError) as caught:
            asyncio.run(run(told, kept))
        assert (caught.value.status, caught.value.code) == (503, "storage_full")
        assert "retry-after" in caught.value.headers
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_in_the_middle_is_503(tmp_path: Path) -> None:
    """By a limit on the size of files, which the kernel enforces as it does a full disk."""

    async def run() -> None:
        async with spool(tmp_path).file() as file:
            await file.write(bytes(3 * MIB))
            await file.finish()

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(ApiError) as caught:
            asyncio.run(run())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert (caught.value.status, caught.value.code) == (503, "storage_full")
    assert not list(tmp_path.iterdir())


# --- in a process of its own ---


class Process:
    """The app of `tests.documents.app` in a process, whose memory is watched."""

    def __init__(self, folder: Path, file_bytes_max: int) -> None:
        argv = (sys.executable, "-m", "tests.documents.app", str(folder), str(file_bytes_max))
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip().removeprefix("listening on ")
        self._facts = psutil.Process(self._process.pid)
        self._ended = threading.Event()
        self.peak_bytes = self._facts.memory_info().rss
        self.before_bytes = 0
        self._watch = threading.Thread(target=self._sample)

    def __enter__(self) -> Process:
        self.send(64 * 1024)  # what is imported and made at the first one is not this one's
        self.before_bytes = self.peak_bytes = self._facts.memory_info().rss
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()
        self._process.communicate("end\n", timeout=30)

    @property
    def grown_bytes(self) -> int:
        """Since the start."""
        return self.peak_bytes - self.before_bytes

    def send(self, size: int) -> str:
        """Upload so many bytes; the file's id."""
        block = bytes(MIB)

        def body() -> Iterator[bytes]:
            yield b'--B\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
            yield b'--B\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for start in range(0, size, MIB):
                yield block[: min(MIB, size - start)]
            yield b"\r\n--B--\r\n"

        headers = {"content-type": "multipart/form-data; boundary=B", "authorization": "Bearer ada"}
        answer = httpx.post(f"{self.url}/v1/files", content=body(), headers=headers, timeout=300)
        assert answer.status_code == 200, answer.text
        assert answer.json()["bytes"] == size
        return str(answer.json()["id"])

    def take(self, id: str) -> int:
        """Download; how many bytes."""
        url, headers = f"{self.url}/v1/files/{id}/content", {"authorization": "Bearer ada"}
        with httpx.stream("GET", url, headers=headers, timeout=300) as answer:
            return sum(len(part) for part in answer.iter_raw())

    def _sample(self) -> None:
        while not self._ended.wait(0.01):
            self.peak_bytes = max(self.peak_bytes, self._facts.memory_info().rss)


@pytest.mark.slow
def test_fifty_uploads_at_once_take_little_memory(tmp_path: Path) -> None:
    with Process(tmp_path, 2**30) as process:
        with ThreadPoolExecutor(50) as pool:
            ids = list(pool.map(process.send, [20 * MIB] * 50))
        assert len(set(ids)) == 50
        assert process.grown_bytes < 64 * MIB, f"{process.grown_bytes / MIB:.0f} MiB"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_file_of_many_gib_takes_little_memory(tmp_path: Path) -> None:
    """Up and down again. The machine needs twice as much disk as the file has bytes, or half of it is tried."""
    free = psutil.disk_usage(str(tmp_path)).free
    size = min(5 * 2**30, free // 2)
    with Process(tmp_path, 6 * 2**30) as process:
        assert process.take(process.send(size)) == size
        assert process.grown_bytes < 64 * MIB, f"{process.grown_bytes / MIB:.0f} MiB"
