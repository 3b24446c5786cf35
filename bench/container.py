"""What the orchestrator adds to the start of a container: from a cold request to the created container, beside the bare
calls of Docker's SDK, in turns on the same engine.

``python -m bench.container --image IMAGE``: any image with a program that waits; DOCKER_HOST says where.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import docker
import httpx
from docker.errors import NotFound

MODEL = "bench/model"
WAIT_S = 30.0
GOAL_S = 1.0

T = TypeVar("T")


def main() -> int:
    """Measure and print; 0 when the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", required=True)
    parser.add_argument("--program", default="sleep 600", help="what waits in it")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    argv = options.program.split()
    client = docker.from_env().api
    bare, ours = [], []
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), options.image, argv) as url:
        for _ in range(options.rounds):
            bare.append(bare_s(client, options.image, argv))
            ours.append(demand_s(client, url))
    found = {
        "bare_create_start_s": statistics.median(bare),
        "demand_to_started_s": statistics.median(ours),
        "added_s": statistics.median(ours) - statistics.median(bare),
    }
    if options.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name}: {value:.3f}" for name, value in found.items()))
        print(f"{'PASS' if found['added_s'] < GOAL_S else 'MISS'}  added: under {GOAL_S:g} s")
    return 0 if found["added_s"] < GOAL_S else 1


def bare_s(client: docker.APIClient, image: str, argv: list[str]) -> float:
    """Create and start, as little as can be, on a published port as ours has."""
    began = time.monotonic()
    config = client.create_host_config(port_bindings={8000: ("127.0.0.1", None)}, init=True)
    found = client.create_container(image, command=argv, ports=[8000], host_config=config)
    client.start(found["Id"])
    spent = time.monotonic() - began
    client.remove_container(found["Id"], force=True)
    return spent


def demand_s(client: docker.APIClient, url: str) -> float:
    """From a cold request to the container's own start time, then it is stopped by hand. One clock: this machine's."""
    body = {"model": MODEL, "messages": []}
    asked = time.time()
    httpx.post(f"{url}/v1/chat/completions", json=body)
    started = until(lambda: _started_at(client))
    httpx.post(f"{url}/api/models/{MODEL}/stop")
    until(lambda: not _ours(client))
    return started - asked


def _ours(client: docker.APIClient) -> list[str]:
    found = client.containers(all=True, filters={"label": [f"orchestrator.model={MODEL}"]})
    return [each["Id"] for each in found]


def _started_at(client: docker.APIClient) -> float:
    for found in _ours(client):
        try:
            state = client.inspect_container(found)["State"]
        except NotFound:
            continue
        if state["Running"]:
            return datetime.fromisoformat(state["StartedAt"][:26].rstrip("Z") + "+00:00").timestamp()
    return 0.0


def until(condition: Callable[[], T]) -> T:
    """The first true value of `condition`."""
    ends_at = time.monotonic() + WAIT_S
    while not (value := condition()):
        if time.monotonic() > ends_at:
            raise TimeoutError("nothing happened")
        time.sleep(0.01)
    return value


@contextmanager
def service(folder: Path, image: str, argv: list[str]) -> Iterator[str]:
    """A running orchestrator with one model in that image."""
    table = f'[runtime]\nkind = "docker"\n[models."{MODEL}"]\nengine = "command"\ngpus = 0\nimage = "{image}"\n'
    (folder / "orchestrator.toml").write_text(f"{table}command = {json.dumps(argv)}\n")
    command = (sys.executable, "-m", "orchestrator", "serve", "--port", "0")
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().decode().strip().removeprefix("listening on ")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT_S)


if __name__ == "__main__":
    sys.exit(main())
