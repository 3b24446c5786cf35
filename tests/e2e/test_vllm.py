"""The main job with the real thing: vLLM on the CPU and SmolLM2-135M-Instruct, once."""

from __future__ import annotations

import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from bench.prefix import told
from orchestrator.config import cache_dir
from orchestrator.demo.engine import prepare_engine
from orchestrator.demo.weights import MODEL, prepare_weights
from tests.stub import WAIT_S, Service, ask, service, until

CHAT = "/v1/chat/completions"
HOLD = {"prefer": "wait=100"}
SLEEP_TIMEOUT_S = 12.0
MIXED = 40
CUT = 8


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_cold_503_then_the_stock_client_hears_paris_then_it_sleeps_and_wakes_then_nothing_is_left(
    tmp_path: Path,
) -> None:
    cache = cache_dir(os.environ)
    engine = prepare_engine(cache, lambda step: None)
    source = prepare_weights(cache, engine.python, lambda step: None)
    settings = f'idle_timeout_s = 3\nidle_action = "sleep"\nsleep_timeout_s = {SLEEP_TIMEOUT_S}\n'
    table = f'[models."{MODEL}"]\nsource = "{source}"\nargs = ["--max-model-len", "2048"]\n{settings}'
    with service(tmp_path, table) as running:
        with running.client() as client:
            began = time.monotonic()
            cold = client.post(CHAT, json=ask(MODEL))
            assert cold.status_code == 503
            assert cold.json()["error"]["code"] == "model_cold"
        stock = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
        answer = stock.chat.completions.create(model=MODEL, messages=ask(MODEL)["messages"], temperature=0)
        assert "Paris" in (answer.choices[0].message.content or "")
        print(f"answered {time.monotonic() - began:.1f} s after the first request")
        with stock.chat.completions.create(model=MODEL, messages=ask(MODEL)["messages"], stream=True) as stream:
            assert len(list(stream)) > 3
        with running.client() as client:
            wrong = client.post(CHAT, json=ask(MODEL, max_tokens=-1))
            assert wrong.status_code == 400
            assert wrong.json()["error"].keys() == {"message", "type", "param", "code"}
            assert wrong.json()["error"]["code"] is None
            start = starts(running)[0]
            assert start["outcome"] == "ready" and not start["wake"]
            assert start["seconds"].keys() == {"starting", "loading"}
        stock.close()
        usage_is_the_engines_own(running)
        it_sleeps_and_wakes(running, start["total_s"])
        what_another_puts_to_sleep_is_woken(running)
        it_is_adopted_asleep_and_then_stopped(running)


def usage_is_the_engines_own(running: Service) -> None:
    """PROMISES C5: of answers that end, each token; of streams that the client leaves, all but what the engine may
    make in the step in which it hears of that."""
    before = counted(running)
    with ThreadPoolExecutor(4) as clients:
        list(clients.map(lambda number: whole(running, number), range(MIXED)))
    ours, engines = difference(before, counted(running))
    assert ours[1] == engines[1] > MIXED
    prompt = ours[0] // MIXED
    assert ours[0] == prompt * MIXED
    assert engines[0] == ours[0] + prompt * MIXED // 4, (
        "vLLM's metric, not its answers, counts a prompt for each of `n`"
    )
    before = counted(running)
    for number in range(CUT):
        cut(running, events=3 + number)
    ours, engines = difference(before, counted(running))
    assert ours[0] == engines[0]
    assert engines[1] - CUT <= ours[1] <= engines[1] and ours[1] >= 3 * CUT
    print(f"{CUT} cut streams: {ours[1]} tokens counted of the engine's {engines[1]}")


def whole(running: Service, number: int) -> None:
    """One of four kinds of answers, to its end."""
    kinds: list[dict[str, Any]] = [{}, {"stream": True}, {"stream": True, "n": 2, "temperature": 1}]
    kinds.append({"stream": True, "stream_options": {"include_usage": True}})
    with httpx.Client(base_url=running.url, timeout=120) as client:
        body = ask(MODEL, **{"temperature": 0, "max_tokens": 5 + number % 20, **kinds[number % len(kinds)]})
        answer = client.post(CHAT, json=body, headers=HOLD)
    assert answer.status_code == 200
    assert ('"usage":{' in answer.text) == (number % len(kinds) in (0, 3)), "who did not ask for it does not see it"


