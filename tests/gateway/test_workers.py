"""``server.workers = 2``: one port, two processes, and nothing that a client could tell from one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from orchestrator.access.key_file import new_key
from orchestrator.model import Scope
from tests.gateway.doors import current, known
from tests.stub import WAIT_S, Service, ask, model_table, service, until

MODEL, SLOW, COLD, NEVER = "acme/echo", "acme/slow", "acme/cold", "acme/never"
CHAT = "/v1/chat/completions"
HOLD = {"prefer": "wait=20"}
HEAD = '[server]\nworkers = 2\n[embeddings]\nmodel = ""\n'


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    tables = (
        model_table(MODEL),
        model_table(SLOW, "--token-delay-s", "0.02"),
        model_table(COLD, "--start-s", "0.3"),
        model_table(NEVER, "--start-s", "600"),
    )
    with service(tmp_path_factory.mktemp("workers"), *tables, head=HEAD) as found:
        with found.client() as client:
            for model in (MODEL, SLOW):
                assert client.post(CHAT, json=ask(model), headers=HOLD).status_code == 200
        current(found, 2)
        yield found


def test_both_workers_answer_and_are_shown(running: Service) -> None:
    before = running_ids(running)
    assert len(before) == 2
    assert {gateway["address"] for gateway in known(running)} == {running.url}


def test_a_stock_client_needs_nothing_new(running: Service) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
        whole = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
        assert whole.choices[0].message.content
        stream = client.chat.completions.create(
            model=SLOW, messages=[{"role": "user", "content": "hello"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert MODEL in [model.id for model in client.models.list()]


def test_a_cold_model_is_refused_or_waited_for(running: Service) -> None:
    """One worker after the other may have the request: both pass it on to the one who starts engines."""
    with running.client() as client:
        refused = client.post(CHAT, json=ask(COLD))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_cold")
        assert int(refused.headers["retry-after"]) >= 1
        held = client.post(CHAT, json=ask(COLD), headers=HOLD)
        assert (held.status_code, held.headers["preference-applied"]) == (200, "wait=20")
        unknown = client.post(CHAT, json=ask("acme/none"))
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        assert client.post(CHAT, content=b"{").status_code == 400
        for answer in (refused, held, unknown):
            assert answer.headers["x-request-id"].startswith("req-")


def test_a_held_stream_tells_its_progress(running: Service) -> None:
    with running.client() as client:
        client.post(f"/api/models/{COLD}/stop")
        until(lambda: running.phase(COLD) == "cold")
        with client.stream(
            "POST", CHAT, json=ask(COLD, stream=True), headers={"prefer": "wait=20, progress"}
        ) as answer:
            text = answer.read()
    assert text.startswith(b": ") and b"[DONE]" in text


def test_pages_files_and_odd_paths_pass(running: Service) -> None:
    """The dashboard, an upload in pieces, what is escaped in a path, and what a browser may not do."""
    with running.client() as client:
        assert "orchestrator" in client.get("/dashboard", headers={"accept": "text/html"}).text
        content = os.urandom(3 * 2**20)
        made = client.post("/v1/files", files={"file": ("a.bin", content)}, data={"purpose": "user_data"})
        assert made.status_code == 200, made.text
        assert client.get(f"/v1/files/{made.json()['id']}/content").content == content
        assert client.delete(f"/v1/files/{made.json()['id']}").status_code == 200
        assert client.get("/api/models/acme%2Fecho").status_code == 200
        assert client.get("/nowhere").status_code == 404
        assert client.get(CHAT).status_code == 405
        assert client.head("/").status_code in (200, 405)
        foreign = client.post(CHAT, json=ask(MODEL), headers={"origin": "https://elsewhere.example"})
        assert foreign.status_code == 403


def test_a_body_in_pieces_is_asked_as_a_whole_one(running: Service) -> None:
    body = httpx.Request("POST", "http://x", json=ask(MODEL, "long " * 20_000)).content
    with running.client(**{"content-type": "application/json"}) as client:
        for model_body in (body, body.replace(MODEL.encode(), COLD.encode())):
            pieces = (model_body[at : at + 10_000] for at in range(0, len(model_body), 10_000))
            assert client.post(CHAT, content=pieces, headers=HOLD).status_code == 200


def test_who_leaves_ends_a_request_that_was_passed_on(running: Service) -> None:
    """A held one: the controller's line is left at once."""
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(httpx.post, running.url + CHAT, json=ask(NEVER), headers=HOLD, timeout=1.5)
        until(lambda: running.model(NEVER)["held"] == 1)
        assert isinstance(asked.exception(), httpx.ReadTimeout)
    until(lambda: running.model(NEVER)["held"] == 0, 1)


