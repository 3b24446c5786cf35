"""`orchestrator top` without a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from orchestrator.cli.remote import error_of
from orchestrator.cli.top import counted
from tests.cli.test_cli import orc
from tests.stub import Service, ask, model_table, service
from ui.tui.snapshot import Counts


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("top"), model_table("acme/echo"), model_table("acme/cold")) as found:
        with found.client(prefer="wait=20") as client:
            assert client.post("/v1/chat/completions", json=ask("acme/echo")).status_code == 200
        yield found


def test_it_prints_one_snapshot(tmp_path: Path, running: Service) -> None:
    done = orc(tmp_path, "top", "--url", running.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1/2 ready" in done.stdout
    assert "● ready" in done.stdout and "○ cold" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_same_as_json(tmp_path: Path, running: Service) -> None:
    found = json.loads(orc(tmp_path, "top", "--json", "--url", running.url).stdout)
    assert [model["phase"] for model in found["models"]] == ["ready", "cold"]
    assert [one["ok"] for one in found["requests"] if one["model"] == "acme/echo"] == [1.0]
    assert found["gpus"] == []


def test_counts_of_a_page_of_metrics() -> None:
    page = """\
# TYPE orchestrator_requests_total counter
orchestrator_requests_total{model="a",outcome="ok"} 3.0
orchestrator_requests_total{model="a",outcome="new"} 9.0
orchestrator_cold_responses_total{model="b"} 2.0
orchestrator_tokens_total{kind="prompt",model="a"} 5.0
orchestrator_tokens_total{kind="completion",model="a"} 7.0
orchestrator_loop_passes_total 99.0
"""
    assert counted(page) == {"a": Counts(ok=3, tokens=12), "b": Counts(refused=2)}


@pytest.mark.parametrize(
    ("scopes", "said"),
    [
        ((), "set ORCHESTRATOR_API_KEY to a key with the scope monitor"),
        (("--scope", "realtime"), "set ORCHESTRATOR_API_KEY to a key with the scope monitor"),
    ],
)
def test_a_key_that_may_not_look_is_told_what_to_do(tmp_path: Path, scopes: tuple[str, ...], said: str) -> None:
    secret = orc(tmp_path, "keys", "new", "k", *(scopes or ("--scope", "monitor"))).stdout.strip()
    with service(tmp_path, model_table("acme/echo")) as found:
        done = orc(tmp_path, "top", "--url", found.url, ORCHESTRATOR_API_KEY=secret if scopes else "")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(said) and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/api/models", "a key with the scope monitor"),
        ("POST", "/api/models/acme/a/start", "a key with the scope admin"),
        ("DELETE", "/api/models/acme/a/endpoints/0", "a key with the scope admin"),
        ("GET", "/api/usage", "a valid key, whatever its scopes"),
        ("POST", "/v1/files", "a key with the scope upload"),
        ("POST", "/v1/chat/completions", "a key with the scope realtime"),
    ],
)
def test_who_is_refused_is_told_which_key_would_do(method: str, path: str, said: str) -> None:
    refused = httpx.Response(401, json={"error": {"message": "no"}}, request=httpx.Request(method, f"http://a{path}"))
    assert str(error_of(refused)) == f"no; set ORCHESTRATOR_API_KEY to {said}"
