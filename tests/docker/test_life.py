"""The life of a container: from a cold request to its end, and what it may not do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docker.daemon import Daemon
from tests.docker.engines import CHAT, HOLD, MODEL, container_table, docker_service
from tests.stub import ask, until

pytestmark = pytest.mark.slow


def test_cold_request_container_answer_idle_gone(tmp_path: Path, daemon: Daemon) -> None:
    with docker_service(tmp_path, daemon, container_table(idle_timeout_s=0.5)) as running:
        with running.client() as client:
            cold = client.post(CHAT, json=ask(MODEL))
            assert (cold.status_code, cold.json()["error"]["code"]) == (503, "model_cold")
            assert client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200
            seen = running.inspect()
            [replica] = client.get("/api/replicas").json()["data"]
        assert seen["Name"] == f"/orchestrator-{replica['id']}"
        until(lambda: running.containers() == [])
        assert running.phase(MODEL) == "cold"
