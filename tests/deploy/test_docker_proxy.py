"""The real HAProxy with its configuration: what gets to Docker, what does not, and how long it may last."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.deploy.docker_stand_in import Daemon
from tests.deploy.tools import ROOT, haproxy

CONFIG = ROOT / "deploy/docker-proxy/haproxy.cfg"
WAIT_S = 10.0
SILENCE_S = 12.0
"""Longer than each of the configuration's timeouts that are not meant for streams."""
ID = "4f0e2c1b9a7d"


class Proxy(NamedTuple):
    """A running HAProxy and the daemon behind it."""

    port: int
    daemon: Daemon

    @contextmanager
    def send(self, data: bytes) -> Iterator[socket.socket]:
        """A connection on which `data` was sent."""
        with socket.create_connection(("127.0.0.1", self.port), WAIT_S) as connection:
            connection.sendall(data)
            yield connection

    def status(self, data: bytes) -> int:
        """The status that the first request of `data` is answered with."""
        with self.send(data) as connection:
            return int(connection.makefile("rb").readline().split()[1])

    def all(self, data: bytes) -> bytes:
        """Everything that comes back until the connection is closed."""
        with self.send(data) as connection:
            return connection.makefile("rb").read()


@contextmanager
def running(upstream: Path) -> Iterator[int]:
    """HAProxy in front of `upstream`; yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    env = {**os.environ, "DOCKER_PROXY_BIND": f"127.0.0.1:{port}", "DOCKER_PROXY_SOCKET": str(upstream)}
    with subprocess.Popen([haproxy(), "-db", "-q", "-f", str(CONFIG)], env=env, stdout=subprocess.DEVNULL) as process:
        try:
            _until_listening(port)
            yield port
        finally:
            process.terminate()


def _until_listening(port: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    daemon = Daemon(tmp_path / "d.sock")
    try:
        with running(tmp_path / "d.sock") as port:
            yield Proxy(port, daemon)
    finally:
        daemon.turn.release(9)
        daemon.close()


def request(method: str, target: str, body: bytes = b"", *headers: str) -> bytes:
    """One request, as raw as it is written."""
    lines = [f"{method} {target} HTTP/1.1", "Host: docker-proxy:2375", "Connection: close", *headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


ALLOWED = [
    ("GET", "/_ping"),
    ("HEAD", "/_ping"),
    ("GET", "/version"),
    ("GET", "/v1.41/info"),
    ("GET", "/v1.41/containers/json?all=1&filters=%7B%22label%22%3A%5B%22a%3Db%22%5D%7D"),
    ("GET", f"/v1.41/containers/{ID}/json"),
    ("GET", "/v1.41/containers/orchestrator-a.b_c-1/logs?follow=1&stdout=1&tail=100"),
    ("POST", f"/v1.41/containers/{ID}/start"),
    ("POST", f"/v1.41/containers/{ID}/stop?t=30"),
    ("POST", f"/v1.41/containers/{ID}/kill?signal=SIGKILL"),
    ("POST", f"/v1.51/containers/{ID}/wait?condition=removed"),
    ("DELETE", f"/v1.41/containers/{ID}?v=1&force=1"),
    ("GET", "/v1.41/images/vllm/vllm-openai:v0.32.0/json"),
    ("GET", "/v1.41/images/registry.example:5000/team/engine:1/json"),
    ("GET", "/v1.41/images/vllm/vllm-openai%40sha256:0123456789abcdef/json"),
    ("GET", "/images/sha256:0123456789abcdef/json"),
    ("POST", "/v1.41/images/create?tag=v0.32.0&fromImage=vllm%2Fvllm-openai"),
    ("POST", "/v1.41/images/create?fromImage=vllm/vllm-openai&tag=sha256%3A0123&platform=linux%2Famd64"),
    ("GET", "/v1.41/networks/orchestrator-engines"),
]

DENIED = [
    # what the orchestrator has no use for
    ("POST", f"/v1.41/containers/{ID}/exec"),
    ("POST", f"/v1.41/exec/{ID}/start"),
    ("POST", f"/v1.41/containers/{ID}/attach?stream=1"),
    ("GET", f"/v1.41/containers/{ID}/attach/ws"),
    ("GET", f"/v1.41/containers/{ID}/archive?path=/etc/shadow"),
    ("PUT", f"/v1.41/containers/{ID}/archive?path=/"),
    ("GET", f"/v1.41/containers/{ID}/export"),
    ("GET", f"/v1.41/containers/{ID}/top"),
    ("POST", f"/v1.41/containers/{ID}/update"),
    ("POST", f"/v1.41/containers/{ID}/rename?name=b"),
    ("POST", f"/v1.41/containers/{ID}/restart"),
    ("POST", f"/v1.41/containers/{ID}/pause"),
    ("POST", "/v1.41/containers/prune"),
    ("POST", f"/v1.41/commit?container={ID}"),
    ("POST", "/v1.41/build"),
    ("POST", "/v1.41/session"),
    ("POST", "/v1.41/grpc"),
    ("POST", "/v1.41/auth"),
    ("GET", "/v1.41/images/json"),
    ("GET", "/v1.41/images/a/get"),
    ("POST", "/v1.41/images/load"),
    ("POST", "/v1.41/images/a/push"),
    ("POST", "/v1.41/images/a/tag?repo=b"),
    ("DELETE", "/v1.41/images/a"),
    ("GET", "/v1.41/volumes"),
    ("POST", "/v1.41/volumes/create"),
    ("GET", "/v1.41/networks"),
    ("POST", "/v1.41/networks/create"),
    ("POST", "/v1.41/networks/a/connect"),
    ("DELETE", "/v1.41/networks/a"),
    ("GET", "/v1.41/swarm"),
    ("POST", "/v1.41/swarm/init"),
    ("GET", "/v1.41/secrets"),
    ("GET", "/v1.41/configs"),
    ("GET", "/v1.41/plugins"),
    ("GET", "/v1.41/system/df"),
    ("GET", "/"),
    # the right path with the wrong method
    ("HEAD", "/v1.41/containers/json"),
    ("DELETE", f"/v1.41/containers/{ID}/json"),
    ("GET", f"/v1.41/containers/{ID}/start"),
    ("PUT", "/v1.41/containers/create"),
    ("get", "/v1.41/containers/json"),
    ("Post", f"/v1.41/containers/{ID}/start"),
    ("PATCH", f"/v1.41/containers/{ID}"),
    ("OPTIONS", "*"),
    # the right path to us, another one to who normalises it
    ("GET", "//containers/json"),
    ("GET", "/v1.41//containers/json"),
    ("GET", "/v1.41/containers//json"),
    ("GET", "/v1.41/containers/json/"),
    ("GET", "/v1.41/./containers/json"),
    ("GET", "/v1.41/containers/../volumes"),
    ("GET", f"/v1.41/containers/{ID}/../../volumes/json"),
    ("POST", "/v1.41/containers/../start"),
    ("POST", "/v1.41/containers/%2e%2e/start"),
    ("POST", f"/v1.41/containers/{ID}%2fexec/start"),
    ("POST", f"/v1.41/containers/{ID}%2Fexec%3F/start"),
    ("DELETE", "/v1.41/containers/%2e%2e%2fimages%2fa"),
    ("GET", "/v1.41/images/../containers/a/archive/json"),
    ("GET", "/v1.41/images/a/%2e%2e/json"),
    ("GET", "/v1.41/images/a/../../volumes/json"),
    ("GET", "/v1.41/images/a%00/json"),
    ("GET", "/v1.41/networks/a/../../volumes"),
    ("GET", "/V1.41/containers/json"),
    ("GET", "/v1.41/Containers/json"),
    ("GET", "/v1.41.1/containers/json"),
    ("GET", "/v1.41;/containers/json"),
    ("GET", "/v1.41/containers/json;x"),
    ("GET", "/v1.41/volumes?/containers/json"),
    ("GET", "/v1.41/volumes#/containers/json"),
    ("GET", "/v1.41/volumes%3f/../containers/json"),
    ("GET", "/v1.41/\\containers/json"),
    ("GET", "http://docker/v1.41/containers/json"),
    ("GET", "http://docker//v1.41/containers/json"),
    # a pull that is none
    ("POST", "/v1.41/images/create"),
    ("POST", "/v1.41/images/create?fromSrc=-"),
    ("POST", "/v1.41/images/create?fromSrc=http://127.0.0.1/a.tar&repo=a"),
    ("POST", "/v1.41/images/create?fromImage=a&fromSrc=-"),
    ("POST", "/v1.41/images/create?fromImage=&fromSrc=-"),
    ("POST", "/v1.41/images/create?fromImage="),
    ("POST", "/v1.41/images/create?fromImage=a&fromImage=b"),
    ("POST", "/v1.41/images/create?from%53rc=-"),
    ("POST", "/v1.41/images/create?fromImage=a&from%53rc=-"),
    ("POST", "/v1.41/images/create?fromImage=a;fromSrc=-"),
    ("POST", "/v1.41/images/create?fromImage=a&changes=CMD+x"),
]


def test_the_configuration_is_valid() -> None:
    done = subprocess.run([haproxy(), "-c", "-f", str(CONFIG)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


@pytest.mark.slow
def test_what_is_in_use_gets_through_unchanged(proxy: Proxy) -> None:
    for method, target in ALLOWED:
        assert proxy.status(request(method, target)) == 200, (method, target)
        assert proxy.daemon.seen[-1] == (method, target, b"")


@pytest.mark.slow
def test_nothing_else_reaches_the_daemon(proxy: Proxy) -> None:
    for method, target in DENIED:
        assert proxy.status(request(method, target)) in (400, 403), (method, target)
        assert proxy.daemon.seen == [], (method, target)


@pytest.mark.slow
def test_the_refusal_is_in_dockers_shape(proxy: Proxy) -> None:
    head, _, body = proxy.all(request("GET", "/volumes")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ") and b"content-type: application/json" in head.lower()
    assert body == b'{"message":"docker-proxy: the orchestrator has no use for this call"}'


@pytest.mark.slow
def test_only_a_creation_has_a_body_and_it_is_json(proxy: Proxy) -> None:
    body = b'{"Image": "a"}'
    json, form = "Content-Type: application/json", "Content-Type: application/x-www-form-urlencoded"
    assert proxy.status(request("POST", "/v1.41/containers/create?name=a", body, json)) == 200
    assert proxy.daemon.seen == [("POST", "/v1.41/containers/create?name=a", body)]
    proxy.daemon.seen.clear()
    chunked = b"POST /containers/a/start HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    for refused in (
        request("POST", "/v1.41/containers/create", body, "Content-Type: text/plain"),
        request("POST", "/v1.41/containers/create", body),
        # Docker reads a form before the query, so this would be an import.
        request("POST", "/v1.41/images/create?fromImage=a", b"fromImage=&fromSrc=-", form),
        # Up to API 1.23 a start took what create takes.
        request("POST", "/v1.20/containers/a/start", b'{"Privileged": true}', json),
        request("DELETE", "/v1.41/containers/a", body, "Content-Length: 14"),
        chunked,
    ):
        assert proxy.status(refused) in (400, 403), refused
    assert proxy.daemon.seen == []


@pytest.mark.slow
def test_no_second_request_rides_along(proxy: Proxy) -> None:
    hidden = b"POST /containers/a/exec HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n"
    first = b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n"
    with proxy.send(first + hidden) as connection:
        answers = b""
        while answers.count(b"HTTP/1.1 ") < 2:
            answers += connection.recv(65536)
    assert b"HTTP/1.1 200 " in answers and b"HTTP/1.1 403 " in answers
    assert proxy.daemon.seen == [("GET", "/_ping", b"")]
    proxy.daemon.seen.clear()
    create = "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
    for heads in (
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 90\r\n",
        "Content-Length : 5\r\n",
    ):
        with proxy.send(f"{create}{heads}\r\n".encode() + b"0\r\n\r\n" + hidden) as connection:
            connection.recv(65536)
    assert [path for _, path, _ in proxy.daemon.seen if "exec" in path] == []


@pytest.mark.slow
@pytest.mark.parametrize("upgrade", ["tcp", "h2c", "websocket"])
def test_no_connection_is_taken_over(proxy: Proxy, upgrade: str) -> None:
    asked = request("GET", "/v1.41/containers/json").replace(
        b"Connection: close", f"Connection: Upgrade\r\nUpgrade: {upgrade}".encode()
    )
    assert proxy.status(asked) in (400, 403)
    assert proxy.daemon.seen == []


@pytest.mark.slow
def test_http2_is_not_spoken(proxy: Proxy) -> None:
    assert b"400" in proxy.all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")[:20]
    assert proxy.daemon.seen == []


@pytest.mark.slow
def test_a_silent_stream_stays_open_and_passes_each_line_at_once(proxy: Proxy) -> None:
    with proxy.send(request("GET", "/v1.41/events")) as connection:
        lines = connection.makefile("rb")
        assert _next_event(lines) == b"event\n"
        time.sleep(SILENCE_S)
        began = time.monotonic()
        proxy.daemon.turn.release()
        assert _next_event(lines) == b"event\n"
        assert time.monotonic() - began < 1
        assert not proxy.daemon.left.is_set()


@pytest.mark.slow
def test_who_has_said_all_may_listen_on(proxy: Proxy) -> None:
    with proxy.send(request("GET", "/v1.41/events")) as connection:
        connection.shutdown(socket.SHUT_WR)
        lines = connection.makefile("rb")
        assert _next_event(lines) == b"event\n"
        proxy.daemon.turn.release()
        assert _next_event(lines) == b"event\n"


@pytest.mark.slow
def test_who_is_gone_is_let_go_at_the_next_line(proxy: Proxy) -> None:
    with proxy.send(request("GET", "/v1.41/events")) as connection:
        assert _next_event(connection.makefile("rb")) == b"event\n"
    deadline = time.monotonic() + WAIT_S
    while not proxy.daemon.left.is_set():
        assert time.monotonic() < deadline
        proxy.daemon.turn.release()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_daemon_that_is_gone_is_a_503_that_says_so(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "d.sock")
    daemon.close()
    with running(tmp_path / "nothing.sock") as port:
        answer = Proxy(port, daemon).all(request("GET", "/_ping"))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b'{"message":"docker-proxy: the Docker daemon does not answer"}')


def _next_event(lines: Iterator[bytes]) -> bytes:
    return next(line for line in lines if line.startswith(b"event"))
