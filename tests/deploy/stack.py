"""docker-compose.yml, brought up with the real Compose on a Docker engine of the tests' own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.deploy.images import haproxy_image, orchestrator_image, s3_image
from tests.deploy.tools import ROOT, compose_tool, weed
from tests.docker.daemon import IMAGE, Daemon
from tests.docker.engines import container_table

COMMAND_S = 60
ECHO, KEPT = "acme/echo", "acme/kept"
IDLE_S = 4
WITHOUT_S3 = """
services:
  s3: !reset null
  orchestrator:
    environment:
      ORCHESTRATOR_STORAGE__URL: file:///data/objects
    depends_on: !override
      docker-proxy: { condition: service_healthy }
"""


class Stack:
    """A copy of the deployment's files, so that no .env of this tree's counts, and what the engine has of it."""

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self.folder = folder
        self.daemon = daemon
        self.docker = daemon.client()
        self.secret = ""
        shutil.copy(ROOT / "docker-compose.yml", folder)
        shutil.copytree(ROOT / "deploy", folder / "deploy")
        config = folder / "config" / "orchestrator.toml"
        config.parent.mkdir(mode=0o755)
        tables = container_table(ECHO, idle_timeout_s=IDLE_S), container_table(KEPT, idle_timeout_s=3600)
        config.write_text("\n".join(tables))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._environ = {
            "PATH": os.defpath,
            "HOME": "/nonexistent",
            "DOCKER_HOST": daemon.url,
            "DOCKER_SOCKET": daemon.url.removeprefix("unix://"),
            "CONFIG_DIR": str(config.parent),
            "ORCHESTRATOR_SERVER__PORT": str(port),
        }
        if weed() is None:
            (folder / "docker-compose.override.yml").write_text(WITHOUT_S3)

    def make_images(self) -> None:
        """Under the names that docker-compose.yml has for them."""
        services = json.loads(self.compose("config", "--format", "json"))["services"]
        made = {"orchestrator": orchestrator_image(), "docker-proxy": haproxy_image()}
        if "s3" in services and (binary := weed()):
            made["s3"] = s3_image(binary)
        for service, (data, settings) in made.items():
            repository, tag = services[service]["image"].split(":")
            base = self.docker.api.create_container(IMAGE, ["true"])["Id"]
            self.docker.api.put_archive(base, "/", data)
            self.docker.api.commit(base, repository, tag, changes="\n".join(settings))
            self.docker.api.remove_container(base)

    def compose(self, *argv: str) -> str:
        """What the command says; it has to succeed."""
        done = subprocess.run(
            [str(compose_tool()), "--progress", "plain", *argv],
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}\n{self._told()}"
        return done.stdout

    def _told(self) -> str:
        with contextlib.suppress(Exception):
            return "\n".join(f"{c.name}: {c.logs(tail=20).decode()}" for c in self.docker.containers.list(all=True))
        return ""

    def up(self) -> None:
        self.compose("up", "-d", "--wait", "--no-build", "--pull", "never")

    def client(self, **headers: str) -> httpx.Client:
        """Of the published address, with the key."""
        return httpx.Client(
            base_url=self.url, timeout=40, headers={"authorization": f"Bearer {self.secret}", **headers}
        )

    def engines(self, model: str) -> list[str]:
        """Ids of the model's containers, ended ones too."""
        found = self.docker.api.containers(all=True, filters={"label": [f"orchestrator.model={model}"]})
        return [each["Id"] for each in found]

    def inspect(self, name: str) -> dict[str, Any]:
        """A container, by its id or its service's name."""
        found: dict[str, Any] = self.docker.api.inspect_container(name)
        return found

    def exit_codes(self) -> dict[str, int]:
        """Of every container that there is."""
        names = self.daemon.containers()
        return {name: self.inspect(name)["State"]["ExitCode"] for name in names}

    def left(self) -> dict[str, list[str]]:
        """What is on the engine besides its own networks and the images."""
        networks = {str(network.name) for network in self.docker.networks.list()} - {"bridge", "host", "none"}
        volumes = [volume.name for volume in self.docker.volumes.list()]
        return {"containers": self.daemon.containers(), "networks": sorted(networks), "volumes": volumes}

    def close(self) -> None:
        """Remove all of it by whatever means."""
        self.daemon.clear()
        with contextlib.suppress(Exception):
            self.docker.networks.prune()
        self.docker.close()
