"""An embeddings server of the tests' own, in their process: it tells which texts it was asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class CountingEmbedder:
    """A running server. `hold` makes it wait; `go_on` ends that. It may refuse, and then repeats what it was sent."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        """Each text that was answered, as often as it was."""
        self.status = 200
        """Of its answers."""
        self._goes = threading.Event()
        self._goes.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.config = f'[embeddings]\nmodel = "counted"\nurl = "http://127.0.0.1:{self._server.server_port}/v1"\n'

    def hold(self) -> None:
        """Answer nothing from now on."""
        self._goes.clear()

    def go_on(self) -> None:
        """Answer, also what waits."""
        self._goes.set()

    def close(self) -> None:
        """End it."""
        self.go_on()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, texts: list[str]) -> bytes:
        self._goes.wait()
        if self.status != 200:
            return json.dumps({"error": {"message": f"can't embed {texts}"}}).encode()
        self.texts += texts
        rows = [{"index": index, "embedding": _vector(text)} for index, text in enumerate(texts)]
        return json.dumps({"data": rows}).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                body = owner._answer(asked["input"])
                with contextlib.suppress(ConnectionError):
                    self.send_response(owner.status)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler


def _vector(text: str) -> list[float]:
    """Sixteen numbers that follow from the text."""
    return [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:16]]


@contextlib.contextmanager
def counting_embedder() -> Iterator[CountingEmbedder]:
    """A server for the time of a test."""
    made = CountingEmbedder()
    try:
        yield made
    finally:
        made.close()
