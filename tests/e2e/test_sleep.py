"""Sleep instead of stop, through vLLM's adapter over the stub: `idle_action = "sleep"`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.app import TICK_S
from orchestrator.eta import DEFAULT_S
from orchestrator.model import EngineKind
from orchestrator.scout import READY_PROBE_S
from tests.stub import WAIT_S, Service, ask, service, until, vllm_cache
from tests.tiny_model import write_tiny_model

MODEL = "acme/sleepy"
CHAT = "/v1/chat/completions"
HOLD = {"prefer": "wait=25"}
MODELS = 5
NOTICED_S = READY_PROBE_S + TICK_S


def table(folder: Path, *options: str, name: str = MODEL, **settings: Any) -> str:
    """A vLLM that sleeps as soon as it is idle; `options` are the stub's."""
    source = write_tiny_model(folder / "tiny")
    told = {"gpus": 0, "idle_action": "sleep", "idle_timeout_s": 0.2, "sleep_timeout_s": 600, **settings}
    lines = [f'[models."{name}"]', f'source = "{source}"', f"args = {json.dumps(options)}"]
    return "\n".join(lines + [f"{key} = {json.dumps(value)}" for key, value in told.items()]) + "\n"


def sleepy(folder: Path, *tables: str) -> Any:
    return service(folder, *tables, ORCHESTRATOR_CACHE=str(vllm_cache(folder / "cache")))


def heard(running: Service, model: str = MODEL, **more: Any) -> float:
    """The seconds that a held request took to be answered."""
    began = time.monotonic()
    with running.client() as client:
        answer = client.post(CHAT, json=ask(model, **more), headers=HOLD)
    assert answer.status_code == 200, answer.text
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    return time.monotonic() - began


def until_phase(running: Service, phase: str) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        view = running.model(MODEL)
        return view if view["phase"] == phase else None

    view: dict[str, Any] = until(there)
    return view


def starts(running: Service) -> list[dict[str, Any]]:
    with running.client() as client:
        found: list[dict[str, Any]] = client.get("/api/starts").json()["data"]
    return found


def put_to_sleep(running: Service) -> None:
    """By somebody else."""
    endpoint = running.model(MODEL)["replicas"][0]["endpoint"]
    assert httpx.post(f"{endpoint}/sleep", timeout=WAIT_S).status_code == 200


def lines(record: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in record.read_text().splitlines()]


