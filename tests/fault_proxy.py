"""A TCP proxy on loopback that misbehaves when told to: it refuses, falls silent, cuts or corrupts. Threads only."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

READ_BYTES = 2**16
SILENT_S_MAX = 120.0


class FaultProxy:
    """Stands before ``127.0.0.1:port``; `url` is its own address, the same for its whole life."""

    def __init__(self, port: int) -> None:
        self._behind = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()
        self._sent_max: int | None = None
        self._flip_at: int | None = None
        self.sent_bytes = 0
        """From clients to the server, since the last `cut_after` or `corrupt_after`."""
        self._listener: socket.socket | None = None
        self._port = 0
        self._listen()
        self.url = f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        """Behave from now on. What hung goes on."""
        self._sent_max = None
        self._flows.set()
        if self._listener is None:
            self._listen()

    def refuse(self) -> None:
        """No connection is taken, and those that there are break: the server is gone."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.drop()

    def hang(self) -> None:
        """Connections are taken, and not one byte passes: the server, or the way to it, is stuck."""
        self._flows.clear()

    def drop(self) -> None:
        """Every connection breaks; new ones are fine."""
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def cut_after(self, sent_bytes: int) -> None:
        """`refuse` as soon as clients have sent this much."""
        self.sent_bytes, self._sent_max = 0, sent_bytes

    def corrupt_after(self, sent_bytes: int) -> None:
        """Flip one bit of the first block after clients have sent this much."""
        self.sent_bytes, self._flip_at = 0, sent_bytes

    def close(self) -> None:
        """End it."""
        self.refuse()
        self._flows.set()

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        listener.listen(128)
        self._port, self._listener = listener.getsockname()[1], listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._behind, timeout=SILENT_S_MAX)
        except OSError:
            near.close()
            return
        with self._lock:
            self._open |= {near, far}
        back = threading.Thread(target=self._pass_on, args=(far, near, False), daemon=True)
        back.start()
        self._pass_on(near, far, True)
        back.join(SILENT_S_MAX)
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket, forth: bool) -> None:
        """Until either end breaks; then both do."""
        with contextlib.suppress(OSError):
            while (data := source.recv(READ_BYTES)) and self._flows.wait(SILENT_S_MAX):
                sink.sendall(self._seen(data) if forth else data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _seen(self, data: bytes) -> bytes:
        """Count what clients send; it comes back as it is to arrive."""
        with self._lock:
            self.sent_bytes += len(data)
            cut = self._sent_max is not None and self.sent_bytes >= self._sent_max
            flip = self._flip_at is not None and self.sent_bytes >= self._flip_at
            if flip:
                self._flip_at = None
        if cut:
            self.refuse()
        return data[:-1] + bytes([data[-1] ^ 1]) if flip else data


@contextlib.contextmanager
def fault_proxy(port: int) -> Iterator[FaultProxy]:
    """A proxy before a server on loopback."""
    made = FaultProxy(port)
    try:
        yield made
    finally:
        made.close()
