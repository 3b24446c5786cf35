"""What is survived with a real Docker engine: kill -9 at every named point, lost answers. PROMISES R1 R2 R5."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import httpx
import pytest

from tests.docker.cutting import cutter
from tests.docker.daemon import Daemon
from tests.docker.engines import CHAT, HOLD, MODEL, DockerService, container_table, docker_service
from tests.nvml.library import StubNvml, gpu, uuid
from tests.stub import WAIT_S, ask, until

pytestmark = pytest.mark.slow
OTHER = "acme/other"
CREATED = {"launch.before_create": 0, "launch.after_create": 1, "launch.after_start": 1}
LAUNCH_POINTS = tuple(CREATED)
STOP_POINTS = ("stop.before_signal", "stop.after_signal", "stop.before_clear")


def one_gpu(folder: Path) -> dict[str, str]:
    """A machine with one GPU; what the service must be started with to see it."""
    stub = StubNvml(folder)
    stub.write(gpu(0))
    return stub.env()


def leasing(name: str, **settings: float) -> str:
    """A model that wants all of the GPU, and gives it up as soon as nobody uses it and another asks."""
    return container_table(name, gpus=1, residency_min_s=0, turn_max_s=1, **settings)


def answered(running: DockerService, model: str) -> None:
    with running.client() as client:
        until(lambda: client.post(CHAT, json=ask(model), headers=HOLD).status_code == 200)


def kill_9(running: DockerService) -> None:
    running.process.kill()
    running.process.wait(WAIT_S)


def test_a_ready_engine_is_adopted_after_kill_9(tmp_path: Path, daemon: Daemon) -> None:
    """R2: the same container and process, no relaunch, the first answer within 2 s of the open port."""
    with docker_service(tmp_path, daemon, container_table()) as running:
        answered(running, MODEL)
        before = running.inspect()
        kill_9(running)
        running.restart()
        began = time.monotonic()
        with running.client() as client:
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200
            assert time.monotonic() - began < 2
            replicas = client.get("/api/replicas").json()["data"]
        after = running.inspect()
        assert [replica["adopted"] for replica in replicas] == [True]
        assert (after["Id"], after["State"]["Pid"]) == (before["Id"], before["State"]["Pid"])
        assert running.log().count('"launched"') == 1


@pytest.mark.parametrize("point", LAUNCH_POINTS)
def test_crash_while_launching(tmp_path: Path, daemon: Daemon, point: str) -> None:
    """R1: what was half made is adopted or replaced, never doubled, and no GPU is leased twice."""
    since = int(time.time())
    tables = leasing(MODEL), leasing(OTHER)
    with docker_service(tmp_path, daemon, *tables, CRASH_AT=point, **one_gpu(tmp_path)) as running:
        with running.client() as client, pytest.raises(httpx.TransportError):
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        assert running.process.wait(WAIT_S) == 137
        before = running.ids()
        assert len(before) == CREATED[point]
        running.restart()
        answered(running, MODEL)
        assert len(running.ids()) == 1
        assert (running.ids() == before) == (point == "launch.after_start")
        answered(running, OTHER)
        [left] = running.containers()
        assert (left["Labels"]["orchestrator.model"], left["Labels"]["orchestrator.gpus"]) == (OTHER, uuid(0))
        assert running.alive_at_once(since) == 1


@pytest.mark.parametrize("point", STOP_POINTS)
def test_crash_while_stopping(tmp_path: Path, daemon: Daemon, point: str) -> None:
    """R1: nothing is left behind, and the GPU goes to the next."""
    since = int(time.time())
    tables = leasing(MODEL, idle_timeout_s=0.3), leasing(OTHER)
    with docker_service(tmp_path, daemon, *tables, CRASH_AT=point, **one_gpu(tmp_path)) as running:
        with running.client() as client, contextlib.suppress(httpx.TransportError):
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        assert running.process.wait(WAIT_S) == 137
        assert len(running.ids()) == 1
        running.restart()
        until(lambda: not running.ids())
        answered(running, OTHER)
        assert len(running.ids()) == 1
        assert running.alive_at_once(since) == 1


def test_a_crash_in_the_middle_of_an_eviction(tmp_path: Path, daemon: Daemon) -> None:
    """R1: the one that makes room is still there, and so is its lease."""
    since = int(time.time())
    tables = leasing(MODEL), leasing(OTHER)
    with docker_service(tmp_path, daemon, *tables, CRASH_AT="stop.before_signal", **one_gpu(tmp_path)) as running:
        answered(running, MODEL)
        with running.client() as client, pytest.raises(httpx.TransportError):
            client.post(CHAT, json=ask(OTHER), headers=HOLD)
        assert running.process.wait(WAIT_S) == 137
        running.restart()
        for model in (MODEL, OTHER, MODEL):
            answered(running, model)
        assert len(running.ids()) == 1
        assert running.alive_at_once(since) == 1


@pytest.mark.parametrize("lost", ["/containers/create", "/containers/[^/]+/start"])
def test_a_lost_answer_doubles_nothing(tmp_path: Path, daemon: Daemon, lost: str) -> None:
    """R5: the call failed, and yet it worked: what is there is found, and there is never a second one."""
    since = int(time.time())
    with (
        cutter(tmp_path, daemon.url) as between,
        docker_service(
            tmp_path, daemon, leasing(MODEL), leasing(OTHER), DOCKER_HOST=between.url, **one_gpu(tmp_path)
        ) as running,
    ):
        between.cut(f"^POST .*{lost}")
        answered(running, MODEL)
        assert between.cuts == 1
        assert len(running.ids()) == 1
        answered(running, OTHER)
        assert running.alive_at_once(since) == 1
        assert len(running.ids()) == 1


@pytest.mark.parametrize("lost", ["/containers/[^/]+/kill", "DELETE .*/containers/"])
def test_a_lost_answer_to_a_stop_leaves_nothing_behind(tmp_path: Path, daemon: Daemon, lost: str) -> None:
    with (
        cutter(tmp_path, daemon.url) as between,
        docker_service(tmp_path, daemon, container_table(idle_timeout_s=0.5), DOCKER_HOST=between.url) as running,
    ):
        between.cut(lost)
        answered(running, MODEL)
        until(lambda: between.cuts == 1 and not running.ids())
        until(lambda: running.phase(MODEL) == "cold")
        answered(running, MODEL)


def test_an_engine_that_is_killed_is_noticed_though_the_events_were_lost(tmp_path: Path, daemon: Daemon) -> None:
    with (
        cutter(tmp_path, daemon.url) as between,
        docker_service(tmp_path, daemon, container_table(), DOCKER_HOST=between.url) as running,
    ):
        answered(running, MODEL)
        before, streams = running.ids(), between.opened
        between.drop()
        until(lambda: between.opened > streams)
        with contextlib.closing(daemon.client()) as client:
            client.api.kill(before[0])
        began = time.monotonic()
        until(lambda: running.phase(MODEL) != "ready")
        assert time.monotonic() - began < 2
        answered(running, MODEL)
        assert len(running.ids()) == 1 and running.ids() != before


def test_two_services_on_one_daemon_leave_each_other_alone(tmp_path: Path, daemon: Daemon) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    with (
        docker_service(folders[0], daemon, container_table()) as one,
        docker_service(folders[1], daemon, container_table(idle_timeout_s=0.5)) as two,
    ):
        answered(one, MODEL)
        kept = one.inspect()
        answered(two, MODEL)
        assert one.instance != two.instance and not set(one.ids()) & set(two.ids())
        until(lambda: not two.ids())
        kill_9(two)
        two.restart()
        answered(two, MODEL)
        assert two.end() == 0
        assert two.ids() == []
        after = one.inspect()
        assert (after["Id"], after["State"]["Pid"]) == (kept["Id"], kept["State"]["Pid"])
        with one.client() as client:
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200
