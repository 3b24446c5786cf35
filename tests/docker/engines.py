"""A service whose engines are containers of the tests' Docker engine."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from tests.docker.daemon import IMAGE, Daemon
from tests.stub import Service

MODEL = "acme/echo"
CHAT = "/v1/chat/completions"
HOLD = {"prefer": "wait=30"}
PYTHON = ("python3", "-S", "/stub.py", "--host", "{host}", "--port", "{port}")


def container_table(name: str = MODEL, *options: str, **settings: Any) -> str:
    """One ``[models."…"]`` table with the stub in a container as its engine."""
    settings = {"command": [*PYTHON, *options], "image": IMAGE, "gpus": 0, **settings}
    lines = [f'[models."{name}"]', 'engine = "command"']
    return "\n".join(lines + [f"{key} = {json.dumps(value)}" for key, value in settings.items()]) + "\n"


class DockerService(Service):
    """A running service, and what it has on its hosts."""

    def __init__(self, folder: Path, config: str, daemon: Daemon, **environ: str) -> None:
        self.daemon = daemon
        super().__init__(folder, config, **{"DOCKER_HOST": daemon.url, **environ})

    @property
    def instance(self) -> str:
        return (self.folder / "data" / "instance").read_text().strip()

    def containers(self) -> list[dict[str, Any]]:
        """Of this service, ended ones too."""
        with contextlib.closing(self.daemon.client()) as client:
            filters = {"label": [f"orchestrator.instance={self.instance}"]}
            found: list[dict[str, Any]] = client.api.containers(all=True, filters=filters)
        return found

    def ids(self) -> list[str]:
        return [found["Id"] for found in self.containers()]

    def inspect(self) -> dict[str, Any]:
        """The only container."""
        [found] = self.ids()
        with contextlib.closing(self.daemon.client()) as client:
            seen: dict[str, Any] = client.api.inspect_container(found)
        return seen

    def alive_at_once(self, since_unix: int) -> int:
        """The most of its containers that have lived at the same time, as the daemon's events tell."""
        filters = {
            "type": ["container"],
            "event": ["start", "die"],
            "label": [f"orchestrator.instance={self.instance}"],
        }
        with contextlib.closing(self.daemon.client()) as client:
            events = client.api.events(since=since_unix, until=int(time.time()) + 1, filters=filters, decode=True)
            changes = [1 if event["Action"] == "start" else -1 for event in events]
        return max(accumulate(changes))

    def close(self) -> None:
        super().close()
        with contextlib.suppress(Exception), contextlib.closing(self.daemon.client()) as client:
            for found in self.ids():
                client.api.remove_container(found, force=True, v=True)


@contextlib.contextmanager
def docker_service(
    folder: Path, daemon: Daemon, *tables: str, head: str = "", **environ: str
) -> Iterator[DockerService]:
    """A service with these model tables, on this daemon."""
    config = "\n".join((head, '[runtime]\nkind = "docker"' if "[runtime]" not in head else "", *tables))
    running = DockerService(folder, config, daemon, **environ)
    try:
        yield running
    finally:
        running.close()
