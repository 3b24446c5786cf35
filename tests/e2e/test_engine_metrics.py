"""``GET /metrics/replicas``: which engines there are, and their own pages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stub import Service, ask, model_table, service, until

MODEL = "acme/echo"
PAGES = Path(__file__).parents[1] / "engines/pages.py"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("pages")
    keys = [
        {"name": "all", "key": "all", "scopes": ["monitor", "realtime", "admin"]},
        {"name": "other", "key": "other", "scopes": ["monitor"], "models": ["other/*"]},
        {"name": "user", "key": "user", "scopes": ["realtime"]},
    ]
    (folder / "auth.keys.json").write_text(json.dumps({"keys": keys}))
    with service(folder, model_table(MODEL), model_table("acme/cold")) as found:
        with found.client(authorization="Bearer all", prefer="wait=20") as client:
            assert client.post("/v1/chat/completions", json=ask(MODEL)).status_code == 200
        yield found


def test_ready_engines_are_targets_and_show_their_pages(running: Service) -> None:
    with running.client(authorization="Bearer all") as client:
        (target,) = client.get("/metrics/replicas").json()
        assert target["targets"] == [running.url.removeprefix("http://")]
        labels = target["labels"]
        assert (labels["model"], labels["engine"]) == (MODEL, "command")
        assert labels["__metrics_path__"] == f"/metrics/replicas/{labels['instance']}"
        page = client.get(labels["__metrics_path__"])
        assert page.headers["content-type"].startswith("text/plain")
        assert "vllm:num_requests_running 0" in page.text


def test_a_key_sees_its_models_engines_only(running: Service) -> None:
    with running.client(authorization="Bearer all") as client:
        path = client.get("/metrics/replicas").json()[0]["labels"]["__metrics_path__"]
    with running.client(authorization="Bearer other") as client:
        assert client.get("/metrics/replicas").json() == []
        assert client.get(path).status_code == 404
    with running.client(authorization="Bearer user") as client:
        assert [client.get(each).status_code for each in ("/metrics/replicas", path)] == [403, 403]
    with running.client() as client:
        assert [client.get(each).status_code for each in ("/metrics/replicas", path)] == [401, 401]


@pytest.mark.parametrize(
    "name", ["nobody", "127.0.0.1:1", "..%2F..%2Fhealth", "http:%2F%2F127.0.0.1:1", "acme-echo%0d%0a"]
)
def test_nothing_but_an_engine_can_be_asked(running: Service, name: str) -> None:
    with running.client(authorization="Bearer all") as client:
        assert client.get(f"/metrics/replicas/{name}").status_code == 404


@pytest.mark.parametrize("host", ["a b", "x/y", "evil@h", "h:99999999", '"'])
def test_a_target_is_an_address(running: Service, host: str) -> None:
    with running.client(authorization="Bearer all", host=host) as client:
        assert client.get("/metrics/replicas").status_code in (400, 403, 421)


@pytest.mark.slow
def test_an_engine_that_misbehaves_is_told_of_and_no_more(tmp_path: Path) -> None:
    kind = tmp_path / "kind"
    kind.touch()
    command = [sys.executable, str(PAGES), "{port}", str(kind)]
    table = f'[models."{MODEL}"]\nengine = "command"\nmin_replicas = 1\ncommand = {json.dumps(command)}\n'
    with service(tmp_path, table) as found, found.client() as client:
        (target,) = until(lambda: client.get("/metrics/replicas").json())
        path = target["labels"]["__metrics_path__"]
        expected = {"fine": 200, "html": 200, "500": 502, "redirect": 502, "huge": 502, "hang": 504, "cut": 502}
        for name, status in expected.items():
            kind.write_text(name)
            answer = client.get(path)
            assert answer.status_code == status, name
            assert "set-cookie" not in answer.headers
            assert status != 200 or answer.headers["content-type"].startswith("text/plain")
            assert "secret" not in answer.text
