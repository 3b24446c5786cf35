"""Gateways as processes of their own, for tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.subjects import free_port
from tests.stub import Running, Service, until


class Door(Running):
    """A running ``orchestrator gateway``."""

    def __init__(self, folder: Path, controller: str, *, port: int = 0, key: str = "") -> None:
        self.errors = folder / "gateway.log"
        environ = {**os.environ, "ORCHESTRATOR_API_KEY": key}
        argv = (sys.executable, "-m", "orchestrator", "gateway", "--controller", controller, "--port", str(port))
        with self.errors.open("ab") as log:
            self.process = subprocess.Popen(argv, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=log)
        self.url = ""

    def wait(self) -> None:
        """Until it answers."""
        self.url = self.listening()


@contextlib.contextmanager
def door(folder: Path, controller: str, *, port: int = 0, key: str = "") -> Iterator[Door]:
    """A gateway that answers."""
    folder.mkdir(exist_ok=True)
    running = Door(folder, controller, port=port, key=key)
    try:
        running.wait()
        yield running
    finally:
        running.close()


class Controller(Service):
    """A service that listens on the same port at each start."""

    def __init__(self, folder: Path, config: str, **environ: str) -> None:
        self.port = free_port()
        super().__init__(folder, config, **environ)


@contextlib.contextmanager
def controller(folder: Path, *tables: str, head: str = "", **environ: str) -> Iterator[Controller]:
    """Such a service, whose engines outlive it."""
    text = '[runtime]\non_exit = "keep"\n[embeddings]\nmodel = ""\n'
    running = Controller(folder, head + text + "\n".join(tables), **environ)
    try:
        yield running
    finally:
        running.close()


def known(running: Service, **headers: str) -> list[dict[str, Any]]:
    """The gateways that the controller knows."""
    with running.client(**headers) as client:
        found: list[dict[str, Any]] = client.get("/api/gateways").json()["data"]
    return found


def current(running: Service, count: int, **headers: str) -> None:
    """Wait until so many gateways go by the newest table."""
    until(lambda: [gateway["current"] for gateway in known(running, **headers)] == [True] * count)
