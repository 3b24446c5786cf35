"""Something that listens where Docker would, and keeps what reached it."""

from __future__ import annotations

import http.server
import socketserver
import threading
from pathlib import Path

EVENT_WAIT_S = 60


class Daemon(socketserver.ThreadingUnixStreamServer):
    """Answers everything with 200; ``/events`` writes one line, and another for each `turn`."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Handler)
        self.seen: list[tuple[str, str, bytes]] = []
        self.turn = threading.Semaphore(0)
        self.left = threading.Event()
        """A listener to the events was found to be gone."""
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        """End it."""
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Daemon

    def _answer(self) -> None:
        if self.headers.get("transfer-encoding"):
            body = self._chunks()
        else:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.server.seen.append((self.command, self.path, body))
        if self.path.endswith("/events"):
            self._events()
            return
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"OK")

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT = do_PATCH = do_OPTIONS = _answer

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _events(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self._event()
            while self.server.turn.acquire(timeout=EVENT_WAIT_S):
                self._event()
        except OSError:
            self.server.left.set()
        self.close_connection = True

    def _event(self) -> None:
        self.wfile.write(b"6\r\nevent\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""
