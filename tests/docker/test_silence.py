"""A Docker engine that does not answer, and one that is gone for a while: unknown is not missing. PROMISES R6."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtimes.docker.host import CALL_TIMEOUT_S
from tests.docker.daemon import Daemon, build_engine_image, needed
from tests.docker.engines import CHAT, HOLD, MODEL, DockerService, container_table, docker_service
from tests.stub import WAIT_S, ask, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
OTHER = "acme/other"
SILENCE_S = 60.0
REFUSED_S_MAX = 1.0


@contextlib.contextmanager
def silence(daemon: Daemon) -> Iterator[None]:
    daemon.pause()
    try:
        yield
    finally:
        daemon.resume()


def runtime_check(running: DockerService) -> dict[str, Any]:
    with running.client() as client:
        found: dict[str, Any] = client.get("/health").json()["checks"]["runtime"]
    return found


def answered(running: DockerService, model: str) -> None:
    with running.client() as client:
        until(lambda: client.post(CHAT, json=ask(model), headers=HOLD).status_code == 200)


def refused_honestly(client: httpx.Client, model: str) -> float:
    """A cold model while nobody can start it: the contract's 503 that says why. Returns the seconds that it took."""
    began = time.monotonic()
    answer = client.post(CHAT, json=ask(model))
    took_s = time.monotonic() - began
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "model_cold"), answer.text
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert took_s < REFUSED_S_MAX
    return took_s


def test_a_minute_of_silence(tmp_path: Path, daemon: Daemon) -> None:
    """R6: the ready model is served all the time, nothing is removed or launched, and then all goes on."""
    tables = container_table(idle_timeout_s=5), container_table(OTHER, idle_timeout_s=5)
    with docker_service(tmp_path, daemon, *tables) as running, running.client() as client:
        answered(running, MODEL)
        before = running.inspect()
        with silence(daemon):
            ends_at = time.monotonic() + SILENCE_S
            served, refusals = 0, []
            until(lambda: not runtime_check(running)["ok"])
            while time.monotonic() < ends_at:
                assert client.post(CHAT, json=ask(MODEL)).status_code == 200
                served += 1
                refusals.append(refused_honestly(client, OTHER))
                assert not runtime_check(running)["ok"]
            said = client.post(CHAT, json=ask(OTHER)).json()["error"]["message"]
            assert "does not answer" in said and "does not answer" in runtime_check(running)["detail"]
        print({"served": served, "refusal_s_max": max(refusals), "refusal_s_p50": sorted(refusals)[len(refusals) // 2]})
        until(lambda: runtime_check(running)["ok"])
        assert running.log().count('"launched"') == 1 and running.log().count('"stopping"') == 0
        answered(running, OTHER)
        assert client.post(CHAT, json=ask(MODEL)).status_code == 200
        ids = {found["Id"] for found in running.containers()}
        assert before["Id"] in ids and len(ids) == 2
        assert running.log().count("runtime_unknown") < 5
        until(lambda: not running.ids())


def test_what_was_asked_of_a_silent_daemon_is_done_once(tmp_path: Path, daemon: Daemon) -> None:
    """The launch was on its way as it fell silent, and outlasts every patience; it may happen late."""
    since = int(time.time())
    with docker_service(tmp_path, daemon, container_table()) as running, running.client() as client:
        until(lambda: runtime_check(running)["ok"])
        with silence(daemon):
            client.post(CHAT, json=ask(MODEL))
            until(lambda: "effect_failed" in running.log() or not runtime_check(running)["ok"], 40)
        answered(running, MODEL)
        assert len(until(running.ids)) == 1
        assert running.alive_at_once(since) == 1


def test_a_start_while_the_daemon_is_silent(tmp_path: Path, daemon: Daemon) -> None:
    """The port opens all the same, nothing is launched that may be there, and what is there is adopted in the end."""
    with docker_service(tmp_path, daemon, container_table(), container_table(OTHER)) as running:
        answered(running, MODEL)
        before = running.ids()
        running.process.kill()
        running.process.wait(WAIT_S)
        with silence(daemon):
            began = time.monotonic()
            running.restart()
            assert time.monotonic() - began < 10
            with running.client() as client:
                refused_honestly(client, MODEL)
            assert not runtime_check(running)["ok"]
        answered(running, MODEL)
        assert running.ids() == before
        assert running.log().count('"launched"') == 1


def test_the_end_while_the_daemon_is_silent(tmp_path: Path, daemon: Daemon) -> None:
    """What can't be stopped is left; the next start finds it."""
    with docker_service(tmp_path, daemon, container_table()) as running:
        answered(running, MODEL)
        before = running.ids()
        with silence(daemon):
            began = time.monotonic()
            assert running.end() == 0, running.log()
            assert time.monotonic() - began < CALL_TIMEOUT_S + 5
        assert "Traceback" not in running.log()
        assert running.ids() == before
        running.restart()
        answered(running, MODEL)
        assert running.ids() == before


@pytest.fixture
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that may be killed."""
    needed()
    made = Daemon(tmp_path_factory.mktemp("mortal"))
    build_engine_image(made)
    yield made
    made.close()


def test_a_daemon_that_is_killed_takes_its_engines_with_it(tmp_path: Path, mortal: Daemon) -> None:
    """They end at its next start. The one that is wanted is started again, once."""
    with docker_service(tmp_path, mortal, container_table(), container_table(OTHER)) as running:
        answered(running, MODEL)
        before = running.ids()
        mortal.kill()
        until(lambda: not runtime_check(running)["ok"])
        with running.client() as client:
            refused_honestly(client, OTHER)
            refused_honestly(client, MODEL)
        mortal.start()
        for model in (MODEL, OTHER):
            answered(running, model)
        found = running.containers()
        assert sorted(each["Labels"]["orchestrator.model"] for each in found) == [MODEL, OTHER]
        assert not {each["Id"] for each in found} & {*before}
        assert running.log().count('"launched"') == 3
        assert "never retrieved" not in running.log() and running.log().count("runtime_unknown") == 1
