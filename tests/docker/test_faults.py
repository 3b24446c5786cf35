"""What can go wrong with a container: the phase that it ends in, and the sentence that says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.daemon import Daemon, build_engine_image
from tests.docker.engines import CHAT, HOLD, MODEL, DockerService, container_table, docker_service
from tests.docker.registry import Registry
from tests.nvml.library import StubNvml, gpu
from tests.stub import ask, until

pytestmark = pytest.mark.slow

TAKEN = (
    "import runpy, socket, sys; s = socket.socket(); s.bind(('0.0.0.0', 8000)); s.listen(); "
    "sys.argv = ['/stub.py', '--host', '{host}', '--port', '{port}']; runpy.run_path('/stub.py', run_name='__main__')"
)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


def failed(running: DockerService, status: int, *words: str) -> dict[str, Any]:
    """The model's view, once a held request was told `status` with these words, and the view says the same."""
    with running.client() as client:
        answer = client.post(CHAT, json=ask(MODEL), headers=HOLD)
    told = answer.json()["error"]
    assert (answer.status_code, told["code"]) == (status, "model_failed"), answer.text
    assert (status == 400) == ("retry-after" not in answer.headers)
    view: dict[str, Any] = until(lambda: (seen := running.model(MODEL))["error"] and seen)
    for word in words:
        assert word in told["message"]
        assert word in view["error"]
    assert "\n" not in told["message"]
    return view


def left_nothing(running: DockerService) -> None:
    """No container; and the model waits longer each time: a second failure waits more than the first did."""
    until(lambda: running.containers() == [])
    with running.client() as client:
        until(lambda: running.model(MODEL)["retry_s"] == 0.0)
        client.post(CHAT, json=ask(MODEL), headers=HOLD)
    until(lambda: (running.model(MODEL)["retry_s"] or 0.0) > 2.0)
    until(lambda: running.containers() == [])


def test_an_image_that_nobody_has(tmp_path: Path, daemon: Daemon, registry: Registry) -> None:
    image = f"{registry.host}/nobody/has-this:1"
    with docker_service(tmp_path, daemon, container_table(image=image)) as running:
        failed(running, 400, image, "unknown", "check its name and tag")
        left_nothing(running)
        registry.serve("nobody/has-this", "1")  # somebody pushed it meanwhile
        with running.client() as client:
            until(lambda: client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200)


def test_a_registry_that_is_not_there(tmp_path: Path, daemon: Daemon) -> None:
    with docker_service(tmp_path, daemon, container_table(image="127.0.0.1:1/acme/engine:1")) as running:
        failed(running, 503, "127.0.0.1:1/acme/engine:1", "connection refused")
        left_nothing(running)


def test_a_registry_that_wants_a_login(tmp_path: Path, daemon: Daemon, registry: Registry) -> None:
    registry.denies = True
    image = f"{registry.host}/acme/private:1"
    with docker_service(tmp_path, daemon, container_table(image=image)) as running:
        failed(running, 400, image, "docker login")
        left_nothing(running)


def test_the_port_is_taken_inside(tmp_path: Path, daemon: Daemon) -> None:
    table = container_table(command=["python3", "-S", "-c", TAKEN])
    with docker_service(tmp_path, daemon, table) as running:
        failed(running, 503, "address already in use")
        left_nothing(running)


def test_the_container_runs_out_of_memory(tmp_path: Path, daemon: Daemon) -> None:
    head = '[runtime]\nkind = "docker"\nmemory_bytes_max = 67108864'
    with docker_service(tmp_path, daemon, container_table(MODEL, f"--eat-bytes={2**28}"), head=head) as running:
        failed(running, 503, "ran out of memory", "raise runtime.memory_bytes_max, now 64 MiB")
        left_nothing(running)


def test_it_ends_at_its_start(tmp_path: Path, daemon: Daemon) -> None:
    table = container_table(MODEL, "--fail-after-s=0.2", "--fail-line=ValueError: no such quantisation: q3")
    with docker_service(tmp_path, daemon, table) as running:
        view = failed(running, 503, "ValueError: no such quantisation: q3")
        with running.client() as client:
            until(lambda: running.containers() == [])
            log = client.get(f"/api/logs/{view['last_replica']}")
        assert "no such quantisation" in log.text  # what it said outlives it
        left_nothing(running)


def test_it_never_becomes_healthy(tmp_path: Path, daemon: Daemon) -> None:
    table = container_table(MODEL, "--start-s=3600", start_timeout_s=2, drain_timeout_s=1)
    with docker_service(tmp_path, daemon, table) as running:
        failed(running, 503, "not ready within 2 s")
        left_nothing(running)


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program"])
def test_a_program_that_the_image_has_not(tmp_path: Path, daemon: Daemon, program: str) -> None:
    with docker_service(tmp_path, daemon, container_table(command=[program, "{port}"])) as running:
        failed(running, 503, f"the image does not have the program {program}")
        left_nothing(running)


def test_gpus_of_an_engine_that_can_not_give_any(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    machine = StubNvml(tmp_path)
    machine.write(gpu(0))
    daemon = Daemon(tmp_path_factory.mktemp("nohook"), gpus=False)
    try:
        build_engine_image(daemon)
        with docker_service(tmp_path, daemon, container_table(gpus=1), **machine.env()) as running:
            failed(running, 503, "could not select device driver", "nvidia-ctk runtime configure")
            left_nothing(running)
    finally:
        daemon.close()


def test_weights_that_the_host_has_not(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """As with a host elsewhere, whose folders are not ours."""
    weights = tmp_path / "here" / "model"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(b"")
    daemon = Daemon(tmp_path_factory.mktemp("elsewhere"), hides=tmp_path / "here")
    try:
        build_engine_image(daemon)
        with docker_service(tmp_path, daemon, container_table(source=str(weights))) as running:
            failed(running, 503, str(weights), "must be on the engines' host too")
            left_nothing(running)
    finally:
        daemon.close()


def test_a_source_that_is_no_folder(tmp_path: Path, daemon: Daemon) -> None:
    with docker_service(tmp_path, daemon, container_table(source=str(tmp_path / "gone"))) as running:
        failed(running, 400, str(tmp_path / "gone"))
        left_nothing(running)


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, daemon: Daemon) -> None:
    table = container_table(MODEL, "--ignore-sigterm", idle_timeout_s=0.5, drain_timeout_s=0.5)
    with docker_service(tmp_path, daemon, table) as running, running.client() as client:
        assert client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200
        until(lambda: running.containers() == [])
        assert running.phase(MODEL) == "cold"
        assert json.dumps(running.model(MODEL)["error"]) == '""'
