"""Servers in a thread of the test, that do what a stub engine does not: TLS, a key, no ``/health``."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Peer:
    """What it was asked, and how it is to answer."""

    port: int = 0
    health: int = 200
    base: str = ""
    key: str = ""
    models: tuple[str, ...] = ()
    asked: list[tuple[str, str, str, dict[str, Any]]] = field(default_factory=list)
    """Method, path, Authorization and JSON body of each request."""

    def paths(self) -> list[str]:
        return [path for _, path, _, _ in self.asked]


@contextlib.contextmanager
def peer(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, **how: Any) -> Iterator[Peer]:
    """A running one."""
    state = Peer(**how)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._note({})
            if self.path == f"{state.base}/health":
                self._answer(state.health, {})
            elif self.path == f"{state.base}/v1/models" and self._is_known():
                self._answer(200, {"data": [{"id": name} for name in state.models]})
            else:
                self._answer(401 if self.path.endswith("/v1/models") else 404, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._note(body)
            known = self._is_known() and self.path.startswith(f"{state.base}/v1/")
            self._answer(200 if known else 401, {"model": body["model"], "choices": []})

        def _is_known(self) -> bool:
            return not state.key or self.headers["authorization"] == f"Bearer {state.key}"

        def _note(self, body: dict[str, Any]) -> None:
            state.asked.append((self.command, self.path, self.headers["authorization"] or "", body))

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.send_header("strict-transport-security", "max-age=1000")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that does not trust us is no news."""

    server = Server((host, state.port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate for a name, signed by itself, and a server's side with it. Made by openssl."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context
