"""What is survived: kill -9, restarts, signals, a second orchestrator. PROMISES R2 R3 R5 R8 R10."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.stub import WAIT_S, Service, ask, model_table, service, until

MODEL = "acme/echo"
CHAT = "/v1/chat/completions"
HOLD = {"prefer": "wait=20"}
LAUNCH_POINTS = ("launch.before_intent", "launch.after_intent", "launch.after_spawn", "launch.after_record")
STOP_POINTS = ("stop.before_signal", "stop.after_signal", "stop.before_clear")


def test_ready_engine_is_adopted_after_kill_9(tmp_path: Path) -> None:
    """R2: the same pid, no relaunch, the first answer within 2 s of the open port."""
    with service(tmp_path, model_table(MODEL)) as running:
        with running.client() as client:
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        before = running.engines()
        running.process.kill()
        running.process.wait(WAIT_S)
        running.restart()
        began = time.monotonic()
        with running.client() as client:
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200
            assert time.monotonic() - began < 2
            replicas = client.get("/api/replicas").json()["data"]
        assert [replica["adopted"] for replica in replicas] == [True]
        assert running.engines() == before
        assert running.log().count('"launched"') == 1


def test_cut_stream_never_looks_whole(tmp_path: Path) -> None:
    """R3: kill -9 in mid-stream: no [DONE], no end of the chunks; the engine lives on."""
    with service(tmp_path, model_table(MODEL)) as running, running.client() as client:
        client.post(CHAT, json=ask(MODEL), headers=HOLD)
        seen = b""
        with (
            pytest.raises(httpx.RemoteProtocolError),
            client.stream("POST", CHAT, json=ask(MODEL, stream=True, user="slow:0.2")) as answer,
        ):
            for data in answer.iter_bytes():
                seen += data
                running.process.kill()
        assert seen and b"[DONE]" not in seen
        assert len(running.engines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("point", LAUNCH_POINTS)
def test_crash_while_launching_leaves_one_engine_at_most(tmp_path: Path, point: str) -> None:
    """R5: what was half started is adopted or replaced, never doubled."""
    with service(tmp_path, model_table(MODEL), CRASH_AT=point) as running:
        with running.client() as client, pytest.raises(httpx.TransportError):
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        assert running.process.wait(WAIT_S) == 137
        assert len(running.engines()) == (point in ("launch.after_spawn", "launch.after_record"))
        running.restart()
        with running.client() as client:
            until(lambda: client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200)
        assert len(running.engines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("point", STOP_POINTS)
def test_crash_while_stopping_leaves_no_engine_behind(tmp_path: Path, point: str) -> None:
    table = model_table(MODEL, idle_timeout_s=0.3)
    with service(tmp_path, table, CRASH_AT=point) as running:
        with running.client() as client:
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        assert running.process.wait(WAIT_S) == 137
        running.restart()
        until(lambda: not running.engines())
        until(lambda: not list((tmp_path / "data" / "replicas").glob("*.json")))


@pytest.mark.slow
def test_sigterm_loses_no_accepted_request(tmp_path: Path) -> None:
    """R8: what was accepted is answered within the drain limit, and nothing is left behind."""
    with service(tmp_path, model_table(MODEL, "--token-delay-s", "1")) as running:
        with running.client() as client:
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        statuses: list[int] = []

        def one() -> None:
            statuses.append(httpx.post(running.url + CHAT, json=ask(MODEL), timeout=WAIT_S).status_code)

        threads = [threading.Thread(target=one) for _ in range(20)]
        for thread in threads:
            thread.start()
        until(lambda: running.model(MODEL)["in_flight"] == 20)
        assert running.end() == 0
        for thread in threads:
            thread.join(WAIT_S)
        assert statuses == [200] * 20
        assert running.engines() == []


def test_second_signal_ends_it_within_a_second(tmp_path: Path) -> None:
    """R8; the engine stays and is adopted by the next start."""
    with service(tmp_path, model_table(MODEL)) as running:
        with running.client() as client:
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        thread = threading.Thread(target=_swallow, args=(running,))
        thread.start()
        until(lambda: running.model(MODEL)["in_flight"] == 1)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # two signals of one kind that are pending together would be delivered as one
        began = time.monotonic()
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(WAIT_S) == 1
        assert time.monotonic() - began < 1
        thread.join(WAIT_S)
        assert len(running.engines()) == 1


def _swallow(running: Service) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(running.url + CHAT, json=ask(MODEL, user="hang"), timeout=WAIT_S)


def test_held_requests_are_told_to_come_back_at_the_end(tmp_path: Path) -> None:
    with service(tmp_path, model_table(MODEL, "--start-s", "600")) as running:
        answers: list[httpx.Response] = []

        def one() -> None:
            answers.append(httpx.post(running.url + CHAT, json=ask(MODEL), headers=HOLD, timeout=WAIT_S))

        thread = threading.Thread(target=one)
        thread.start()
        until(lambda: running.model(MODEL)["held"] == 1)
        assert running.end() == 0
        thread.join(WAIT_S)
        assert answers[0].status_code == 503
        assert int(answers[0].headers["retry-after"]) >= 1


def test_keep_leaves_engines_for_the_next(tmp_path: Path) -> None:
    with service(tmp_path, model_table(MODEL), head='[runtime]\non_exit = "keep"') as running:
        with running.client() as client:
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        before = running.engines()
        assert running.end() == 0
        assert running.engines() == before
        running.restart()
        with running.client() as client:
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200
        assert running.engines() == before


def test_second_orchestrator_refuses_and_names_the_first(tmp_path: Path) -> None:
    """R10."""
    with service(tmp_path, model_table(MODEL)) as running:
        argv = (sys.executable, "-m", "orchestrator", "serve", "--port", "0")
        second = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S)
        assert second.returncode == 2
        assert f"process {running.process.pid}" in second.stderr
        assert "Traceback" not in second.stderr


def test_changed_settings_replace_the_engine_after_a_restart(tmp_path: Path) -> None:
    with service(tmp_path, model_table(MODEL)) as running:
        with running.client() as client:
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        before = running.engines()
        running.process.kill()
        running.process.wait(WAIT_S)
        (tmp_path / "orchestrator.toml").write_text(model_table(MODEL, "--tokens", "9"))
        running.restart()
        until(lambda: not set(before) & set(running.engines()))
        with running.client() as client:
            answer = client.post(CHAT, json=ask(MODEL), headers=HOLD)
        assert answer.json()["usage"]["completion_tokens"] == 9


def test_foreign_engines_are_not_touched(tmp_path: Path) -> None:
    """An engine with another instance's marks survives our whole life."""
    env = {"ORCHESTRATOR_ENGINE_INSTANCE": "somebody-else", "ORCHESTRATOR_ENGINE_REPLICA": "acme-echo-x-0"}
    with subprocess.Popen((sys.executable, "-S", "-c", "import time; time.sleep(600)"), env=env) as foreign:
        try:
            folder = tmp_path / "data" / "replicas"
            folder.mkdir(parents=True)
            facts = {"orchestrator.instance": "somebody-else", "orchestrator.model": MODEL, "orchestrator.spec": "s"}
            rest = {"orchestrator.replica": "acme-echo-x-0", "port": 1, "gpus": [], "pid": foreign.pid, "born_at": None}
            (folder / "acme-echo-x-0.json").write_text(json.dumps({**facts, **rest}))
            with service(tmp_path, model_table(MODEL)) as running:
                with running.client() as client:
                    client.post(CHAT, json=ask(MODEL), headers=HOLD)
                    assert len(client.get("/api/replicas").json()["data"]) == 1
                assert running.end() == 0
            assert foreign.poll() is None
        finally:
            foreign.kill()


def test_catalogue_that_is_damaged_is_set_aside(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "catalog.duckdb").write_bytes(b"not a database" * 1000)
    with service(tmp_path, model_table(MODEL)) as running, running.client() as client:
        assert client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200
        until(lambda: client.get("/api/starts").json()["data"])
    assert (data / "catalog.damaged").exists()
