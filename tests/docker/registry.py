"""A small registry on 127.0.0.1, which Docker takes without TLS: serves an image, slowly or broken off if so told.

What it speaks: https://docs.docker.com/registry/spec/api/ (version 2: manifests and blobs, to read).
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import threading
from collections import Counter
from types import TracebackType
from typing import Any

from tests.docker.daemon import engine_tar

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
PIECE = 64 * 2**10
TRICKLE_S = 0.01
"""Between two pieces."""


class Registry:
    """Runs while it is entered. Its answers follow its attributes, which a test may change at any time."""

    def __init__(self) -> None:
        self.manifests: dict[str, bytes] = {}
        """``name:tag`` and ``name@digest`` to the manifest."""
        self.blobs: dict[str, bytes] = {}
        self.denies = False
        self.fails = False
        self.flow = threading.Event()
        """While it is clear, layers trickle, and are held back in the middle."""
        self.flow.set()
        self.cuts = 0
        """How many answers with a layer break off in the middle, from now on."""
        self.asked: Counter[str] = Counter()
        """How often each kind of thing was asked for: manifest, blob, part."""
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.registry = self  # type: ignore[attr-defined]  # rides on the server
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Registry:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flow.set()
        self._server.shutdown()
        self._server.server_close()

    def serve(self, name: str, tag: str, salt: bytes = b"") -> str:
        """Have the engine's image under this name; its digest. `salt` makes its layer another one."""
        tar = engine_tar() + salt
        layer = gzip.compress(tar, 1)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [_digest(tar)]},
                "history": [{"created": "2026-01-01T00:00:00Z"}],
            }
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self._blob(config, "application/vnd.docker.container.image.v1+json"),
                "layers": [self._blob(layer, "application/vnd.docker.image.rootfs.diff.tar.gzip")],
            }
        ).encode()
        digest = _digest(manifest)
        self.manifests[f"{name}:{tag}"] = self.manifests[f"{name}:{digest}"] = manifest
        return digest

    def _blob(self, content: bytes, kind: str) -> dict[str, Any]:
        digest = _digest(content)
        self.blobs[digest] = content
        return {"mediaType": kind, "size": len(content), "digest": digest}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _registry(self) -> Registry:
        found: Registry = self.server.registry  # type: ignore[attr-defined]  # rides on the server
        return found

    def do_GET(self) -> None:
        registry = self._registry
        _, _, rest = self.path.partition("/v2/")
        name, kind, reference = self._parts(rest)
        if not rest:
            self._answer(200, b"{}")
        elif registry.fails:
            self._answer(500, b"{}")
        elif registry.denies:
            self._refuse(403, "DENIED", "requested access to the resource is denied")
        elif kind == "manifests":
            registry.asked["manifest"] += 1
            found = registry.manifests.get(f"{name}:{reference}")
            if found is None:
                self._refuse(404, "MANIFEST_UNKNOWN", "manifest unknown")
            else:
                self._answer(200, found, MANIFEST)
        elif kind == "blobs" and reference in registry.blobs:
            self._blob(registry.blobs[reference])
        else:
            self._refuse(404, "BLOB_UNKNOWN", "blob unknown")

    do_HEAD = do_GET

    def _parts(self, rest: str) -> tuple[str, str, str]:
        for kind in ("manifests", "blobs"):
            name, found, reference = rest.partition(f"/{kind}/")
            if found:
                return name, kind, reference
        return "", "", ""

    def _blob(self, content: bytes) -> None:
        """Whole, or from where a `Range` says. Anything large is a layer, which may be held back or cut."""
        registry = self._registry
        begin = 0
        if asked := self.headers.get("range"):
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
        large = len(content) > PIECE and self.command == "GET"
        registry.asked["part" if begin else "blob"] += large
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        half = begin + (len(content) - begin) // 2
        for at in range(begin, len(content), PIECE):
            if large and at >= half:
                if registry.cuts > 0:
                    registry.cuts -= 1
                    self.close_connection = True
                    return
                registry.flow.wait(60)
            elif large:
                registry.flow.wait(TRICKLE_S)  # Docker tells of progress ten times a second at most
            self.wfile.write(content[at : at + PIECE])

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message, "detail": {}}]}).encode()
        self._answer(status, body)

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        if kind == MANIFEST:
            self.send_header("Docker-Content-Digest", _digest(body))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""
