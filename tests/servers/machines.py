"""Servers that others run, for tests: stub engines as processes of their own, each at its port."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from bench.subjects import free_port
from tests.stub import STUB, until


class Machine:
    """One stub engine. Its port stays its own when it is killed and started again."""

    def __init__(self, *options: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host, self.port = host, port or free_port(host)
        self._options = options
        self.process = self._spawn()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def _spawn(self) -> subprocess.Popen[bytes]:
        argv = (sys.executable, "-S", str(STUB), "--host", self.host, "--port", str(self.port), *self._options)
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: self._answers())
        return process

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):  # not yet
            return True
        return False

    def start(self) -> None:
        self.process = self._spawn()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def machines(*options: tuple[str, ...]) -> Iterator[list[Machine]]:
    """One for each tuple of options."""
    running: list[Machine] = []
    try:
        for each in options:
            running.append(Machine(*each))
        yield running
    finally:
        for machine in running:
            machine.kill()


def static_table(name: str, *endpoints: str, **settings: Any) -> str:
    """A model's table; each endpoint as the text of its inline table, or its bare address."""
    tables = ", ".join(each if each.startswith("{") else f'{{ url = "{each}" }}' for each in endpoints)
    lines = [f'[models."{name}"]', 'engine = "static"', f"endpoints = [{tables}]"]
    return "\n".join(lines + [f"{key} = {value!r}" for key, value in settings.items()]) + "\n"


def servers_of(client: httpx.Client, model: str) -> dict[str, str]:
    """The phase of each server of a model, by its address and port."""
    endpoints = client.get(f"/api/models/{model}/endpoints").json()["data"]
    return {
        f"{server['address']}:{endpoint['url'].rpartition(':')[2]}": server["phase"]
        for endpoint in endpoints
        for server in endpoint["servers"]
    }


def records(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
