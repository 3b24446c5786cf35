"""What operators look at: dashboard, alerts and Prometheus' configuration, against the service's own metrics."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.tools import ROOT, prometheus
from tests.stub import WAIT_S, ask, model_table, service, until

FOLDER = ROOT / "deploy/prometheus"
BOARD = ROOT / "deploy/grafana/dashboards/orchestrator.json"
MODEL = "acme/echo"
KEY = "a-secret-of-the-tests"


def expressions() -> dict[str, list[str]]:
    """Every query, by where it stands."""
    board = json.loads(BOARD.read_text("utf-8"))
    rules = (FOLDER / "alerts.yml").read_text("utf-8")
    return {
        "board": [target["expr"] for panel in board["panels"] for target in panel["targets"]],
        "alerts": re.findall(r"orchestrator_\w+[^\n]*", rules),
    }


@pytest.mark.parametrize("place", ["board", "alerts"])
def test_they_ask_for_metrics_that_there_are(tmp_path: Path, place: str) -> None:
    with service(tmp_path, model_table(MODEL)) as found, found.client() as client:
        page = client.get("/metrics").text
    names = set(re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE))
    counters = {name.removesuffix("_total") for name in names}
    asked = {name for text in expressions()[place] for name in re.findall(r"orchestrator_\w+", text)}
    assert len(asked) > 9
    assert {re.sub("_(total|bucket|sum|count)$", "", name) for name in asked} <= counters


def test_counters_begin_at_zero(tmp_path: Path) -> None:
    """What begins with 1 has not increased: the first failure would go unseen."""
    with service(tmp_path, model_table(MODEL)) as found, found.client() as client:
        page = client.get("/metrics").text
    assert f'orchestrator_starts_total{{model="{MODEL}",outcome="failed"}} 0.0' in page
    assert f'orchestrator_requests_total{{model="{MODEL}",outcome="error"}} 0.0' in page
    assert 'orchestrator_check_ok{check="loop"} 1.0' in page
    assert 'orchestrator_disk_free_bytes{folder="data"}' in page


def test_the_panels_do_not_overlap() -> None:
    panels = json.loads(BOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_every_alert_fires_when_it_should_and_not_else() -> None:
    argv = (prometheus("promtool"), "test", "rules", "tests/deploy/alerts_test.yml")
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    named = set(re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text("utf-8")))
    tried = set(re.findall(r'alertname[=:] ?"?(\w+)', (ROOT / "tests/deploy/alerts_test.yml").read_text("utf-8")))
    assert tried == named


def test_the_configuration_is_one(tmp_path: Path) -> None:
    configured(tmp_path, "127.0.0.1:8000")
    done = subprocess.run(
        (prometheus("promtool"), "check", "config", tmp_path / "prometheus.yml"),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_real_prometheus_finds_the_service_and_its_engines(tmp_path: Path) -> None:
    keys = {"keys": [{"name": "p", "key": KEY, "scopes": ["monitor", "realtime"]}]}
    (tmp_path / "auth.keys.json").write_text(json.dumps(keys))
    with service(tmp_path, model_table(MODEL)) as found:
        with found.client(authorization=f"Bearer {KEY}", prefer="wait=20") as client:
            assert client.post("/v1/chat/completions", json=ask(MODEL)).status_code == 200
        configured(tmp_path, found.url.removeprefix("http://"), every="1s")
        with running(tmp_path) as prom:
            up = until(lambda: len(found := samples(prom, "up == 1")) == 2 and found)
            assert {each["metric"]["job"] for each in up} == {"orchestrator", "engines"}
            (running_now,) = until(lambda: samples(prom, "vllm:num_requests_running"))
            assert running_now["metric"]["model"] == MODEL
            assert running_now["metric"]["engine"] == "command"
            assert running_now["metric"]["instance"].startswith("acme-echo-")
            assert until(lambda: samples(prom, f'orchestrator_requests_total{{model="{MODEL}",outcome="ok"}} == 1'))
            rules = prom.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
            assert {rule["health"] for rule in rules} <= {"ok", "unknown"}


def configured(folder: Path, service_at: str, every: str = "15s") -> None:
    """The configuration of `deploy`, for a service at another address and a key in `folder`."""
    key = folder / "prometheus.key"
    key.write_text(KEY)
    text = (FOLDER / "prometheus.yml").read_text("utf-8")
    assert text.count("orchestrator:8000") == 2
    text = text.replace("orchestrator:8000", service_at).replace("/run/secrets/prometheus.key", str(key))
    (folder / "prometheus.yml").write_text(text.replace("15s", every))
    (folder / "alerts.yml").write_bytes((FOLDER / "alerts.yml").read_bytes())


@contextmanager
def running(folder: Path) -> Iterator[httpx.Client]:
    """Prometheus on the configuration in `folder`, and a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    argv = [prometheus(), f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*argv, f"--storage.tsdb.path={folder / 'tsdb'}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", trust_env=False) as client:
            until(lambda: _ready(client))
            yield client
    finally:
        process.kill()
        process.wait(WAIT_S)


def samples(prom: httpx.Client, query: str) -> list[dict[str, Any]]:
    """What a query finds now."""
    found: list[dict[str, Any]] = prom.get("/api/v1/query", params={"query": query}).json()["data"]["result"]
    return found


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
