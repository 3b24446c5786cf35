"""Stands between a service and a daemon, and loses answers: the daemon has done what it was asked, and nobody hears."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

READ_BYTES = 2**16


class Cutter:
    """A socket of its own in front of the daemon's. `cut` arms it for the next matching request."""

    def __init__(self, path: Path, daemon_url: str) -> None:
        self.url = f"unix://{path}"
        self.cuts = 0
        self.opened = 0
        """Streams of events that were asked for."""
        self._behind = daemon_url.removeprefix("unix://")
        self._wanted: re.Pattern[bytes] | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, request: str) -> None:
        """The next request whose head matches is carried out, and its answer is lost with its connection."""
        self._wanted = re.compile(request.encode())

    def drop(self) -> None:
        """Every connection breaks, the stream of events too."""
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                try:
                    far.connect(self._behind)
                except OSError:
                    near.close()
                    far.close()
                    continue
                with self._lock:
                    self._open |= {near, far}
                armed = threading.Event()
                for way in (self._forth, self._back):
                    threading.Thread(target=way, args=(near, far, armed), daemon=True).start()

    def _forth(self, near: socket.socket, far: socket.socket, armed: threading.Event) -> None:
        with self._ending(near, far):
            while data := near.recv(READ_BYTES):
                self.opened += b"/events?" in data.partition(b"\r\n")[0]
                with self._lock:
                    if self._wanted is not None and self._wanted.search(data.partition(b"\r\n")[0]):
                        self._wanted = None
                        armed.set()
                far.sendall(data)

    def _back(self, near: socket.socket, far: socket.socket, armed: threading.Event) -> None:
        with self._ending(near, far):
            while data := far.recv(READ_BYTES):
                if armed.is_set():
                    self.cuts += 1
                    return
                near.sendall(data)

    @contextlib.contextmanager
    def _ending(self, near: socket.socket, far: socket.socket) -> Iterator[None]:
        try:
            with contextlib.suppress(OSError):
                yield
        finally:
            with self._lock:
                self._open -= {near, far}
            for each in (near, far):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cutter(folder: Path, daemon_url: str) -> Iterator[Cutter]:
    made = Cutter(folder / "cut.sock", daemon_url)
    try:
        yield made
    finally:
        made.close()