def cut(running: Service, *, events: int) -> None:
    """A stream that its client leaves after so many events."""
    body = ask(MODEL, temperature=0, max_tokens=300, stream=True, ignore_eos=True)
    with (
        httpx.Client(base_url=running.url, timeout=120) as client,
        client.stream("POST", CHAT, json=body, headers=HOLD) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line.startswith("data:"))
        assert len(list(itertools.islice(lines, events))) == events


def counted(running: Service) -> tuple[tuple[int, int], tuple[int, int]]:
    """Prompt and completion tokens so far: as we count them, and as the engine does, once it is at rest."""

    def at_rest() -> str | None:
        page = httpx.get(f"{endpoint(running)}/metrics", timeout=WAIT_S).text
        return page if told(page, "vllm:num_requests_running") == 0 else None

    page = until(at_rest)
    with running.client() as client:
        rows = client.get("/api/usage").json()["data"]
    ours = (sum(row["prompt_tokens"] for row in rows), sum(row["completion_tokens"] for row in rows))
    return ours, (told(page, "vllm:prompt_tokens_total"), told(page, "vllm:generation_tokens_total"))


def difference(before: Any, after: Any) -> list[tuple[int, int]]:
    """What was counted between, by us and by the engine."""
    return [(new[0] - old[0], new[1] - old[1]) for old, new in zip(before, after, strict=True)]


def it_sleeps_and_wakes(running: Service, cold_s: float) -> None:
    until_asleep(running)
    pids = running.engines()
    woken_s, refused_s = [], 0.0
    for _ in range(3):
        began = time.monotonic()
        assert "Paris" in heard(running)
        woken_s.append(time.monotonic() - began)
        until_asleep(running)
    assert running.engines() == pids
    wakes = [start["total_s"] for start in starts(running) if start["wake"]]
    assert len(wakes) == 3
    with running.client() as client:
        began = time.monotonic()
        refused = client.post(CHAT, json=ask(MODEL))
        refused_s = time.monotonic() - began
    assert refused.status_code == 503 and "waking up" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) <= max(wakes) + 1
    until(lambda: running.phase(MODEL) == "ready")
    told = {"cold_s": cold_s, "wakes_s": wakes, "answered_from_sleep_s": [round(s, 2) for s in woken_s]}
    print(json.dumps({**told, "refused_s": round(refused_s, 3)}))


def what_another_puts_to_sleep_is_woken(running: Service) -> None:
    """A request that it got in between hangs until that is noticed, and is answered then."""
    assert httpx.post(f"{endpoint(running)}/sleep?level=1", timeout=WAIT_S).status_code == 200
    began = time.monotonic()
    assert "Paris" in heard(running)
    print(f"answered {time.monotonic() - began:.1f} s after somebody else put it to sleep")


def it_is_adopted_asleep_and_then_stopped(running: Service) -> None:
    until_asleep(running)
    pids, behind = running.engines(), len(running.log())
    running.process.kill()
    running.process.wait(WAIT_S)
    running.restart()
    view = until_asleep(running)
    assert running.engines() == pids and view["replicas"][0]["adopted"]
    assert 0 < view["stops_in_s"] <= SLEEP_TIMEOUT_S and not view["in_flight"]
    assert '"phase": "ready"' not in running.log()[behind:]
    assert "Paris" in heard(running)
    assert running.engines() == pids
    until_asleep(running)
    began = time.monotonic()
    until(lambda: running.phase(MODEL) == "cold" and not running.engines(), 120)
    assert time.monotonic() - began > SLEEP_TIMEOUT_S - 3
    assert "it slept for long" in running.log()[behind:]


def heard(running: Service) -> str:
    with httpx.Client(base_url=running.url, timeout=120) as client:
        answer = client.post(CHAT, json=ask(MODEL, temperature=0), headers=HOLD)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def until_asleep(running: Service) -> dict[str, Any]:
    """Its view, once it sleeps and says so itself."""

    def asleep() -> dict[str, Any] | None:
        view = running.model(MODEL)
        return view if view["phase"] == "sleeping" else None

    view: dict[str, Any] = until(asleep, 60)
    assert httpx.get(f"{endpoint(running)}/is_sleeping", timeout=WAIT_S).json() == {"is_sleeping": True}
    assert httpx.get(f"{endpoint(running)}/health", timeout=WAIT_S).status_code == 200
    return view


def endpoint(running: Service) -> str:
    return str(running.model(MODEL)["replicas"][0]["endpoint"])


def starts(running: Service) -> list[dict[str, Any]]:
    with running.client() as client:
        found: list[dict[str, Any]] = client.get("/api/starts").json()["data"]
    return found
