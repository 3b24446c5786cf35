"""One look at a Docker host, for people who want to know whether engines could run there. Blocks for seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import requests
from docker.errors import DockerException
from docker.errors import NotFound as NoSuchThing

from runtimes.docker.host import Address, connect
from runtimes.docker.said import said

CALL_TIMEOUT_S = 3
API_MIN = (1, 40)
"""Engine 19.03: the first that takes requests for GPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What was seen of one host."""

    host: str
    fault: str = ""
    """Why nothing was; empty: it answered."""
    engine: str = ""
    api: str = ""
    gpus: bool = False
    """Whether NVIDIA's runtime is registered."""
    missing: tuple[str, ...] = ()
    """Images that are not there."""

    @property
    def too_old(self) -> bool:
        """Whether it can't do what we ask of it."""
        return tuple(int(part) for part in self.api.split(".")) < API_MIN


def survey(address: Address, images: Iterable[str]) -> Survey:
    """Look, at most a few times `CALL_TIMEOUT_S` long. Never raises for what a host does."""
    host = address.name or address.url or "the default Docker host"
    try:
        with contextlib.closing(connect(address, CALL_TIMEOUT_S)) as client:
            info = client.info()
            missing = []
            for image in images:
                try:
                    client.inspect_image(image)
                except NoSuchThing:
                    missing.append(image)
            return Survey(
                host=host,
                engine=str(info.get("ServerVersion", "")),
                api=str(client.api_version),
                gpus="nvidia" in (info.get("Runtimes") or {}),
                missing=tuple(missing),
            )
    except (DockerException, requests.RequestException, OSError) as error:
        return Survey(host=host, fault=said(error))
