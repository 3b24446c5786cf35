"""An engine that misbehaves costs its own request and nothing else. PROMISES H5, C4, and details 2 and 15."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.stub import ask, model_table, service, until

MODEL = "acme/echo"
CHAT = "/v1/chat/completions"
HOLD = {"prefer": "wait=20"}
SHORT = "[proxy]\nfirst_byte_timeout_s = 1\nstream_idle_timeout_s = 1\nrequest_timeout_s = 3\n"


@pytest.mark.slow
def test_faults_end_in_bounded_time_and_release_their_slot(tmp_path: Path) -> None:
    expected = {
        "hang": (504, "engine_timeout"),
        "huge-header": (502, "engine_error"),
        "garbage-sse": (502, "engine_error"),
        "status-500": (500, None),
    }
    with service(tmp_path, model_table(MODEL), head=SHORT) as running, running.client() as client:
        assert client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200
        for fault, (status, code) in expected.items():
            answer = client.post(CHAT, json=ask(MODEL, user=fault))
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), fault
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        for fault in ("rst", "cut", "endless"):
            with pytest.raises(httpx.HTTPError):
                client.post(CHAT, json=ask(MODEL, user=fault, stream=True))
        until(lambda: running.model(MODEL)["in_flight"] == 0)
        assert client.post(CHAT, json=ask(MODEL)).status_code == 200
        assert len(running.engines()) == 1
        assert "Traceback" not in running.log()


def test_integer_codes_become_strings_or_null(tmp_path: Path) -> None:
    with service(tmp_path, model_table(MODEL)) as running, running.client() as client:
        client.post(CHAT, json=ask(MODEL), headers=HOLD)
        answer = client.post(CHAT, json=ask(MODEL, user="int-code"))
        assert answer.status_code == 400
        error = {"message": "too long", "type": "BadRequestError", "param": None, "code": None}
        assert answer.json() == {"error": error}


def test_stream_that_ends_in_an_error_does_not_count_as_good(tmp_path: Path) -> None:
    with service(tmp_path, model_table(MODEL)) as running, running.client() as client:
        client.post(CHAT, json=ask(MODEL), headers=HOLD)
        text = client.post(CHAT, json=ask(MODEL, user="error-done", stream=True)).text
        assert text.endswith("data: [DONE]\n\n")
        page = client.get("/metrics").text
        assert f'orchestrator_requests_total{{model="{MODEL}",outcome="error"}} 1.0' in page


def test_streams_and_answers_pass_byte_for_byte(tmp_path: Path) -> None:
    """C4: what the engine says is what the client hears."""
    with service(tmp_path, model_table(MODEL)) as running, running.client() as client:
        client.post(CHAT, json=ask(MODEL), headers=HOLD)
        endpoint = running.model(MODEL)["replicas"][0]["endpoint"]
        for body in (
            ask(MODEL),
            ask(MODEL, stream=True),
            ask(MODEL, stream=True, stream_options={"include_usage": True}),
        ):
            direct = httpx.post(endpoint + CHAT, json=body)
            through = client.post(CHAT, json=body)
            assert through.content == direct.content
            assert through.headers["content-type"] == direct.headers["content-type"]


def test_tokens_are_counted(tmp_path: Path) -> None:
    with service(tmp_path, model_table(MODEL)) as running, running.client() as client:
        client.post(CHAT, json=ask(MODEL), headers=HOLD)
        client.post(CHAT, json=ask(MODEL, stream=True, stream_options={"include_usage": True}))
        page = client.get("/metrics").text
    counted = dict(re.findall(r'orchestrator_tokens_total\{kind="(\w+)",[^}]*\} ([\d.]+)', page))
    assert counted == {"prompt": "14.0", "completion": "11.0"}
    assert f'orchestrator_model_phase{{model="{MODEL}",phase="ready"}} 1.0' in page


@pytest.mark.slow
def test_sick_engine_is_taken_out(tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    with service(tmp_path, model_table(MODEL, "--sick-file", str(sick))) as running, running.client() as client:
        client.post(CHAT, json=ask(MODEL), headers=HOLD)
        [first] = running.engines()
        sick.touch()
        until(lambda: first not in running.engines())
        sick.unlink()
        until(lambda: client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200)


def test_engine_logs_can_be_read_after_its_end(tmp_path: Path) -> None:
    table = model_table(MODEL, "--lines", "50", "--fail-after-s", "0", "--fail-line", "RuntimeError: the last word")
    with service(tmp_path, table) as running, running.client() as client:
        client.post(CHAT, json=ask(MODEL))
        replica = until(lambda: running.phase(MODEL) == "failed" and running.model(MODEL)["last_replica"])
        text = client.get(f"/api/logs/{replica}").text
        assert "line 49" in text
        assert "the last word" in text
        assert client.get("/api/logs/../../etc/passwd").status_code == 404
        assert client.get("/api/logs/nobody").status_code == 404


def test_engine_logs_are_bounded(tmp_path: Path) -> None:
    head = "[runtime]\nlog_bytes_max = 20000\n"
    with service(tmp_path, model_table(MODEL, "--lines", "2000"), head=head) as running, running.client() as client:
        client.post(CHAT, json=ask(MODEL), headers=HOLD)
        [log] = (tmp_path / "data" / "replicas" / "logs").iterdir()
        until(lambda: log.stat().st_size <= 20_000)
        assert "line 1999" in log.read_text()
        assert client.post(CHAT, json=ask(MODEL)).status_code == 200


def test_start_that_takes_too_long_fails_with_its_bound(tmp_path: Path) -> None:
    with service(tmp_path, model_table(MODEL, "--start-s", "600", start_timeout_s=0.5)) as running:
        with running.client() as client:
            answer = client.post(CHAT, json=ask(MODEL), headers=HOLD)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_failed")
        assert "0.5 s" in answer.json()["error"]["message"]
        until(lambda: not running.engines())


def test_what_a_look_shows_is_told_at_once(tmp_path: Path) -> None:
    """Preflight: no engine is started for what can't work."""
    table = f'[models."{MODEL}"]\nengine = "command"\ncommand = ["/no/such/program"]\n'
    with service(tmp_path, table) as running, running.client() as client:
        answer = client.post(CHAT, json=ask(MODEL), headers=HOLD)
        assert answer.json()["error"]["code"] == "model_failed"
        assert "/no/such/program" in answer.json()["error"]["message"]
        assert running.log().count('"launched"') == 0