def test_usage_is_exact(running: Service) -> None:
    """Whole answers and streams, by both workers."""

    def total() -> int:
        with running.client() as client:
            return int(client.get("/api/usage?model=" + MODEL).json()["totals"]["requests"])

    before, count = settled(total), 60

    def one(number: int) -> int:
        with running.client() as client:  # a connection of its own, so both workers have some
            return client.post(CHAT, json=ask(MODEL, stream=number % 2 == 0)).status_code

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, range(count))) == [200] * count
    until(lambda: total() == before + count)
    assert settled(total) == before + count


def test_metrics_count_what_workers_did(running: Service) -> None:
    def counted() -> float:
        with running.client() as client:
            lines = client.get("/metrics").text.splitlines()
        wanted = f'orchestrator_requests_total{{model="{SLOW}",outcome="ok"}} '
        return next(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted))

    before = settled(counted)
    with running.client() as client:
        client.post(CHAT, json=ask(SLOW))
    until(lambda: counted() == before + 1)


def test_requests_in_flight_are_seen(running: Service) -> None:
    with running.client() as client, client.stream("POST", CHAT, json=ask(SLOW, stream=True, user="slow:0.5")):
        until(lambda: running.model(SLOW)["in_flight"] == 1)
    until(lambda: running.model(SLOW)["in_flight"] == 0)


def test_a_worker_that_dies_is_followed_by_another(running: Service) -> None:
    before = running_ids(running)
    victim = psutil.Process(running.process.pid).children()
    workers = [child for child in victim if "gateway" in child.cmdline()]
    assert len(workers) == 2
    workers[0].kill()
    with running.client() as client:
        until(lambda: len(running_ids(running) - before) == 1)
        for _ in range(10):
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200


def test_a_key_with_limits_is_counted_in_one_place(tmp_path: Path) -> None:
    """6 of 20 pass, whichever worker has them."""
    path = tmp_path / "auth.keys.json"
    admin = new_key(path, "admin", [Scope.ADMIN, Scope.MONITOR], models=[], expires=None)
    secret = new_key(path, "ci", [Scope.REALTIME], models=["*"], expires=None)
    text = path.read_text().replace('"name": "ci"', '"name": "ci", "requests_per_minute": 6')
    path.write_text(text)
    with service(tmp_path, model_table(MODEL), head=HEAD) as running:
        with running.client(authorization=f"Bearer {admin}") as client:
            assert client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200
        current(running, 2, authorization=f"Bearer {admin}")

        def one(_: int) -> int:
            with running.client(authorization=f"Bearer {secret}") as client:
                return client.post(CHAT, json=ask(MODEL)).status_code

        with ThreadPoolExecutor(8) as threads:
            statuses = list(threads.map(one, range(20)))
        assert (statuses.count(200), statuses.count(429)) == (6, 14)
        with running.client(authorization="Bearer sk-wrong") as client:
            assert client.post(CHAT, json=ask(MODEL)).status_code == 401
        with running.client() as client:
            assert client.post(CHAT, json=ask(MODEL)).status_code == 401


def test_an_engine_in_use_by_a_worker_is_not_idle(tmp_path: Path) -> None:
    """It is stopped once the worker's traffic ends, and not before."""
    table = model_table(MODEL, "--token-delay-s", "0.2", idle_timeout_s=1)
    with service(tmp_path, table, head=HEAD) as running, running.client() as client:
        client.post(CHAT, json=ask(MODEL), headers=HOLD)
        current(running, 2)
        ends_at = time.monotonic() + 4
        while time.monotonic() < ends_at:
            assert client.post(CHAT, json=ask(MODEL, stream=True)).status_code == 200
            assert running.phase(MODEL) == "ready"
        until(lambda: running.phase(MODEL) == "cold")
        assert running.log().count('"launched"') == 1


