"""Weights from a hub on the way to an engine: phases, progress, and what a client is told when they can't be had."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.stub import WAIT_S, ask, model_table, service, until

REPO = "org/model"
CHAT = "/v1/chat/completions"
SIZE = 2_000_000


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {"config.json": b"{}", "model.safetensors": random.Random(2).randbytes(SIZE)}
    with Hub({REPO: files}) as running:
        yield running


def environ(hub: Hub, folder: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "hf_canary"}


def test_pull_then_start_then_answer(tmp_path: Path, hub: Hub) -> None:
    hub.bytes_per_s = 1_500_000
    table = model_table(REPO, source=REPO).replace('"{port}"', '"{port}", "--note", "{weights}"')
    with service(tmp_path, table, **environ(hub, tmp_path)) as running, running.client() as client:
        told = until(lambda: (r := client.post(CHAT, json=ask(REPO)).json())["status"]["phase"] == "pulling" and r)
        assert "pulling weights" in told["error"]["message"]
        moving = until(lambda: (v := running.model(REPO))["progress"] and v)
        assert 0 < moving["progress"] < 1
        assert moving["weights"]["total_bytes"] == SIZE + 2
        assert client.post(CHAT, json=ask(REPO), headers={"prefer": "wait=20"}).status_code == 200
        start = client.get("/api/starts").json()["data"][0]
        assert start["seconds"].keys() == {"pulling", "starting"}
        assert start["pulled_bytes"] > 0
        assert sum(hub.sent.values()) < SIZE + 100_000
        assert "canary" not in running.log()
        [pid] = running.engines()
        assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert str(tmp_path / "hf" / "hub" / "models--org--model").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_what_cannot_be_had_is_a_4xx_with_a_remedy(tmp_path: Path, hub: Hub) -> None:
    hub.gated = True
    tables = (model_table(REPO, source=REPO), model_table("org/missing", source="org/missing"))
    with service(tmp_path, *tables, **environ(hub, tmp_path)) as running, running.client() as client:
        gated = client.post(CHAT, json=ask(REPO), headers={"prefer": "wait=20"})
        assert (gated.status_code, gated.json()["error"]["code"]) == (400, "model_failed")
        assert "accept its terms" in gated.json()["error"]["message"]
        assert "accept its terms" in running.model(REPO)["error"]
        hub.gated = False
        client.post(f"/api/models/{REPO}/start")
        assert client.post(CHAT, json=ask(REPO), headers={"prefer": "wait=20"}).status_code == 200
        missing = client.post(CHAT, json=ask("org/missing"), headers={"prefer": "wait=20"})
        assert (missing.status_code, missing.json()["error"]["param"]) == (400, "model")
        assert "no model org/missing" in missing.json()["error"]["message"]


def test_pull_command(tmp_path: Path, hub: Hub) -> None:
    with service(tmp_path, model_table(REPO, source=REPO), **environ(hub, tmp_path)) as running:
        argv = (sys.executable, "-m", "orchestrator", "pull", REPO, "--url", running.url)
        done = subprocess.run(argv, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=WAIT_S)
        assert (done.returncode, done.stdout.strip()) == (0, f"{REPO}: 2.0 MB of weights are here")
        assert running.engines() == []


def test_preloaded_models_are_fetched_before_anybody_asks(tmp_path: Path, hub: Hub) -> None:
    table = model_table(REPO, source=REPO, preload=True)
    with service(tmp_path, table, **environ(hub, tmp_path)) as running:
        until(lambda: running.model(REPO)["weights"]["state"] == "present")
        assert running.phase(REPO) == "cold"
        assert running.engines() == []


def test_a_launch_marks_its_weights_as_used(tmp_path: Path, hub: Hub) -> None:
    with service(tmp_path, model_table(REPO, source=REPO), **environ(hub, tmp_path)) as running:
        with running.client() as client:
            assert client.post(CHAT, json=ask(REPO), headers={"prefer": "wait=20"}).status_code == 200
        assert list((tmp_path / "hf" / "hub" / "models--org--model" / ".orchestrator-used").iterdir())
