"""Sends files to the service: read from disk as they go, so that their size costs no memory."""

from __future__ import annotations

import mimetypes
import os
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.cli.remote import Refused, Remote
from orchestrator.errors import OrchestratorError

READ_BYTES = 256 * 2**10
TRIES_MAX = 10
"""Of one file, while the service asks for patience."""
RETRY_AFTER_S_MAX = 60.0
STDIN = "-"
AGAIN = (429, 503)

Progress = Callable[[int], None]
"""Told how many bytes of the file have been sent, from the start: less than before when it is sent again."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """A file to be sent."""

    path: str
    """As people named it; ``-`` for the standard input."""
    name: str
    """What it will be called."""


def sources(paths: Sequence[str], *, name: str | None, recursive: bool) -> Iterator[Source]:
    """What the paths stand for: each a file, or with `recursive` all files below a folder, but for hidden ones.

    Raises ValueError for wrong usage.
    """
    if name is not None and (len(paths) != 1 or Path(paths[0]).is_dir()):
        raise ValueError("--name goes with one file")
    if STDIN in paths and name is None:
        raise ValueError("what comes from the standard input needs a --name")
    if paths.count(STDIN) > 1:
        raise ValueError("the standard input can be sent once")
    folders = [path for path in paths if Path(path).is_dir()]
    if folders and not recursive:
        raise ValueError(f"{folders[0]} is a folder: --recursive sends the files below it")
    return (source for path in paths for source in _below(path, name))


def send(remote: Remote, source: Source, fields: Mapping[str, str], progress: Progress, say: Say) -> dict[str, Any]:
    """The file as the service has it now. Waits and tries again while the service asks for that, `TRIES_MAX` times.

    Raises `OrchestratorError`; OSError when the file can't be read.
    """
    with _opened(source) as file:
        size = os.fstat(file.fileno()).st_size
        for tries_left in reversed(range(TRIES_MAX)):
            try:
                return _sent(remote, source, file, size, fields, progress)
            except Refused as error:
                if error.status not in AGAIN or error.retry_after_s is None or not tries_left:
                    raise
                wait_s = min(error.retry_after_s, RETRY_AFTER_S_MAX)
                say(f"{error}; once more in {wait_s:.0f} s")
                time.sleep(wait_s)
    raise AssertionError("the last try raises")


def _sent(
    remote: Remote, source: Source, file: BinaryIO, size: int, fields: Mapping[str, str], progress: Progress
) -> dict[str, Any]:
    boundary = secrets.token_hex(16)
    head, tail = _form(boundary, fields, source.name)

    def body() -> Generator[bytes, None, None]:
        yield head
        for sent, data in _read(source, file, size):
            yield data
            progress(sent)
        yield tail

    headers = {
        "content-type": f"multipart/form-data; boundary={boundary}",
        "content-length": str(len(head) + size + len(tail)),
    }
    with closing(body()) as parts:
        found: dict[str, Any] = remote.upload("/v1/files", parts, headers)
    return found


def _read(source: Source, file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """What was read so far, and the next piece; `size` bytes in all, since that was promised."""
    file.seek(0)
    sent = 0
    while sent < size:
        data = file.read(min(READ_BYTES, size - sent))
        if not data:
            raise OrchestratorError(f"{source.path} became shorter while it was sent")
        sent += len(data)
        yield sent, data


def _form(boundary: str, fields: Mapping[str, str], name: str) -> tuple[bytes, bytes]:
    """What stands before and after the content. https://html.spec.whatwg.org/#multipart-form-data"""
    quoted = name.translate({ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"})
    content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n'
        f"Content-Type: {content_type}\r\n\r\n"
    )
    return "".join(parts).encode("utf-8", "replace"), f"\r\n--{boundary}--\r\n".encode()


def _opened(source: Source) -> BinaryIO:
    """The file, which can be read again from its start."""
    if source.path == STDIN:
        return _spooled(sys.stdin.buffer)
    # Without blocking: to open a pipe that nobody writes to would wait for ever.
    opened = os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OrchestratorError(f"{source.path} is no file")
    return os.fdopen(opened, "rb")


def _spooled(stream: BinaryIO) -> BinaryIO:
    """Its length must be known beforehand, and it may have to be sent twice."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        while data := stream.read(READ_BYTES):
            file.write(data)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _below(path: str, name: str | None) -> Iterator[Source]:
    if path == STDIN or not Path(path).is_dir():
        yield Source(path, name or Path(path).name)
        return
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(inner for inner in folders if not inner.startswith("."))
        for file in (Path(folder, name) for name in sorted(files) if not name.startswith(".")):
            if file.is_file():
                yield Source(str(file), file.name)
