"""What a fork of the warm process (`server`) does: read one document. The job comes by its standard input.

It confines itself before it looks at the document: address space, processor time, small files, no core, a session of
its own, gone with its parent. The answer is one byte, `PASSAGES` or `FAILURE`, and passages or JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn, TypedDict

from orchestrator.documents.model import Chunking, Passages
from orchestrator.documents.passages import encode
from orchestrator.errors import Unreadable
from storage.extract import formats
from storage.extract.blocks import Block
from storage.extract.chunking import chunk
from storage.extract.tokens import Offsets

PASSAGES = b"P"
FAILURE = b"F"
NO_ROOM = "no_room"
"""The code of a failure that is not the document's: the temporary folder is full."""
ROOM_BYTES_MIN = 16 * 2**20
"""kreuzberg unpacks its PDF library, 7 MB, there, and calls a PDF broken where it can't."""
OPEN_FILES_MAX = 64
FILE_BYTES_MAX = 64 * 2**20
"""kreuzberg unpacks its PDF library, 7 MB, into the temporary folder, which is gone afterwards."""
CPU_GRACE_S = 5
"""After the signal that tells of too much processor time, until the one that can't be caught."""
NICENESS = 10
"""Requests go before documents."""
PR_SET_PDEATHSIG = 1
"""From Linux's ``sys/prctl.h``."""
TITLE_CHARS_MAX = 300


class Job(TypedDict):
    """What is to be done."""

    folder: str
    """To make, and to work in."""
    path: str
    filename: str
    content_type: str
    chunk_tokens_max: int
    overlap_tokens: int
    piece_tokens_max: int
    memory_bytes_max: int
    time_max_s: int
    text_bytes_max: int


class Failure(TypedDict):
    """Why there are no passages."""

    code: str
    message: str


def main(parent: int, offsets: Offsets) -> NoReturn:
    """Read the job, do it, write the answer. `parent` is the process that was forked, `offsets` the tokens to count."""
    job: Job = json.loads(sys.stdin.buffer.read())
    try:
        _confine(job, parent)
        answer = PASSAGES + encode(read(job, offsets))
    except BaseException as error:  # a parser in Rust panics with what is no Exception
        answer = FAILURE + json.dumps(failure(error, job)).encode()
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    os._exit(0)  # nothing is left to be tidied


def _confine(job: Job, parent: int) -> None:
    os.setsid()
    Path(job["folder"]).mkdir(0o700, exist_ok=True)  # a try that ended early may have made it
    os.chdir(job["folder"])
    os.environ.update(HOME=job["folder"], TMPDIR=job["folder"])
    time_max_s = job["time_max_s"]
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, FILE_BYTES_MAX),
        (resource.RLIMIT_NOFILE, OPEN_FILES_MAX),
        (resource.RLIMIT_AS, job["memory_bytes_max"]),
    ):
        resource.setrlimit(limit, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (time_max_s, time_max_s + CPU_GRACE_S))
    os.nice(NICENESS)
    end_with(parent)


def end_with(parent: int) -> None:
    """Have this process killed when its parent ends, where the system can; end it at once if that happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def read(job: Job, offsets: Offsets) -> Passages:
    """The document in chunks. Raises `Unreadable`, and whatever a broken document makes a parser raise."""
    path = Path(job["path"])
    format = formats.recognise(path, job["filename"], job["content_type"])
    if format not in formats.UNPACKED and path.stat().st_size > job["text_bytes_max"]:
        raise _too_much_text(job["text_bytes_max"])
    document = formats.read(format, path, job["content_type"])
    headings: list[str] = []
    chunks = tuple(
        chunk(
            _watched(document.blocks, headings, job["text_bytes_max"]),
            Chunking(chunk_tokens_max=job["chunk_tokens_max"], overlap_tokens=job["overlap_tokens"]),
            offsets,
            piece_tokens_max=job["piece_tokens_max"],
            locate=document.locate,
        )
    )
    if not chunks:
        pictures = ": its pages may be pictures" if format is formats.Format.PDF else ""
        raise Unreadable(f"holds no text{pictures}")
    return Passages(chunks=chunks, title=(document.title or "".join(headings))[:TITLE_CHARS_MAX])


def _watched(blocks: Iterable[Block], headings: list[str], bytes_max: int) -> Iterator[Block]:
    """The blocks, as long as they are not too much; the first heading is kept."""
    total = 0
    for block in blocks:
        total += len(block.text.encode())
        if total > bytes_max:
            raise _too_much_text(bytes_max)
        if block.title and not headings:
            headings.append(block.title)
        yield block


def _too_much_text(bytes_max: int) -> Exception:
    return Unreadable(f"holds more than {bytes_max // 2**20} MiB of text")


def failure(error: BaseException, job: Job) -> Failure:
    """What a client may know of it: never a parser's own words, which can hold the document's."""
    if _no_room(job):
        return {"code": NO_ROOM, "message": "the temporary folder is full"}
    if isinstance(error, Unreadable):
        return {"code": error.code, "message": str(error)}
    if isinstance(error, MemoryError):
        return {"code": "invalid_file", "message": too_large(job["memory_bytes_max"])}
    if isinstance(error, RecursionError):
        return {"code": "invalid_file", "message": "is nested too deeply"}
    return {"code": "server_error", "message": f"made its reader fail: {type(error).__name__}"}


def _no_room(job: Job) -> bool:
    found = os.statvfs(Path(job["folder"]).parent)
    return found.f_bavail * found.f_frsize < ROOM_BYTES_MIN


def too_large(memory_bytes_max: int) -> str:
    """The sentence for a document that needs more memory than it may have."""
    return f"needs more than {memory_bytes_max / 2**30:g} GiB of memory to be read"
