"""Limits of a running service: 429s, their fields, what is let go again, changes while it runs. PROMISES S4, S14."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.metering.helpers import client, entry, phase, stream, usage, write_keys
from tests.stub import Service, ask, model_table, posted, service, until

CHAT = "/v1/chat/completions"
KEYS = (
    entry("free"),
    entry("hourly", requests_per_minute=2),
    entry("brief", tokens_per_minute=100),
    entry("small", request_bytes_max=300),
    entry("single", max_concurrent=1),
    entry("budget", tokens_per_month=12),
    entry("changed", requests_per_minute=1),
)
IN_FORCE_S = 5.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("limits")
    write_keys(folder, *KEYS)
    tables = (
        model_table("warm", min_replicas=1),
        model_table("cold", "--start-s", "3600"),
        model_table("narrow", "--record", str(folder / "narrow"), min_replicas=1, max_concurrent=2),
        model_table("rated", min_replicas=1, requests_per_minute=3),
    )
    with service(folder, *tables) as running:
        until(lambda: {phase(running, name) for name in ("warm", "narrow", "rated")} == {"ready"})
        yield running


def post(running: Service, key: str, model: str = "warm", **more: Any) -> httpx.Response:
    with client(running, key) as caller:
        return caller.post(CHAT, json=ask(model, **more))


def test_who_has_no_limits_sees_none(shared: Service) -> None:
    answer = post(shared, "free")
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("streamed", [False, True])
def test_requests_a_minute(shared: Service, streamed: bool) -> None:
    name = f"rated-{streamed}"
    write_keys(shared.folder, *KEYS, entry(name, requests_per_minute=2))
    until(lambda: post(shared, name, "nothing").status_code == 404)
    answers = [post(shared, name, stream=streamed) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    refused = answers[2]
    assert 28 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    (row,) = usage(shared, key=name)
    assert (row["requests"], row["refused"]) == (2, 1)


def test_tokens_a_minute(shared: Service) -> None:
    """What was reserved for a long answer is given back when it was short."""
    first = post(shared, "brief", max_tokens=60)
    assert first.status_code == 200
    left = int(post(shared, "brief").headers["x-ratelimit-remaining-tokens"])
    assert 0 < left < 100 - 12, "the reserve of this one, and what the first really took"
    refused = post(shared, "brief", max_tokens=100)
    assert refused.status_code == 429
    assert "tokens per minute" in refused.json()["error"]["message"]


def test_a_months_budget(shared: Service) -> None:
    assert post(shared, "budget").status_code == 200
    refused = post(shared, "budget")
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert 0 < int(refused.headers["retry-after"]) <= 31 * 86400


def test_the_size_of_requests(shared: Service) -> None:
    assert post(shared, "small").status_code == 200
    refused = post(shared, "small", text="x" * 300)
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "request_too_large"


def test_a_models_rate_holds_for_all_keys(shared: Service) -> None:
    answers = [post(shared, key, "rated").status_code for key in ("free", "small", "free", "small")]
    assert answers == [200, 200, 200, 429]


def test_a_cold_refusal_takes_nothing(shared: Service) -> None:
    for _ in range(4):
        assert post(shared, "hourly", "cold").status_code == 503
    assert post(shared, "hourly").headers["x-ratelimit-remaining-requests"] == "1"
    (row,) = usage(shared, key="hourly", model="cold")
    assert (row["requests"], row["refused"], row["cold_starts"]) == (0, 4, 4)


def test_a_held_request_counts_as_concurrent_until_its_client_leaves(shared: Service) -> None:
    with client(shared, "single") as waiting, ThreadPoolExecutor(1) as pool:
        held = pool.submit(waiting.post, CHAT, json=ask("cold"), headers={"prefer": "wait=60"}, timeout=1.0)
        until(lambda: post(shared, "single").status_code == 429)
        assert isinstance(held.exception(), httpx.TimeoutException)
    until(lambda: post(shared, "single").status_code == 200)


@pytest.mark.parametrize("fault", ["rst", "cut", "status-500", "garbage-sse", "huge-header"])
def test_engine_faults_let_go(shared: Service, fault: str) -> None:
    with client(shared, "single") as caller:
        for _ in range(3):
            try:
                status = caller.post(CHAT, json=ask("warm", user=fault, stream=True)).status_code
            except httpx.HTTPError:
                continue
            assert status != 429
        assert caller.post(CHAT, json=ask("warm")).status_code == 200


def test_hang_ups_let_go(shared: Service) -> None:
    for _ in range(3):
        with stream(shared, "single", ask("warm", user="endless", stream=True), 1):
            assert post(shared, "single").json()["error"]["code"] == "rate_limit_exceeded"
        until(lambda: post(shared, "single").status_code == 200)


def test_changed_limits_are_in_force_within_seconds(shared: Service) -> None:
    assert [post(shared, "changed").status_code for _ in range(2)] == [200, 429]
    write_keys(shared.folder, *KEYS[:-1], entry("changed", requests_per_minute=1000))
    began = time.monotonic()
    until(lambda: post(shared, "changed").status_code == 200, IN_FORCE_S)
    assert time.monotonic() - began < IN_FORCE_S


def test_a_model_gets_no_more_at_a_time_than_it_takes_and_nobody_waits_for_anothers_line(shared: Service) -> None:
    """A noisy key's forty requests stand in line; each of the other's goes as if it were alone (S14)."""
    quiet: list[str] = []
    with ThreadPoolExecutor(40) as pool, client(shared, "free") as noisy:
        noisy.timeout = httpx.Timeout(60.0)
        post(shared, "small", "narrow")
        body = ask("narrow", "noise", user="slow:0.1")
        sent = [pool.submit(noisy.post, CHAT, json=body) for _ in range(40)]
        until(lambda: sum(future.done() for future in sent) >= 2)
        for _ in range(5):
            answer = post(shared, "small", "narrow", text="quiet", user="slow:0.01")
            quiet.append(f"{answer.status_code} {sum(future.done() for future in sent)}")
        done_before = sum(future.done() for future in sent)
        assert {future.result().status_code for future in sent} == {200}
    assert all(one.startswith("200") for one in quiet)
    assert done_before < 30, f"the quiet ones went while the noisy ones stood in line: {quiet}"
    record = posted(shared.folder / "narrow", 46)
    assert max(line["peak"] for line in record) == 2


def test_a_key_can_not_fill_the_house(tmp_path: Path) -> None:
    """Held requests are bounded by key: there is room for another's."""
    write_keys(tmp_path, entry("noisy"), entry("quiet"))
    with service(tmp_path, model_table("cold", "--start-s", "3600"), head="[activator]\nheld_max = 10") as running:

        def hold(key: str, wait_s: float) -> int:
            with client(running, key) as caller:
                return caller.post(CHAT, json=ask("cold"), headers={"prefer": f"wait={wait_s:.0f}"}).status_code

        with ThreadPoolExecutor(20) as pool, client(running) as operator:
            pool.map(lambda _: hold("noisy", 3), range(15))
            until(lambda: operator.get("/api/models/cold").json()["held"] == 8)
            quiet = pool.submit(hold, "quiet", 1)
            until(lambda: operator.get("/api/models/cold").json()["held"] == 9)
            assert quiet.result() == 503
