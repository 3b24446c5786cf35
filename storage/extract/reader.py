"""Reads documents in subprocesses, each limited in memory, processor time, wall time and output."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from orchestrator.documents.model import Chunking, Passages
from orchestrator.documents.passages import PASSAGES_BYTES_MAX, PassagesDamaged, decode
from orchestrator.documents.ports import Source
from orchestrator.errors import Unreadable
from storage.extract import formats, worker

READ_BYTES = 256 * 2**10
COMPLAINT_BYTES = 4096
"""So much of what a dying worker says last is looked at; never shown or logged, since it can hold the document's
text."""
ROOT = Path(__file__).resolve().parents[2]
"""Where our own packages are."""
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "SYSTEMROOT")
"""What Python itself may need of our environment; nothing else of it is passed on."""
ONE_THREAD = {
    "MALLOC_ARENA_MAX": "1",  # else each thread takes 64 MiB of address space
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
OUT_OF_MEMORY = (b"memory allocation of", b"MemoryError", b"bad_alloc", b"out of memory", b"Out of memory")
GAVE_UP = (-signal.SIGABRT, -signal.SIGTRAP, -signal.SIGILL)
"""How a parser in C or Rust ends itself; PDFium does so, without a word, when it gets no memory."""
FOLDER = "orchestrator-read-"
"""What a worker's temporary folder is called, but for its end."""
STALE_S = 60
"""So long after no worker can be in it any more, such a folder is left over."""
STACK_FULL = b"overflowed its stack"


class LimitedReader:
    """An `orchestrator.documents.ports.Extractor` on this machine.

    At most `parallel_max` documents are read at once; further ones wait. Making one blocks for some milliseconds: it
    reads the tokenizer's file, and clears away folders that a killed process left.
    """

    def __init__(
        self,
        *,
        memory_bytes_max: int,
        time_max_s: float,
        text_bytes_max: int,
        parallel_max: int,
        tokenizer: Path | None,
    ) -> None:
        """`memory_bytes_max` is of address space, of which Python and kreuzberg alone take about 300 MiB. With
        `tokenizer`, a ``tokenizer.json``, tokens are its, else they are estimated. Raises `OSError` when it can't be
        read."""
        self._memory_bytes_max = memory_bytes_max
        self._time_max_s = time_max_s
        self._text_bytes_max = text_bytes_max
        self._tokenizer = tokenizer
        self._version = _version(tokenizer)
        self._slots = asyncio.Semaphore(parallel_max)
        _sweep(time_max_s + STALE_S)

    @property
    def version(self) -> str:
        """Of the readers, of kreuzberg, and of the tokenizer."""
        return self._version

    async def read(self, source: Source, chunking: Chunking, *, piece_tokens_max: int) -> Passages:
        """The document in chunks, see `ports.Extractor.read`. Cancelling it ends the subprocess."""
        job = self._job(source, chunking, piece_tokens_max)
        async with self._slots:
            with tempfile.TemporaryDirectory(prefix=FOLDER) as folder:
                ended = await self._run(json.dumps(job).encode(), folder)
        return await asyncio.to_thread(self._passages, ended)

    def _job(self, source: Source, chunking: Chunking, piece_tokens_max: int) -> worker.Job:
        return {
            "modules": [str(ROOT), *(place for place in sys.path if place and Path(place).is_absolute())],
            "parent": os.getpid(),
            "path": str(source.path.resolve()),
            "filename": source.filename,
            "content_type": source.content_type,
            "chunk_tokens_max": chunking.chunk_tokens_max,
            "overlap_tokens": chunking.overlap_tokens,
            "piece_tokens_max": piece_tokens_max,
            "tokenizer": str(self._tokenizer.resolve()) if self._tokenizer else None,
            "memory_bytes_max": self._memory_bytes_max,
            "time_max_s": math.ceil(self._time_max_s),
            "text_bytes_max": self._text_bytes_max,
        }

    async def _run(self, job: bytes, folder: str) -> _Ended:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", worker.__file__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._time_max_s):
                return await _ended(process, job)
        except TimeoutError:
            raise Unreadable(self._too_slow) from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    def _passages(self, ended: _Ended) -> Passages:
        """What the worker found. Blocks; raises `Unreadable`."""
        kind, answer = ended.answer[:1], ended.answer[1:]
        if ended.code == 0 and kind == worker.FAILURE:
            failure: worker.Failure = json.loads(answer)
            raise Unreadable(failure["message"], code=failure["code"])
        if ended.code != 0 or kind != worker.PASSAGES:
            raise self._died(ended)
        try:
            return decode(answer)
        except PassagesDamaged as error:
            raise Unreadable(f"made its reader fail: {error}", code="server_error") from error

    def _died(self, ended: _Ended) -> Unreadable:
        """Why a worker has no answer.

        1. Its processor time was over.
        2. Memory: its own limit, or the machine's, which kills.
        3. Its parser crashed on the document.
        4. It could not even begin.
        """
        if ended.code == -signal.SIGXCPU:
            return Unreadable(self._too_slow)
        if ended.code == -signal.SIGKILL or any(sign in ended.complaint for sign in OUT_OF_MEMORY):
            return Unreadable(worker.too_large(self._memory_bytes_max))
        if STACK_FULL in ended.complaint:
            return Unreadable("is nested too deeply")
        if ended.code in GAVE_UP:
            return Unreadable("made its reader give up, most likely for want of memory")
        if ended.code < 0:
            return Unreadable(f"made its reader crash ({signal.Signals(-ended.code).name})")
        return Unreadable(f"could not be read: the reader ended with code {ended.code}", code="server_error")

    @property
    def _too_slow(self) -> str:
        return f"took more than {self._time_max_s:g} s to read"


@dataclass(frozen=True, slots=True)
class _Ended:
    """A worker that is no more."""

    code: int
    answer: bytes
    complaint: bytes


async def _ended(process: asyncio.subprocess.Process, job: bytes) -> _Ended:
    """Give the worker its job and take what it says until it ends."""
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    assert stdin is not None and stdout is not None and stderr is not None  # they are pipes
    stdin.write(job)
    stdin.close()
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(_answer(process, stdout))
        complaint = tasks.create_task(_complaint(stderr))
    return _Ended(await process.wait(), answer.result(), complaint.result())


async def _answer(process: asyncio.subprocess.Process, stream: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    total = 0
    while part := await stream.read(READ_BYTES):
        total += len(part)
        if total > PASSAGES_BYTES_MAX:
            process.kill()
            return b""
        parts.append(part)
    return b"".join(parts)


async def _complaint(stream: asyncio.StreamReader) -> bytes:
    last = b""
    while part := await stream.read(READ_BYTES):
        last = (last + part)[-COMPLAINT_BYTES:]
    return last


def _environment(folder: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {**kept, **ONE_THREAD, "HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"}


def _sweep(older_than_s: float) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with contextlib.suppress(OSError):  # another process was faster, or it is another user's
            if time.time() - folder.stat().st_mtime > older_than_s:
                shutil.rmtree(folder)


def _version(tokenizer: Path | None) -> str:
    try:
        kreuzberg = metadata.version("kreuzberg")
    except metadata.PackageNotFoundError:
        kreuzberg = "none"
    counted = hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:16] if tokenizer else "estimated"
    return f"{formats.VERSION}/kreuzberg-{kreuzberg}/{counted}"
