"""Servers that others run, end to end: real processes behind a real service, stock clients in front."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from orchestrator.access.key_file import new_key
from orchestrator.model import Scope
from tests.servers.machines import machines, servers_of, static_table
from tests.servers.peers import peer
from tests.stub import Service, ask, model_table, posted, service, until

QUICK = {"health_interval_s": 0.5, "health_timeout_s": 0.2}
CHAT = "/v1/chat/completions"


def test_the_stock_client_streams_from_a_server_with_its_own_names(tmp_path: Path) -> None:
    """The server's path, key and name for the model are its own; the client's key stays here."""
    record = tmp_path / "record"
    with machines(("--model", "there", "--record", str(record))) as (one,):
        endpoint = f'{{ url = "{one.url}/llm/v1", model = "there", key_env = "ONE_KEY" }}'
        table = static_table("acme/pool", endpoint, aliases=["short"])
        secret = new_key(tmp_path / "auth.keys.json", "u", [Scope.REALTIME], models=["acme/*", "short"], expires=None)
        with service(tmp_path, table, ONE_KEY="sk-theirs") as running:
            client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=secret)
            for name in ("acme/pool", "short"):
                stream = client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": "France?"}], stream=True
                )
                text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
                assert text.startswith("The capital of France is Paris.")
            listed = {model.id: model for model in client.models.list()}
            assert set(listed) == {"acme/pool", "short"}
            assert listed["short"].model_extra["alias_of"] == "acme/pool"  # type: ignore[index]  # ours
            asked = posted(record, 2)
            assert {each["path"] for each in asked} == {"/llm/v1/chat/completions"}
            assert {each["headers"]["authorization"] for each in asked} == {"Bearer sk-theirs"}
            assert "sk-theirs" not in running.log()


@pytest.mark.slow
def test_a_key_needs_both_the_name_and_the_model(tmp_path: Path) -> None:
    path = tmp_path / "auth.keys.json"
    secrets = {
        patterns: new_key(path, " ".join(patterns), [Scope.REALTIME], models=list(patterns), expires=None)
        for patterns in (("acme/*",), ("short",), ("acme/*", "short"))
    }
    with machines(()) as (one,), service(tmp_path, static_table("acme/pool", one.url, aliases=["short"])) as running:
        for patterns, secret in secrets.items():
            with running.client(authorization=f"Bearer {secret}") as client:
                both = len(patterns) == 2
                assert client.post(CHAT, json=ask("short")).status_code == (200 if both else 404)
                assert client.get("/v1/models/short").status_code == (200 if both else 404)
                assert ("short" in [m["id"] for m in client.get("/v1/models").json()["data"]]) is both


@pytest.mark.slow
def test_a_dead_server_leaves_and_comes_back_by_itself(tmp_path: Path) -> None:
    with machines((), ()) as (one, two):
        table = static_table("m", one.url, two.url, **QUICK)
        with service(tmp_path, table) as running, running.client() as client:
            until(lambda: set(servers_of(client, "m").values()) == {"ready"})
            one.kill()
            killed_at = time.monotonic()
            until(lambda: "failed" in servers_of(client, "m").values())
            assert time.monotonic() - killed_at < 2 * QUICK["health_interval_s"] + 0.5
            assert [client.post(CHAT, json=ask("m")).status_code for _ in range(20)] == [200] * 20
            two.kill()
            until(lambda: running.phase("m") == "failed")
            refused = client.post(CHAT, json=ask("m"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_failed")
            assert 1 <= int(refused.headers["retry-after"]) <= 3
            assert "127.0.0.1" not in refused.json()["error"]["message"]
            assert not client.get("/health").json()["checks"]["servers"]["ok"]
            one.start()
            until(lambda: running.phase("m") == "ready")
            assert client.post(CHAT, json=ask("m")).status_code == 200


def test_a_fallback_answers_for_a_model_that_cannot_be_had(tmp_path: Path) -> None:
    with machines((), ("--model", "next")) as (one, two):
        tables = (
            static_table("first", one.url, fallback=["cold", "next"], **QUICK),
            static_table("next", two.url, **QUICK),
            model_table("cold"),
        )
        path = tmp_path / "auth.keys.json"
        anyone, narrow = (
            new_key(path, name, [Scope.REALTIME, Scope.MONITOR], models=models, expires=None)
            for name, models in (("anyone", ["*"]), ("narrow", ["first"]))
        )
        with service(tmp_path, *tables) as running, running.client(authorization=f"Bearer {anyone}") as client:
            assert "x-orchestrator-fallback" not in client.post(CHAT, json=ask("first")).headers
            one.kill()
            until(lambda: client.get("/api/models/first").json()["phase"] == "failed")
            for stream in (False, True):
                answer = client.post(CHAT, json=ask("first", stream=stream))
                assert (answer.status_code, answer.headers["x-orchestrator-fallback"]) == (200, "next")
            assert client.get("/api/models/cold").json()["phase"] == "cold"
            with running.client(authorization=f"Bearer {narrow}") as other:
                assert other.post(CHAT, json=ask("first")).status_code == 503
                assert other.get("/api/models/first/endpoints").status_code == 200
                assert other.get("/api/models/next/endpoints").status_code == 404


def test_nothing_is_started_or_stopped_that_others_run(tmp_path: Path) -> None:
    with peer() as one:
        table = static_table("m", f"http://127.0.0.1:{one.port}")
        with service(tmp_path, table) as running, running.client() as client:
            for action in ("start", "stop", "pull", "pin"):
                refused = client.post(f"/api/models/m/{action}")
                assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_static")
            answer = client.post(CHAT, json=ask("m"))
            assert answer.status_code == 200
            assert "strict-transport-security" not in answer.headers
            one.key = "changed"
            refused = client.post(CHAT, json=ask("m"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (502, "engine_refuses_key")
            assert [replica["phase"] for replica in client.get("/api/replicas").json()["data"]] == ["ready"]


@pytest.mark.slow
def test_an_admin_adds_drains_and_removes_servers_and_they_are_kept(tmp_path: Path) -> None:
    table = static_table("acme/pool", **QUICK) + model_table("mine")
    with machines((), ()) as (one, two), service(tmp_path, table) as running:
        with running.client() as client:
            at = "/api/models/acme/pool/endpoints"
            assert client.post(CHAT, json=ask("acme/pool")).json()["error"]["code"] == "model_failed"
            added = client.post(at, json={"url": f"{one.url}/v1", "key": "sk-theirs", "max_concurrent_requests": 3})
            assert (added.status_code, added.json()["from"], added.json()["has_key"]) == (201, "api", True)
            until(lambda: running.phase("acme/pool") == "ready")
            assert client.post(CHAT, json=ask("acme/pool")).status_code == 200
            assert client.post(at, json={"url": one.url}).json()["error"]["code"] == "endpoint_exists"
            client.post(at, json={"url": two.url})
            first, second = (endpoint["id"] for endpoint in client.get(at).json()["data"])
            assert client.post(f"{at}/{first}/drain").json()["draining"]
            until(lambda: sorted(servers_of(client, "acme/pool").values()) == ["draining", "ready"])
            for bad in ('{"url": "file:///x"}', f'{{"url": "{two.url}", "key_env": "HOME"}}', '{"ur": 1}', "[]", "{"):
                assert client.post(at, content=bad).status_code == 400
            assert client.delete(f"{at}/nothing").status_code == 404
            assert client.get("/api/models/mine/endpoints").json()["error"]["code"] == "model_not_static"
            kept = tmp_path / "data" / "endpoints.json"
            assert kept.stat().st_mode & 0o777 == 0o600
            assert "sk-theirs" in kept.read_text()
            assert "sk-theirs" not in client.get(at).text + client.get("/api/models").text + client.get("/health").text
        running.end()
        running.restart()
        with running.client() as client:
            until(lambda: sorted(servers_of(client, "acme/pool").values()) == ["draining", "ready"])
            assert client.post(at, json={"url": one.url}).status_code == 201
            until(lambda: list(servers_of(client, "acme/pool").values()) == ["ready", "ready"])
            assert client.delete(f"{at}/{first}").json() == {"id": first, "object": "endpoint", "deleted": True}
            until(lambda: len(client.get(at).json()["data"]) == 1)
            assert client.delete(f"{at}/{second}").json()["deleted"]
        assert "sk-theirs" not in running.log()


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    with machines((), ()) as (one, two), service(tmp_path, static_table("m", one.url, **QUICK)) as running:

        def run(*args: str, **more: str) -> tuple[int, str]:
            argv = (sys.executable, "-m", "orchestrator", "endpoints", *args, "--url", running.url)
            done = subprocess.run(argv, input=more.get("stdin", ""), capture_output=True, text=True, timeout=60)
            return done.returncode, done.stdout + done.stderr

        assert run("add", "m", two.url, "--key-file", "-", stdin="sk-theirs\n")[0] == 0
        with running.client() as client:
            until(lambda: list(servers_of(client, "m").values()) == ["ready", "ready"])
        code, text = run("list")
        assert (code, text.count("ready")) == (0, 2)
        assert len(json.loads(run("list", "m", "--json")[1])["data"]) == 2
        assert run("drain", "m", f"{two.url}/v1")[0] == 0
        assert "draining" in run("list", "m")[1]
        assert run("remove", "m", two.url)[0] == 0
        code, text = run("remove", "m", one.url)
        assert code == 1
        assert "configuration" in text


@pytest.fixture
def pressed() -> Iterator[Callable[[Service, str], Counter[int]]]:
    """Starts a steady load; the counter of its answers' statuses goes on until the end of the test."""
    over, threads = threading.Event(), list[threading.Thread]()

    def press(running: Service, model: str) -> Counter[int]:
        statuses: Counter[int] = Counter()

        def ask_on() -> None:
            with running.client() as client:
                while not over.is_set():
                    try:
                        statuses[client.post(CHAT, json=ask(model)).status_code] += 1
                    except httpx.HTTPError:
                        statuses[0] += 1

        threads.extend(threading.Thread(target=ask_on) for _ in range(4))
        for thread in threads:
            thread.start()
        return statuses

    yield press
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.slow
def test_a_reload_loses_no_request_and_is_in_force_within_two_seconds(
    tmp_path: Path, pressed: Callable[[Service, str], Counter[int]]
) -> None:
    """One server leaves and another comes while requests run; streams from the one that leaves end whole."""
    slow = ("--token-delay-s", "0.02")
    with machines(slow, slow, slow) as (one, two, three):
        before = static_table("m", one.url, two.url, **QUICK)
        with service(tmp_path, before) as running, running.client() as client:
            statuses = pressed(running, "m")
            streams = ThreadPoolExecutor(8)
            slow_ask = ask("m", stream=True, user="slow:0.2")
            whole = [streams.submit(lambda: client.post(CHAT, json=slow_ask).text) for _ in range(8)]
            until(lambda: statuses[200] > 50)
            fresh = tmp_path / "fresh.toml"
            fresh.write_text(static_table("m", two.url, three.url, aliases=["short"], **QUICK))
            fresh.replace(tmp_path / "orchestrator.toml")
            changed_at = time.monotonic()
            wanted = [str(two.port), str(three.port)]
            until(lambda: [at.rpartition(":")[2] for at in servers_of(client, "m")] == wanted)
            until(lambda: client.post(CHAT, json=ask("short")).status_code == 200)
            assert time.monotonic() - changed_at < 2.0
            assert all(each.result().endswith("data: [DONE]\n\n") for each in whole)
            streams.shutdown()
            until(lambda: len(client.get("/api/models/m").json()["replicas"]) == 2)
            one.kill()
            count = statuses[200]
            until(lambda: statuses[200] > count + 50)
            assert set(statuses) == {200}


