"""An engine whose page of metrics misbehaves as the file says that it is told: ``pages.py PORT FILE``."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HANG_S = 60.0


class Handler(BaseHTTPRequestHandler):
    """Fine on every path but ``/metrics``."""

    def do_GET(self) -> None:
        kind = Path(sys.argv[2]).read_text() if self.path == "/metrics" else ""
        if kind == "hang":
            threading.Event().wait(HANG_S)
        body = b"x" * 2**25 if kind == "huge" else b"up 1\n"
        self.send_response({"500": 500, "redirect": 302}.get(kind, 200))
        self.send_header("content-type", "text/html" if kind == "html" else "text/plain")
        self.send_header("location", "http://127.0.0.1:1/secret")
        self.send_header("set-cookie", "a=b")
        self.send_header("content-length", str(len(body) + (kind == "cut")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
