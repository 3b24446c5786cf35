"""A small local hub: enough of the API that huggingface_hub asks, and switches to misbehave. Standard library only."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


class Hub:
    """Serves models from memory on a loopback port; use as a context manager."""

    def __init__(self, models: dict[str, dict[str, bytes]]) -> None:
        self.models = models
        self.sent: dict[str, int] = {}
        """Bytes sent of each file."""
        self.cut_after_bytes: int | None = None
        """Break each answer off after this many bytes."""
        self.bytes_per_s: float | None = None
        self.gated = self.refuses = self.corrupts = False
        self.seen_tokens: set[str] = set()
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, parts = self.owner, self.path.partition("?")[0].strip("/").split("/")
        hub.seen_tokens.add(self.headers.get("authorization", ""))
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        if hub.refuses:
            self._answer(503, b"down")
        elif hub.gated:
            self._answer(403, b"gated", {"X-Error-Code": "GatedRepo"})
        elif repo not in hub.models:
            self._answer(401, b"no", {"X-Error-Code": "RepoNotFound"})
        elif api and "revision" in parts and parts[-1] not in ("main", COMMIT):
            self._answer(404, b"no", {"X-Error-Code": "RevisionNotFound"})
        elif api:
            self._answer(200, json.dumps(_info(repo, hub.models[repo])).encode())
        else:
            self._file("/".join(parts[4:]), hub.models[repo])

    def _file(self, name: str, files: dict[str, bytes]) -> None:
        hub, data = self.owner, files.get(name)
        if data is None:
            self._answer(404, b"no", {"X-Error-Code": "EntryNotFound"})
            return
        if hub.corrupts:
            data = data[:-1] + bytes([data[-1] ^ 1])
        begin = 0
        if wanted := self.headers.get("range"):
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
            if begin >= len(data):
                self._answer(416, b"")
                return
        self.send_response(206 if begin else 200)
        self.send_header("content-length", str(len(data) - begin))
        self.end_headers()
        self._body(name, data[begin:])

    def _body(self, name: str, data: bytes) -> None:
        hub, sent = self.owner, 0
        while sent < len(data) and self.command == "GET":
            piece = data[sent : sent + 16384]
            if hub.cut_after_bytes is not None and sent >= hub.cut_after_bytes:
                self.close_connection = True
                return
            self.wfile.write(piece)
            sent += len(piece)
            hub.sent[name] = hub.sent.get(name, 0) + len(piece)
            if hub.bytes_per_s:
                time.sleep(len(piece) / hub.bytes_per_s)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _info(repo: str, files: dict[str, bytes]) -> dict[str, Any]:
    siblings = []
    for name, data in files.items():
        sibling: dict[str, Any] = {"rfilename": name, "size": len(data)}
        if name.endswith((".safetensors", ".bin", ".gguf")):
            digest = hashlib.sha256(data).hexdigest()
            sibling["lfs"] = {"size": len(data), "sha256": digest, "pointerSize": 130}
            sibling["blobId"] = "0" * 40
        else:
            sibling["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        siblings.append(sibling)
    return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