@pytest.mark.slow
def test_replacing_an_engine_under_load_loses_nothing(tmp_path: Path) -> None:
    """Steady requests through both workers while the settings change, time and again: the old engine leaves once no
    worker sends to it any more, and each request is answered by it or by the next."""

    def table(round_: int) -> str:
        return model_table(MODEL, "--token-delay-s", "0.02") + f'env = {{ ROUND = "{round_}" }}\n'

    with service(tmp_path, table(0), head=HEAD) as running:
        with running.client() as client:
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        current(running, 2)
        done, statuses = threading.Event(), list[int]()

        def load() -> None:
            while not done.is_set():
                with running.client() as client:
                    statuses.append(client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code)

        with ThreadPoolExecutor(6) as threads:
            asked = [threads.submit(load) for _ in range(6)]
            for round_ in range(1, 4):
                (tmp_path / "orchestrator.toml").write_text(HEAD + table(round_))
                until(lambda: running.log().count('"launched"') == round_ + 1)  # noqa: B023 - asked at once
                goal = len(statuses) + 100
                until(lambda: len(statuses) > goal)  # noqa: B023 - asked at once
            done.set()
        for one in asked:
            one.result()
        assert set(statuses) == {200}


@pytest.mark.slow
def test_sigterm_loses_no_accepted_request(tmp_path: Path) -> None:
    with service(tmp_path, model_table(MODEL, "--token-delay-s", "1"), head=HEAD) as running:
        with running.client() as client:
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        current(running, 2)
        with ThreadPoolExecutor(20) as threads:
            asked = [threads.submit(httpx.post, running.url + CHAT, json=ask(MODEL), timeout=WAIT_S) for _ in range(20)]
            until(lambda: running.model(MODEL)["in_flight"] == 20)
            assert running.end() == 0
            assert [answer.result().status_code for answer in asked] == [200] * 20
        assert running.engines() == []


def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    with service(tmp_path, model_table(MODEL), head=HEAD) as running:
        with running.client() as client:
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        current(running, 2)
        family = psutil.Process(running.process.pid).children()
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(httpx.post, running.url + CHAT, json=ask(MODEL, user="hang"), timeout=WAIT_S)
            until(lambda: running.model(MODEL)["in_flight"] == 1)
            running.process.send_signal(signal.SIGTERM)
            until(lambda: any(gone(worker) for worker in family if "gateway" in cmdline(worker)))
            began = time.monotonic()
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(WAIT_S) == 1
            assert time.monotonic() - began < 1
            assert isinstance(asked.exception(), httpx.TransportError)


def test_nothing_is_left_after_kill_9(tmp_path: Path) -> None:
    """And the port is free for the next one, who adopts the engine."""
    with service(tmp_path, model_table(MODEL), head=HEAD) as running:
        with running.client() as client:
            client.post(CHAT, json=ask(MODEL), headers=HOLD)
        workers = [p for p in psutil.Process(running.process.pid).children() if "gateway" in p.cmdline()]
        running.process.kill()
        running.process.wait(WAIT_S)
        _, alive = psutil.wait_procs(workers, 5)
        assert (len(workers), alive) == (2, [])
        running.restart()
        with running.client() as client:
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200


def running_ids(running: Service) -> set[str]:
    """The names of the gateways that were heard just now."""
    return {gateway["name"] for gateway in known(running) if gateway["heard_s"] < 1}


def settled(read: object) -> float:
    """What it says once it says the same for longer than gateways take to tell."""
    assert callable(read)
    value, since = read(), time.monotonic()
    while time.monotonic() < since + 2:
        if (new := read()) != value:
            value, since = new, time.monotonic()
        time.sleep(0.1)
    return float(value)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ["gateway"]
