"""Which of our folders a container may see, and under what name its host knows them. Blocking for one call."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import docker
from docker.errors import APIError

from runtimes.docker.container import Mount

_IN_CONTAINER = Path("/.dockerenv")


def own_mounts(client: docker.APIClient) -> tuple[Mapping[str, Any], ...]:
    """What is mounted where in the container that we run in; empty when we run in none."""
    if not _IN_CONTAINER.exists():
        return ()
    with contextlib.suppress(APIError):  # another kind of container, or another daemon's
        return tuple(client.inspect_container(socket.gethostname())["Mounts"])
    return ()


def mount_of(folder: str, mounted: Sequence[Mapping[str, Any]], *, read_only: bool = True) -> Mount:
    """How a container gets `folder` at the path where we have it.

    1. We run on the host itself: the folder. 2. We run in a container and have it from a folder of the host's: that
    one's part. 3. From a volume: the whole volume, since older engines mount no part of one.
    """
    path = PurePosixPath(folder)
    above = [m for m in mounted if path.is_relative_to(m["Destination"])]
    if not above:
        return Mount(kind="bind", source=folder, target=folder, read_only=read_only)
    nearest = max(above, key=lambda m: len(m["Destination"]))
    if nearest["Type"] == "volume":
        return Mount(kind="volume", source=nearest["Name"], target=nearest["Destination"], read_only=read_only)
    part = path.relative_to(nearest["Destination"])
    return Mount(kind="bind", source=str(PurePosixPath(nearest["Source"]) / part), target=folder, read_only=read_only)


def weights_folder(path: str) -> str:
    """What must be seen of the weights: a snapshot of the hub's cache is links to the blobs two folders up."""
    folder = Path(path)
    return str(folder.parent.parent) if folder.parent.name == "snapshots" else path