@pytest.mark.slow
def test_it_sleeps_says_so_and_wakes_on_demand(tmp_path: Path) -> None:
    """Waits are learnt from wakes, and wakes teach nothing of cold starts."""
    with sleepy(tmp_path, table(tmp_path, "--wake-s", "2.2", sleep_timeout_s=100)) as running:
        heard(running)
        view = until_phase(running, "sleeping")
        pids, cold = running.engines(), starts(running)[0]
        assert view["sleeps_in_s"] is None and 90 < view["stops_in_s"] <= 100
        argv = (sys.executable, "-m", "orchestrator", "ps", "--url", running.url)
        shown = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=WAIT_S).stdout
        assert "sleeping" in shown and "stops in" in shown
        for said_s in (5, 3):
            until_phase(running, "sleeping")
            with running.client() as client:
                refused = client.post(CHAT, json=ask(MODEL))
                assert refused.status_code == 503 and "waking up" in refused.json()["error"]["message"]
                assert int(refused.headers["retry-after"]) == said_s
                again = until(lambda: running.phase(MODEL) == "loading") and client.post(CHAT, json=ask(MODEL))
                assert again.status_code == 503 and f"{MODEL} is waking up" in again.json()["error"]["message"]
            heard(running)
        assert running.engines() == pids
        told = starts(running)
        assert [start["wake"] for start in told] == [True, True, False]
        assert all(2.2 <= start["total_s"] < 6 and start["outcome"] == "ready" for start in told[:2])
        with running.client() as client:
            client.post(f"/api/models/{MODEL}/stop")
        expected_s = until_phase(running, "cold")["expected_s"]
        assert expected_s == pytest.approx(
            max(sum({**DEFAULT_S[EngineKind.VLLM], **cold["seconds"]}.values()), 1.0), abs=0.1
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rounds_each", [40])
def test_no_request_hangs_and_none_is_slept_on(tmp_path: Path, rounds_each: int) -> None:
    """Requests that come at the moment of sleep, or in it: all answered, and nothing in flight when `/sleep` comes."""
    names = [f"{MODEL}-{number}" for number in range(MODELS)]
    records = {name: tmp_path / f"{name.partition('/')[2]}.jsonl" for name in names}
    options = ("--sleep-s", "0.03", "--wake-s", "0.02", "--record")
    tables = [table(tmp_path, *options, str(records[name]), name=name, idle_timeout_s=0.05) for name in names]
    with sleepy(tmp_path, *tables) as running:

        def rounds(name: str) -> list[float]:
            return [one_round(running, name, random.Random(f"{name} {n}")) for n in range(rounds_each)]

        with ThreadPoolExecutor(MODELS) as pool:
            seconds = [spent for found in pool.map(rounds, names) for spent in found]
        assert running.log().count('"launched"') == MODELS
        assert not any(start["outcome"] != "ready" for start in starts(running))
    slept = [line for record in records.values() for line in lines(record) if line["path"].startswith("/sleep")]
    assert len(slept) > len(seconds) / 4 and {line["running"] for line in slept} == {0}
    seconds.sort()
    told = {"rounds": len(seconds), "sleeps": len(slept), "p50_s": seconds[len(seconds) // 2], "worst_s": seconds[-1]}
    print(json.dumps({key: round(value, 3) for key, value in told.items()}))
    assert seconds[-1] < 10


def one_round(running: Service, name: str, dice: random.Random) -> float:
    """One request, at once, after a while, or just when the engine leaves."""
    moment = dice.choice(("now", "later", "leaving"))
    for _ in range(dice.randint(1, 60) if moment == "later" else 0):
        running.phase(name)
    if moment == "leaving":
        until(lambda: running.phase(name) != "ready", every_s=0)
    return heard(running, name)


@pytest.mark.slow
def test_one_that_fails_to_sleep_is_stopped(tmp_path: Path) -> None:
    with sleepy(tmp_path, table(tmp_path, "--sleep-fault", "500")) as running:
        heard(running)
        until(lambda: running.phase(MODEL) == "cold" and not running.engines())
        assert "/sleep answered 500" in running.log()
        heard(running)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("partial", "it did not wake: /wake_up was answered, but it sleeps on"),
        ("500", "it did not wake: /wake_up answered 500"),
        ("hang", "the engine did not wake within 4 s"),
    ],
)
def test_one_that_fails_to_wake_is_stopped_and_another_answers(tmp_path: Path, fault: str, cause: str) -> None:
    with sleepy(tmp_path, table(tmp_path, "--wake-fault", fault, start_timeout_s=4)) as running:
        heard(running)
        until_phase(running, "sleeping")
        pids = running.engines()
        heard(running)
        assert not set(running.engines()) & set(pids)
        ready, failed, first = starts(running)[:3]
        assert [(s["wake"], s["outcome"]) for s in (ready, failed, first)] == [
            (False, "ready"),
            (True, "failed"),
            (False, "ready"),
        ]
        assert cause in failed["error"]


@pytest.mark.slow
def test_what_somebody_else_puts_to_sleep_is_noticed_and_woken(tmp_path: Path) -> None:
    """More than once. What it has in hand it aborts, whole; what comes next hangs until the next probe."""
    with sleepy(tmp_path, table(tmp_path, idle_timeout_s=600)) as running:
        heard(running)
        for _ in range(2):
            with (
                running.client() as client,
                client.stream("POST", CHAT, json=ask(MODEL, stream=True, user="slow:0.2"), headers=HOLD) as answer,
            ):
                stream = answer.iter_lines()
                first = next(stream)
                assert answer.status_code == 200, first
                put_to_sleep(running)
                rest = list(stream)
                assert any('"abort"' in line for line in rest), rest
            assert heard(running) < NOTICED_S + 2
            until_phase(running, "ready")
        put_to_sleep(running)
        view = until_phase(running, "sleeping")
        assert 590 < view["stops_in_s"] <= 600
        heard(running)
        assert running.log().count('"launched"') == 1


@pytest.mark.slow
def test_level_2_drops_its_weights_and_loads_them_anew(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    with sleepy(tmp_path, table(tmp_path, "--record", str(record), sleep_level=2)) as running:
        heard(running)
        until_phase(running, "sleeping")
        heard(running)
        calls = [(line["path"], line["body"]) for line in lines(record) if line["outcome"] == "asked"]
    assert calls[:4] == [
        ("/sleep?level=2", ""),
        ("/wake_up?tags=weights", ""),
        ("/collective_rpc", '{"method":"reload_weights"}'),
        ("/wake_up?tags=kv_cache", ""),
    ]


@pytest.mark.slow
def test_a_sleeper_is_stopped_by_hand(tmp_path: Path) -> None:
    with sleepy(tmp_path, table(tmp_path)) as running:
        heard(running)
        until_phase(running, "sleeping")
        with running.client() as client:
            client.post(f"/api/models/{MODEL}/stop")
        until(lambda: running.phase(MODEL) == "cold" and not running.engines())
        heard(running)


@pytest.mark.slow
def test_who_is_held_while_it_is_stopped_by_hand_is_told_so(tmp_path: Path) -> None:
    with sleepy(tmp_path, table(tmp_path, "--wake-s", "60")) as running:
        heard(running)
        until_phase(running, "sleeping")
        answers: list[httpx.Response] = []

        def held() -> None:
            with running.client() as client:
                answers.append(client.post(CHAT, json=ask(MODEL), headers=HOLD))

        waiting = threading.Thread(target=held)
        waiting.start()
        until(lambda: running.model(MODEL)["held"] == 1 and running.phase(MODEL) == "loading")
        with running.client() as client:
            client.post(f"/api/models/{MODEL}/stop")
        waiting.join(WAIT_S)
        assert answers[0].status_code == 503
        assert "stopped by hand" in answers[0].json()["error"]["message"]
        until(lambda: running.phase(MODEL) == "cold" and not running.engines())
        assert not any(start["outcome"] == "failed" for start in starts(running))


@pytest.mark.slow
def test_a_sleeper_whose_settings_changed_is_stopped_and_started_anew(tmp_path: Path) -> None:
    with sleepy(tmp_path, table(tmp_path)) as running:
        heard(running)
        until_phase(running, "sleeping")
        (tmp_path / "orchestrator.toml").write_text(table(tmp_path, "--tokens", "9"))
        until(lambda: running.phase(MODEL) == "cold" and not running.engines())
        assert "its settings changed" in running.log()
        heard(running)
        assert len(running.engines()) == 1


@pytest.mark.slow
def test_a_warm_model_never_sleeps_and_is_woken_unasked(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    with sleepy(tmp_path, table(tmp_path, "--record", str(record), min_replicas=1)) as running:
        view = until_phase(running, "ready")
        assert view["sleeps_in_s"] is None and view["stops_in_s"] is None
        put_to_sleep(running)
        until(lambda: any(line["path"] == "/wake_up" for line in lines(record)))
        until_phase(running, "ready")
    assert sum(line["path"].startswith("/sleep") for line in lines(record)) == 1  # not ours


@pytest.mark.slow
def test_a_sleeper_outlives_kill_9_asleep_and_is_stopped_in_the_end(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    with sleepy(tmp_path, table(tmp_path, "--record", str(record), sleep_timeout_s=5)) as running:
        heard(running)
        until_phase(running, "sleeping")
        pids = running.engines()
        running.process.kill()
        running.process.wait(WAIT_S)
        running.restart()
        view = until_phase(running, "sleeping")
        assert view["replicas"][0]["adopted"] and 0 < view["stops_in_s"] <= 5
        assert running.engines() == pids
        heard(running)
        assert running.engines() == pids
        until_phase(running, "sleeping")
        until(lambda: running.phase(MODEL) == "cold" and not running.engines())
    posts = [line for line in lines(record) if line["path"] == CHAT]
    assert len(posts) == 2 and all(line["outcome"] == "done" for line in posts)
