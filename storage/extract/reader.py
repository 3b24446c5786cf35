"""Reads documents in processes of their own, each limited in memory, processor time, wall time and output."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import secrets
import shutil
import signal
import tempfile
import time
from functools import partial
from importlib import metadata
from pathlib import Path

from orchestrator.documents.model import Chunking, Passages
from orchestrator.documents.passages import PASSAGES_BYTES_MAX, PassagesDamaged, decode
from orchestrator.documents.ports import Source
from orchestrator.documents.threads import finished
from orchestrator.errors import MachineRefused, Unreadable
from storage.extract import formats, worker
from storage.extract.warm import Ended, Warm, WarmGone

OUT_OF_MEMORY = (b"memory allocation of", b"MemoryError", b"bad_alloc", b"out of memory", b"Out of memory")
GAVE_UP = (-signal.SIGABRT, -signal.SIGTRAP, -signal.SIGILL)
"""How a parser in C or Rust ends itself; PDFium does so, without a word, when it gets no memory."""
FOLDER = "orchestrator-read-"
"""What a worker's temporary folder is called, but for its end."""
STALE_S = 60
"""So long after no worker can be in it any more, such a folder is left over."""
STACK_FULL = b"overflowed its stack"
TRIES = 2
"""Of one document, where the warm process ends under it."""


class LimitedReader:
    """An `orchestrator.documents.ports.Extractor` on this machine.

    At most `parallel_max` documents are read at once; further ones wait. Each has a fork of one warm process, which the
    first of them starts. Making a reader blocks for some milliseconds: it reads the tokenizer's file, and clears away
    folders that a killed process left.
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
        self._warm: Warm | None = None
        _sweep(time_max_s + STALE_S)

    @property
    def version(self) -> str:
        """Of the readers, of kreuzberg, and of the tokenizer."""
        return self._version

    def close(self) -> None:
        """End the warm process, when nothing is being read any more. Blocks for a millisecond."""
        if self._warm is not None:
            self._warm.close()
            self._warm = None

    async def read(self, source: Source, chunking: Chunking, *, piece_tokens_max: int) -> Passages:
        """The document in chunks, see `ports.Extractor.read`. Cancelling it ends its process."""
        folder = Path(tempfile.gettempdir(), FOLDER + secrets.token_hex(16))
        job = json.dumps(self._job(source, chunking, piece_tokens_max, folder)).encode()
        async with self._slots:
            try:
                ended = await self._run(job)
            finally:
                await finished(partial(shutil.rmtree, folder, ignore_errors=True))
        return await asyncio.to_thread(self._passages, ended)

    def _job(self, source: Source, chunking: Chunking, piece_tokens_max: int, folder: Path) -> worker.Job:
        return {
            "folder": str(folder),
            "path": str(source.path.absolute()),
            "filename": source.filename,
            "content_type": source.content_type,
            "chunk_tokens_max": chunking.chunk_tokens_max,
            "overlap_tokens": chunking.overlap_tokens,
            "piece_tokens_max": piece_tokens_max,
            "memory_bytes_max": self._memory_bytes_max,
            "time_max_s": math.ceil(self._time_max_s),
            "text_bytes_max": self._text_bytes_max,
        }

    async def _run(self, job: bytes) -> Ended:
        for _ in range(TRIES):
            if self._warm is None:
                self._warm = Warm(self._tokenizer)
            warm = self._warm
            try:
                async with asyncio.timeout(self._time_max_s), warm.fork() as fork:
                    return await fork.answer(job, PASSAGES_BYTES_MAX)
            except TimeoutError:
                raise Unreadable(self._too_slow) from None
            except WarmGone:
                if self._warm is warm:
                    self._warm = None
                await asyncio.to_thread(warm.close)
        raise MachineRefused("the process that reads documents could not be kept running")

    def _passages(self, ended: Ended) -> Passages:
        """What the worker found. Blocks; raises `Unreadable`, and `MachineRefused`."""
        said = b"".join(ended.answer)
        kind, answer = said[:1], said[1:]
        if ended.code == 0 and kind == worker.FAILURE:
            failure: worker.Failure = json.loads(answer)
            if failure["code"] == worker.NO_ROOM:
                raise MachineRefused(failure["message"])
            raise Unreadable(failure["message"], code=failure["code"])
        if ended.code != 0 or kind != worker.PASSAGES:
            raise self._died(ended)
        try:
            return decode(answer)
        except PassagesDamaged as error:
            raise Unreadable(f"made its reader fail: {error}", code="server_error") from error

    def _died(self, ended: Ended) -> Unreadable:
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
