"""The warm process, of which each document's reader is a fork: ``python -I -S server.py SETUP``.

It has imported what readers need and loaded the tokenizer, which takes a hundred times as long as a small file does.
It never sees a document, and has one thread, so that a fork of it is whole.

Its standard input is a socket. Each message there is one byte with three sockets for a new fork (`SOCKETS`):

1. the line: when the other end stops writing, the fork is killed; when the fork has ended, its exit code is written to
   it (`CODE`; negative: the signal), and it is closed;
2. the fork's standard input and output;
3. the fork's standard error.

When the standard input ends, so does everything.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, TypedDict

SOCKETS = 3
CODE = struct.Struct("=i")
AHEAD = ("binary", "ebook", "mail", "markup", "plain", "sheets", "slides", "wordprocessing")
"""What `formats.read` imports when it is needed."""
WAKEUP_BYTES = 1024


class Setup(TypedDict):
    """What the process is started with."""

    modules: list[str]
    """Where modules are found."""
    parent: int
    """Whom it works for."""
    tokenizer: str | None


def main() -> None:
    """Warm up, then fork until nobody is there any more."""
    setup: Setup = json.loads(sys.argv[1])
    sys.path.extend(setup["modules"])
    from storage.extract import tokens, worker

    worker.end_with(setup["parent"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # service managers tell all processes; the parent ends us in time
    for name in AHEAD:
        importlib.import_module(f"storage.extract.{name}")
    with contextlib.suppress(ImportError):  # an extra; who needs it says so
        importlib.import_module("kreuzberg")
    offsets = tokens.tokenizer_offsets(Path(setup["tokenizer"])) if setup["tokenizer"] else tokens.estimated
    gc.freeze()  # else a fork's first collection would copy all that is there
    _Server(socket.socket(fileno=0), partial(worker.main, os.getpid(), offsets)).run()


class _Server:
    """Forks, and the lines to them."""

    def __init__(self, requests: socket.socket, read: Callable[[], NoReturn]) -> None:
        self._requests = requests
        self._read = read
        self._lines: dict[int, socket.socket] = {}
        """Those of the forks that are not reaped, by their processes."""
        self._selector = selectors.PollSelector()

    def run(self) -> NoReturn:
        """Serve until the requests end."""
        self._selector.register(self._requests, selectors.EVENT_READ, self._fork)
        ended, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(ended, selectors.EVENT_READ, partial(self._reap, ended))
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _fork(self) -> None:
        message, given, _, _ = socket.recv_fds(self._requests, 1, SOCKETS)
        if not message:
            for process in self._lines:
                _kill(process)
            sys.exit()
        line, talk, complaint = given
        process = os.fork()
        if not process:
            self._become_reader(talk, complaint)
        os.close(talk)
        os.close(complaint)
        self._lines[process] = socket.socket(fileno=line)
        self._selector.register(line, selectors.EVENT_READ, partial(self._cut, process))

    def _become_reader(self, talk: int, complaint: int) -> NoReturn:
        """Keep nothing of this process that reaches another."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for given, standard in ((talk, 0), (talk, 1), (complaint, 2)):
                os.dup2(given, standard)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            self._read()
        except BaseException:  # told on the line to the parent, and by the exit code
            traceback.print_exc()
        finally:
            os._exit(1)

    def _cut(self, process: int) -> None:
        """Nobody waits for the fork any more."""
        if process in self._lines:  # it may have been reaped since this was noticed
            self._selector.unregister(self._lines[process])
            _kill(process)

    def _reap(self, ended: int) -> None:
        os.read(ended, WAKEUP_BYTES)
        with contextlib.suppress(ChildProcessError):  # none is left
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                process, status = found
                line = self._lines.pop(process)
                with contextlib.suppress(KeyError):  # it was cut
                    self._selector.unregister(line)
                with contextlib.suppress(BrokenPipeError):  # nobody waits for its end any more
                    line.sendall(CODE.pack(os.waitstatus_to_exitcode(status)))
                line.close()


def _kill(process: int) -> None:
    """A fork that is not reaped; with its group, which it is too young to have at first."""
    with contextlib.suppress(ProcessLookupError):  # it has ended, and has been reaped
        os.killpg(process, signal.SIGKILL)
    os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
