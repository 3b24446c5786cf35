"""The command line as users run it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stub import WAIT_S, Service, model_table, service, until

MODEL = "acme/echo"


def orc(folder: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    argv = (sys.executable, "-m", "orchestrator", *args)
    env = {**os.environ, **environ}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=WAIT_S)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("cli")
    failing = model_table("acme/broken", "--fail-after-s", "0", "--fail-line", "ValueError: a bad day")
    slow = model_table("acme/slow", "--start-s", "600")
    with service(folder, model_table(MODEL, "--start-s", "0.5", "--lines", "3"), failing, slow) as found:
        yield found


def test_version_and_help(tmp_path: Path) -> None:
    assert orc(tmp_path, "--version").stdout.startswith("orchestrator 0.")
    assert "serve" in orc(tmp_path, "--help").stdout


@pytest.mark.parametrize("args", [("nonsense",), ("serve", "--nonsense"), ("start",), ("serve", "--port", "x")])
def test_wrong_usage_is_2(tmp_path: Path, args: tuple[str, ...]) -> None:
    assert orc(tmp_path, *args).returncode == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprt = 1", "server.prt: unknown key (did you mean port?)"),
        ("[server", "orchestrator.toml"),
        ('[server]\nport = "x"', "server.port"),
        ('[models."../evil"]', "a model id is"),
        ('[models."a"]\nengine = "command"', "command goes with"),
        ('[server]\nhost = "0.0.0.0"', "orchestrator keys new"),
    ],
)
def test_bad_configuration_is_2_and_says_where(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "orchestrator.toml").write_text(text)
    done = orc(tmp_path, "serve")
    assert done.returncode == 2
    assert said in done.stderr


def test_unknown_variable_is_2(tmp_path: Path) -> None:
    done = orc(tmp_path, "serve", ORCHESTRATOR_SERVER__PROT="1")
    assert done.returncode == 2
    assert "server.prot: unknown key (did you mean port?)" in done.stderr


def test_taken_port_is_1_in_one_line(tmp_path: Path, running: Service) -> None:
    done = orc(tmp_path, "serve", "--port", running.url.rpartition(":")[2])
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_service_is_1(tmp_path: Path) -> None:
    done = orc(tmp_path, "ps", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "orchestrator serve" in done.stderr


def test_start_ps_logs_stop(tmp_path: Path, running: Service) -> None:
    url = ("--url", running.url)
    started = orc(tmp_path, "start", MODEL, *url)
    assert (started.returncode, started.stdout.strip()) == (0, f"{MODEL} is ready")
    shown = json.loads(orc(tmp_path, "ps", "--json", *url).stdout)
    assert {model["id"]: model["phase"] for model in shown["data"]}[MODEL] == "ready"
    assert MODEL in orc(tmp_path, "ps", *url).stdout
    assert "line 2" in orc(tmp_path, "logs", MODEL, *url).stdout
    assert orc(tmp_path, "stop", MODEL, *url).returncode == 0
    assert not [m for m in json.loads(orc(tmp_path, "ps", "--json", *url).stdout)["data"] if m["replicas"]]


def test_failed_start_is_1_with_its_cause(tmp_path: Path, running: Service) -> None:
    done = orc(tmp_path, "start", "acme/broken", "--url", running.url)
    assert done.returncode == 1
    assert "a bad day" in done.stderr
    assert "a bad day" in orc(tmp_path, "ps", "--url", running.url).stdout


def test_ctrl_c_ends_a_command_quietly(tmp_path: Path, running: Service) -> None:
    argv = (sys.executable, "-m", "orchestrator", "start", "acme/slow", "--url", running.url)
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "starting" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
        assert "Traceback" not in process.stderr.read()


def test_unknown_model_is_1(tmp_path: Path, running: Service) -> None:
    done = orc(tmp_path, "start", "nobody", "--url", running.url)
    assert (done.returncode, "no model 'nobody'" in done.stderr) == (1, True)


@pytest.mark.slow
def test_a_key_is_revoked_whatever_is_wrong_elsewhere(tmp_path: Path) -> None:
    assert orc(tmp_path, "keys", "new", "ci", "--scope", "realtime").returncode == 0
    (tmp_path / "orchestrator.toml").write_text('[models."a/b"]\nbogus = 1\n')
    assert orc(tmp_path, "ps").returncode == 2
    assert orc(tmp_path, "keys", "revoke", "ci").returncode == 0


def test_keys_make_list_use_and_revoke(tmp_path: Path) -> None:
    """The secret is shown once, kept as a digest, works at once, and stops working within seconds."""
    made = orc(tmp_path, "keys", "new", "ci", "--scope", "realtime", "--model", "acme/*")
    secret = made.stdout.strip()
    assert secret.startswith("orc_") and len(secret) > 40
    path = tmp_path / "auth.keys.json"
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert "ci" in orc(tmp_path, "keys", "list").stdout
    assert orc(tmp_path, "keys", "new", "ci", "--scope", "realtime").returncode == 2
    assert orc(tmp_path, "keys", "new", "x", "--scope", "everything").returncode == 2
    with service(tmp_path, model_table(MODEL), model_table("other/model")) as found:
        with found.client() as anonymous:
            assert anonymous.get("/v1/models").status_code == 401
            assert anonymous.get("/v1/models").headers["www-authenticate"] == "Bearer"
            assert anonymous.get("/health").status_code == 200
        with found.client(authorization=f"Bearer {secret}") as client:
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [MODEL]
            assert client.get("/api/models").status_code == 403
            unknown = client.post("/v1/chat/completions", json={"model": "nobody"})
            other = client.post("/v1/chat/completions", json={"model": "other/model"})
            assert (unknown.status_code, other.status_code) == (404, 404)
            assert unknown.text.replace("nobody", "") == other.text.replace("other/model", "")
            assert orc(tmp_path, "keys", "revoke", "ci").returncode == 0
            until(lambda: client.get("/v1/models").status_code == 401, 5)
        assert secret not in found.log()


def test_doctor_finds_what_is_wrong(tmp_path: Path) -> None:
    tables = model_table(MODEL) + '[models."acme/none"]\nengine = "command"\ncommand = ["/no/such/program"]\n'
    (tmp_path / "orchestrator.toml").write_text(tables + '[models."x/y"]\nsource = "./nowhere"\n')
    done = orc(tmp_path, "doctor", "--json", HF_TOKEN="hf_canary", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    found = {(f["level"], f["what"].partition(":")[0]) for f in json.loads(done.stdout)["data"]}
    assert ("FAIL", "acme/none can't start") in found
    assert ("FAIL", "x/y") in found
    assert ("OK", MODEL) in found
    assert "canary" not in done.stdout + done.stderr


@pytest.mark.slow
def test_following_logs_ends_with_the_engine(tmp_path: Path, running: Service) -> None:
    orc(tmp_path, "start", MODEL, "--url", running.url)
    said: list[str] = []
    thread = threading.Thread(
        target=lambda: said.append(orc(tmp_path, "logs", "-f", MODEL, "--url", running.url).stdout)
    )
    thread.start()
    orc(tmp_path, "stop", MODEL, "--url", running.url)
    thread.join(WAIT_S)
    assert said and "line 0" in said[0]