@pytest.mark.slow
def test_a_file_that_cannot_be_used_changes_nothing_and_is_told(tmp_path: Path) -> None:
    with machines(()) as (one,), service(tmp_path, static_table("m", one.url)) as running, running.client() as client:
        (tmp_path / "orchestrator.toml").write_text('[models."m"]\nengine = "static"\nendpoint = []\n')
        until(lambda: not client.get("/health").json()["checks"]["configuration"]["ok"])
        assert client.post(CHAT, json=ask("m")).status_code == 200
        shown = subprocess.run(
            (sys.executable, "-m", "orchestrator", "ps", "--url", running.url),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert shown.returncode == 0
        assert 'models."m".endpoint: unknown key (did you mean endpoints?)' in shown.stderr
        page = client.get("/dashboard", headers={"accept": "text/html"}).text
        assert "did you mean endpoints?" in page


def test_doctor_looks_at_each_server(tmp_path: Path) -> None:
    with peer(models=("there",), key="right") as one, peer(health=500) as two:
        url = f"http://localhost:{one.port}"
        endpoints = (
            f'{{ url = "{url}", model = "there", key = "right" }}',
            f'{{ url = "{url}/x", model = "there", key = "right" }}',
            f"http://127.0.0.1:{two.port}",
        )
        (tmp_path / "orchestrator.toml").write_text(
            static_table("m", *endpoints) + static_table("n", f'{{ url = "{url}", key = "right" }}')
        )
        argv = (sys.executable, "-m", "orchestrator", "doctor", "--json")
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        lines = {line["what"]: line for line in json.loads(done.stdout)["data"]}
        assert lines[f"m: {url} at 127.0.0.1 answers and knows there"]["level"] == "OK"
        assert lines[f"m: http://127.0.0.1:{two.port}: it answers 500 to /health"]["level"] == "FAIL"
        wrong = lines[f"n: {url} at 127.0.0.1 knows no model n"]
        assert (wrong["level"], wrong["remedy"]) == ("WARN", "set the endpoint's model to one of those it has: there")
        assert "right" not in done.stdout
