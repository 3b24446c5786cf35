"""The warm process (`server`) and its forks, as their parent sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.errors import OrchestratorError
from storage.extract import server

READ_BYTES = 256 * 2**10
COMPLAINT_BYTES = 4096
"""So much of what a dying fork says last is looked at; never shown or logged, since it can hold the document's text."""
END_S_MAX = 30.0
"""For a fork to be killed, or the warm process is. It may have to start first."""
ROOT = Path(__file__).resolve().parents[2]
"""Where our own packages are."""
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "SYSTEMROOT")
"""What Python itself may need of our environment; nothing else of it is passed on."""
ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",  # else each thread takes 64 MiB of address space
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class WarmGone(OrchestratorError):
    """The warm process has ended, and its forks with it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A fork that is no more."""

    code: int
    """Negative: the signal that ended it."""
    answer: list[bytes]
    complaint: bytes


class Warm:
    """One warm process. It takes some 25 MB of memory of its own; it ends with this object, or with the parent."""

    def __init__(self, tokenizer: Path | None) -> None:
        """Start it; it warms up on its own. Blocks for a millisecond or two, on the thread whose end is to be its
        own. Raises `OSError` where the machine has no room for it."""
        setup: server.Setup = {
            "modules": [str(ROOT), *(place for place in sys.path if place and Path(place).is_absolute())],
            "parent": os.getpid(),
            "tokenizer": str(tokenizer.resolve()) if tokenizer else None,
        }
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        self._requests, theirs = socket.socketpair()
        self._requests.setblocking(False)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", server.__file__, json.dumps(setup)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={**kept, **ENVIRONMENT},
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, process, self._requests)

    def fork(self) -> Fork:
        """Another one. Raises `WarmGone`, and `OSError` where there are no sockets to be had."""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            pairs: list[tuple[socket.socket, socket.socket]] = []
            for _ in range(server.SOCKETS):
                mine, other = socket.socketpair()
                ours.enter_context(mine)
                theirs.enter_context(other)
                pairs.append((mine, other))
            try:
                socket.send_fds(self._requests, [b"."], [other.fileno() for _, other in pairs])
            except OSError as error:
                raise WarmGone("it takes no more documents") from error
            ours.pop_all()  # they are the fork's from now on
        return Fork(self, *(mine for mine, _ in pairs))

    def close(self) -> None:
        """End it and its forks. Blocks for a millisecond; again is fine."""
        self._end()


class Fork:
    """One reader, while the block runs."""

    def __init__(self, warm: Warm, line: socket.socket, talk: socket.socket, complaint: socket.socket) -> None:
        self._warm = warm
        self._line = line
        self._talk = talk
        self._complaint = complaint
        self._code: int | None = None
        for each in (line, talk, complaint):
            each.setblocking(False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Once this is over, the fork is not there any more."""
        try:
            if self._code is None and not isinstance(error, WarmGone):
                await self._end()
        finally:
            for each in (self._line, self._talk, self._complaint):
                each.close()

    async def answer(self, job: bytes, bytes_max: int) -> Ended:
        """What it says until it ends; one that says more than `bytes_max` is killed. Raises `WarmGone`."""
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(self._answer(bytes_max))
            complaint = tasks.create_task(self._last_words())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended
                await asyncio.get_running_loop().sock_sendall(self._talk, job)
                self._talk.shutdown(socket.SHUT_WR)
        return Ended(await self._ended(), answer.result(), complaint.result())

    async def _answer(self, bytes_max: int) -> list[bytes]:
        parts: list[bytes] = []
        total = 0
        while part := await _received(self._talk):
            total += len(part)
            if total > bytes_max:
                self._kill()
                return []
            parts.append(part)
        return parts

    async def _last_words(self) -> bytes:
        last = b""
        while part := await _received(self._complaint):
            last = (last + part)[-COMPLAINT_BYTES:]
        return last

    async def _ended(self) -> int:
        told = await _received(self._line)
        if len(told) != server.CODE.size:
            raise WarmGone("it has ended")
        (code,) = server.CODE.unpack(told)
        self._code = int(code)
        return self._code

    def _kill(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self._line.shutdown(socket.SHUT_WR)

    async def _end(self) -> None:
        self._kill()
        try:
            async with asyncio.timeout(END_S_MAX):
                await self._ended()
        except WarmGone:  # its forks went with it
            pass
        except TimeoutError:
            await asyncio.to_thread(self._warm.close)


def _end(process: subprocess.Popen[bytes], requests: socket.socket) -> None:
    requests.close()
    process.kill()
    process.wait()


async def _received(source: socket.socket) -> bytes:
    """Some of what comes; nothing at its end."""
    try:
        return await asyncio.get_running_loop().sock_recv(source, READ_BYTES)
    except ConnectionResetError:  # it ended before it took all that it was sent
        return b""
