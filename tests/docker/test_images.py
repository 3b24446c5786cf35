"""The engine's own image: a part of the cold start that is seen, waited for, and survives what registries do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from tests.docker.daemon import Daemon
from tests.docker.engines import CHAT, HOLD, MODEL, DockerService, container_table, docker_service
from tests.docker.registry import Registry
from tests.stub import ask, until

pytestmark = pytest.mark.slow


@pytest.fixture
def registry(daemon: Daemon) -> Iterator[Registry]:
    """Its images leave the daemon with it."""
    with Registry() as running:
        yield running
        with contextlib.closing(daemon.client()) as client:
            for image in client.api.images(all=True):
                names = [*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())]
                if any(name.startswith(running.host) for name in names):
                    client.api.remove_image(image["Id"], force=True)


def table(image: str, **settings: Any) -> str:
    return container_table(image=image, **settings)


def refused(running: DockerService) -> dict[str, Any]:
    with running.client() as client:
        answer = client.post(CHAT, json=ask(MODEL))
    assert answer.status_code == 503, answer.text
    told: dict[str, Any] = answer.json()
    return told


def answered(running: DockerService) -> httpx.Response:
    with running.client() as client:
        answer = client.post(CHAT, json=ask(MODEL), headers={"prefer": "wait=60"}, timeout=90)
    assert answer.status_code == 200, answer.text
    return answer


def test_a_pull_is_a_phase_with_progress(tmp_path: Path, daemon: Daemon, registry: Registry) -> None:
    registry.serve("acme/engine", "1")
    registry.flow.clear()
    with docker_service(tmp_path, daemon, table(f"{registry.host}/acme/engine:1")) as running:
        refused(running)
        seen = [0.0]
        while seen[-1] <= 0.3:
            seen.append(until(lambda: (now := running.model(MODEL)["progress"] or 0.0) > seen[-1] and now))
        assert len(seen) > 2
        view = running.model(MODEL)
        assert (view["phase"], view["weights"]["state"]) == ("pulling", "pulling")
        assert view["weights"]["total_bytes"] > 10_000_000
        assert view["note"].startswith("starting: pulling image, ")
        told = refused(running)
        assert told["status"]["phase"] == "pulling"
        assert "is starting: pulling image, " in told["error"]["message"]
        assert " %" in told["error"]["message"]
        assert 0.3 < told["status"]["progress"] < 1.0
        registry.flow.set()
        answered(running)
        assert seen == sorted(seen)
        with running.client() as client:
            [start] = client.get("/api/starts").json()["data"]
        assert start["outcome"] == "ready"
        assert start["seconds"]["pulling"] > 0
        assert running.inspect()["Config"]["Image"] == f"{registry.host}/acme/engine:1"


def test_many_requests_are_one_pull(tmp_path: Path, daemon: Daemon, registry: Registry) -> None:
    registry.serve("acme/engine", "1")
    registry.flow.clear()
    with docker_service(tmp_path, daemon, table(f"{registry.host}/acme/engine:1")) as running:
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(answered(running))) for _ in range(20)]
        for thread in threads:
            thread.start()
        until(lambda: running.model(MODEL)["held"] == 20)
        until(lambda: registry.asked["blob"] == 1)
        registry.flow.set()
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [200] * 20
        assert registry.asked["blob"] == 1
        assert len(running.containers()) == 1


def test_a_pull_that_breaks_off_goes_on_where_it_was(tmp_path: Path, daemon: Daemon, registry: Registry) -> None:
    registry.serve("acme/engine", "1")
    registry.cuts = 1
    with docker_service(tmp_path, daemon, table(f"{registry.host}/acme/engine:1")) as running:
        answered(running)
        assert running.model(MODEL)["error"] == ""
    assert registry.asked["part"] == 1  # Docker asks for the rest only


def test_a_registry_that_goes_away_is_tried_again(tmp_path: Path, daemon: Daemon) -> None:
    """What Docker does not bring to an end itself is our back-off's."""
    with Registry() as registry:
        registry.serve("acme/engine", "1")
        manifests, registry.manifests = registry.manifests, {}
        registry.fails = True
        with docker_service(tmp_path, daemon, table(f"{registry.host}/acme/engine:1", min_replicas=1)) as running:
            view = until(lambda: (seen := running.model(MODEL))["error"] and seen)
            assert view["phase"] == "failed"
            assert f"{registry.host}/acme/engine:1" in view["error"]
            registry.fails, registry.manifests = False, manifests
            until(lambda: running.phase(MODEL) == "ready")


@pytest.mark.parametrize("signal", ["term", "kill"])
def test_a_restart_in_the_middle_of_a_pull(tmp_path: Path, daemon: Daemon, registry: Registry, signal: str) -> None:
    registry.serve("acme/engine", "1")
    registry.flow.clear()
    with docker_service(tmp_path, daemon, table(f"{registry.host}/acme/engine:1")) as running:
        refused(running)
        until(lambda: (running.model(MODEL)["progress"] or 0.0) > 0.3)
        if signal == "kill":
            running.process.kill()
            running.process.wait(30)
        else:
            assert running.end() in (0, -15)
        running.restart()
        registry.flow.set()
        answered(running)
        assert len(running.containers()) == 1


@pytest.mark.parametrize("form", ["tag", "default tag", "digest", "tag and digest"])
def test_the_forms_of_a_name(tmp_path: Path, daemon: Daemon, registry: Registry, form: str) -> None:
    tag = "latest" if form == "default tag" else "v1.2"
    digest = registry.serve("acme/engine", tag)
    suffix = {"tag": ":v1.2", "default tag": "", "digest": f"@{digest}", "tag and digest": f":v1.2@{digest}"}[form]
    image = f"{registry.host}/acme/engine{suffix}"
    with docker_service(tmp_path, daemon, table(image, idle_timeout_s=0.2)) as running:
        answered(running)
        until(lambda: running.containers() == [])
        asked = registry.asked["manifest"]
        answered(running)  # it is there now: nobody is asked any more
        assert registry.asked["manifest"] == asked


def test_an_image_that_went_is_pulled_again(tmp_path: Path, daemon: Daemon, registry: Registry) -> None:
    registry.serve("acme/engine", "1")
    image = f"{registry.host}/acme/engine:1"
    with docker_service(tmp_path, daemon, table(image, idle_timeout_s=0.2)) as running:
        answered(running)
        until(lambda: running.containers() == [])
        with contextlib.closing(daemon.client()) as client:
            client.api.remove_image(image, force=True)
            with pytest.raises(docker.errors.ImageNotFound):
                client.images.get(image)
        with running.client() as client_:
            until(lambda: client_.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200)
