"""Who used what: equal to the engine's own count, own rows only, kept over a crash. PROMISES C5."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.metering.helpers import ADMIN, client, entry, phase, stream, usage, write_keys
from tests.stub import Service, ask, model_table, posted, service, until

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("usage")
    write_keys(
        folder, entry("a"), entry("b"), entry("watcher", "monitor"), entry("partly", "monitor", models=["other*"])
    )
    tables = (
        model_table("m", "--record", str(folder / "record"), "--tokens", "6", min_replicas=1),
        model_table("counted", min_replicas=1),
        model_table("other", min_replicas=1),
        model_table("plain", "--plain-usage", "--tokens", "50", min_replicas=1),
        model_table("untold", "--record", str(folder / "untold"), min_replicas=1, stream_usage=False),
        model_table("slow", "--start-s", "0.5"),
    )
    with service(folder, *tables) as running:
        until(lambda: {phase(running, name) for name in ("m", "counted", "other", "plain", "untold")} == {"ready"})
        yield running


def post(running: Service, key: str, model: str, **more: Any) -> httpx.Response:
    with client(running, key) as caller:
        return caller.post(CHAT, json=ask(model, **more), headers={"prefer": "wait=20"})


def row(running: Service, **query: str) -> dict[str, Any]:
    (found,) = usage(running, **query)
    return found


def test_a_key_sees_its_own_rows_only(shared: Service) -> None:
    post(shared, "a", "other")
    post(shared, "b", "other")
    with client(shared, "a") as caller:
        assert {one["key"] for one in caller.get("/api/usage").json()["data"]} == {"a"}
        assert caller.get("/api/usage", params={"by": ""}).json()["totals"]["requests"] == 1
        assert caller.get("/api/usage", params={"key": "b"}).status_code == 403
    with client(shared, "watcher") as caller:
        assert {one["key"] for one in caller.get("/api/usage").json()["data"]} >= {"a", "b"}
    with shared.client() as nobody:
        assert nobody.get("/api/usage").status_code == 401


def test_models_that_a_key_may_not_use_are_not_counted_for_it(shared: Service) -> None:
    post(shared, "a", "m")
    with client(shared, "partly") as caller:
        assert {one["model"] for one in caller.get("/api/usage").json()["data"]} == {"other"}


def test_streams_are_counted_and_look_as_if_nobody_counted(shared: Service) -> None:
    plain = post(shared, "b", "untold", stream=True).text
    counted = post(shared, "b", "counted", stream=True).text
    assert counted == plain.replace('"untold"', '"counted"')
    found = row(shared, key="b", model="counted")
    assert (found["prompt_tokens"], found["completion_tokens"], found["cached_tokens"]) == (7, 6, 3)
    assert (found["requests"], found["estimated"], found["errors"]) == (1, 0, 0)
    assert 0 < found["first_token_seconds"] <= found["seconds"]


@pytest.mark.parametrize("model", ["m", "plain"])
def test_who_asks_for_usage_gets_it_at_the_end_only(shared: Service, model: str) -> None:
    text = post(shared, "a", model, stream=True, stream_options={"include_usage": True}).text
    assert text.count('"usage"') == 1
    every = {"include_usage": True, "continuous_usage_stats": True}
    asked_for_all = post(shared, "a", model, stream=True, stream_options=every).text
    assert asked_for_all.count('"usage"') == (8 if model == "m" else 1)


def test_an_engine_is_not_asked_where_it_is_so_configured(shared: Service) -> None:
    body = json.dumps(ask("untold", stream=True)).encode()
    with client(shared, "a") as caller:
        caller.post(CHAT, content=body, headers={"content-type": "application/json"})
    as_sent = hashlib.sha256(body).hexdigest()
    until(lambda: as_sent in [each["sha"] for each in posted(shared.folder / "untold", 1)])
    found = row(shared, key="a", model="untold")
    assert (found["estimated"], found["completion_tokens"]) == (1, 8), "an event for a token, and [DONE]"


def test_a_stream_that_is_cut_counts_what_was_told_so_far(shared: Service) -> None:
    post(shared, "b", "other")
    before = row(shared, key="b", model="other")
    with stream(shared, "b", ask("other", user="slow:0.2", stream=True), 3):
        pass
    found = until(lambda: [one for one in usage(shared, key="b", model="other") if one["cancelled"]])[0]
    assert found["completion_tokens"] == before["completion_tokens"] + 3
    assert found["prompt_tokens"] == before["prompt_tokens"] + 7
    assert found["estimated"] == 0


def test_of_an_engine_that_tells_at_the_end_only_a_cut_stream_is_estimated(shared: Service) -> None:
    with stream(shared, "b", ask("plain", user="slow:0.1", stream=True), 1):
        pass
    found = until(lambda: usage(shared, key="b", model="plain"))[0]
    assert (found["estimated"], found["cancelled"]) == (1, 1)
    assert found["completion_tokens"] >= 1
    assert 5 < found["prompt_tokens"] < 60


def test_a_cold_start_is_counted(shared: Service) -> None:
    assert post(shared, "a", "slow").status_code == 200
    found = row(shared, key="a", model="slow")
    assert (found["requests"], found["cold_starts"]) == (1, 1)


def test_other_paths_are_counted(shared: Service) -> None:
    with client(shared, "a") as caller:
        for path in ("/v1/completions", "/v1/responses", "/v1/embeddings"):
            before = row(shared, by="", key="a", model="other")["prompt_tokens"]
            assert caller.post(path, json={"model": "other", "prompt": "x", "input": "x"}).status_code == 200
            assert row(shared, by="", key="a", model="other")["prompt_tokens"] == before + 7


def test_files(shared: Service) -> None:
    import duckdb

    post(shared, "a", "m")
    with client(shared) as operator:
        data = operator.get("/api/usage", params={"by": "key,model"}).json()["data"]
        table = operator.get("/api/usage", params={"by": "key,model", "format": "csv"})
        parquet = operator.get("/api/usage", params={"by": "key,model", "format": "parquet"})
        nothing = operator.get("/api/usage", params={"by": "key", "to": "2020-01-01", "format": "parquet"})
        assert operator.get("/api/usage", params={"format": "xls"}).status_code == 400
    lines = table.text.splitlines()
    assert lines[0].split(",") == list(data[0])
    assert len(lines) == len(data) + 1
    file = shared.folder / "usage.parquet"
    file.write_bytes(parquet.content)
    found = duckdb.connect().execute(f"SELECT * FROM '{file}'")
    names = [column[0] for column in found.description]
    assert [dict(zip(names, values, strict=True)) for values in found.fetchall()] == data
    assert nothing.content.startswith(b"PAR1")


def test_the_command(shared: Service) -> None:
    def run(*more: str, key: str = ADMIN) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "orchestrator", "usage", "--url", shared.url, *more]
        return subprocess.run(
            argv, env={**os.environ, "ORCHESTRATOR_API_KEY": key}, capture_output=True, text=True, check=False
        )

    post(shared, "a", "other")
    lines = run("--by", "key,model", "--model", "other").stdout.splitlines()
    assert lines[0].split()[:4] == ["KEY", "MODEL", "REQUESTS", "ERRORS"]
    assert lines[1].split()[:2] == ["a", "other"]
    assert lines[-1].split()[0] == "all"
    assert {one["key"] for one in json.loads(run("--json", key="b").stdout)["data"]} <= {"b"}
    assert run("--key", "nobody").stdout == "nothing has been used\n"
    assert run("--by", "colour").returncode == 1


@pytest.mark.parametrize(
    "query",
    [{"by": "colour"}, {"by": "day,hour"}, {"by": "key,key"}, {"from": "yesterday"}, {"to": "99999-01-01"}],
)
def test_queries_are_judged(shared: Service, query: dict[str, str]) -> None:
    with client(shared) as operator:
        answer = operator.get("/api/usage", params=query)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_value"


def test_an_unknown_parameter_is_not_passed_over(shared: Service) -> None:
    with client(shared) as operator:
        answer = operator.get("/api/usage", params={"days": "7"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter")


def test_a_span_of_time(shared: Service) -> None:
    post(shared, "a", "m")
    (today,) = {one["day"] for one in usage(shared, by="day")}
    assert usage(shared, by="day", **{"from": today})
    assert usage(shared, by="day", to=today) == []
    assert usage(shared, by="day", to=datetime.now(UTC).isoformat()), "the hour that it is counts"
    assert all(one["hour"].startswith(today) for one in usage(shared, by="hour"))


def test_kill_9_loses_no_more_than_the_last_second(tmp_path: Path) -> None:
    write_keys(tmp_path, entry("a", tokens_per_month=36), entry("b"))
    with service(tmp_path, model_table("m", min_replicas=1)) as running:
        until(lambda: phase(running, "m") == "ready")
        for _ in range(3):
            assert post(running, "a", "m").status_code == 200
        kept = tmp_path / "data" / "catalog.duckdb.wal"
        stamp = kept.stat().st_mtime_ns if kept.exists() else 0
        until(lambda: kept.exists() and kept.stat().st_mtime_ns != stamp, 3.0)
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        running.restart()
        until(lambda: phase(running, "m") == "ready")
        found = row(running, key="a")
        assert (found["requests"], found["prompt_tokens"], found["completion_tokens"]) == (3, 21, 15)
        assert post(running, "a", "m").status_code == 429, "the month's budget outlives the crash"
        post(running, "b", "m")
        assert running.end() == 0
        running.restart()
        assert row(running, key="b")["requests"] == 1


def _cut(running: Service, body: dict[str, Any], events: int) -> None:
    with stream(running, "cutter", body, events):
        pass


async def _load(running: Service, requests: int) -> None:
    """A mix: whole, streamed, with and without usage asked for, broken bodies, and some cut in the middle, by a key of
    their own."""
    dice, gate = random.Random(5), asyncio.Semaphore(32)

    async def one(caller: httpx.AsyncClient, number: int) -> None:
        kind, key = dice.randrange(20), dice.choice(("a", "b"))
        headers = {"authorization": f"Bearer {key}"}
        streamed = kind >= 8
        options = {"stream_options": {"include_usage": True}} if kind % 3 == 0 and streamed else {}
        body = ask("m", f"number {number} " + "word " * dice.randrange(12), stream=streamed, **options)
        async with gate:
            if kind == 19:
                await asyncio.to_thread(_cut, running, {**body, "user": "slow:0.3"}, dice.randrange(1, 5))
            elif kind == 18:
                await caller.post(CHAT, content=b'{"model": "m", ', headers=headers)
            else:
                answer = await caller.post(CHAT, json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                assert ("usage" in answer.text) == (not streamed or bool(options))

    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=running.url, timeout=60, limits=limits) as caller:
        await asyncio.gather(*(one(caller, number) for number in range(requests)))


@pytest.mark.timeout(400)  # 10,000 take one minute where nothing else runs
@pytest.mark.parametrize("requests", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_sums_are_the_engines_own(tmp_path: Path, requests: int) -> None:
    """C5: each token that the engine has told is counted once. Of a cut stream all is counted that has come: an event
    that the engine sends while the client hangs up is on its way to nobody."""
    write_keys(tmp_path, entry("a"), entry("b"), entry("cutter"))
    record = tmp_path / "record"
    with service(tmp_path, model_table("m", "--record", str(record), min_replicas=1)) as running:
        until(lambda: phase(running, "m") == "ready")
        asyncio.run(_load(running, requests))
        until(lambda: _idle(running))
        counted = {one["key"]: one for one in usage(running)}
        lines = [json.loads(line) for line in record.read_text().splitlines() if '"POST"' in line]
    whole, cuts = Counter[str](), Counter[str]()
    for line in lines:
        (whole if line["outcome"] == "done" else cuts).update({"requests": 1, **line["usage"]})
    cutter = counted.pop("cutter")
    for field in ("requests", "prompt_tokens", "completion_tokens"):
        assert sum(one[field] for one in counted.values()) == whole[field], field
    assert sum(one["errors"] + one["estimated"] + one["cancelled"] for one in counted.values()) == 0
    assert cutter["requests"] == cutter["cancelled"] == cuts["requests"] > requests / 60
    assert (cutter["estimated"], cutter["prompt_tokens"]) == (0, cuts["prompt_tokens"])
    assert 0 <= cuts["completion_tokens"] - cutter["completion_tokens"] <= cuts["requests"] / 4


def _idle(running: Service) -> bool:
    """Whether nothing is in flight."""
    with client(running) as operator:
        return bool(operator.get("/api/models/m").json()["in_flight"] == 0)
