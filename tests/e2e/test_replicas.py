"""Three engines of one model under load, and what becomes of it when one of them fails: no request does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import pytest

from orchestrator.balance.poller import POLL_S, POLL_TIMEOUT_S
from tests.namespaces import run_alone
from tests.servers.machines import Machine
from tests.stub import Service, ask, service, until

MODEL = "acme/pool"
CHECK_S = POLL_S + POLL_TIMEOUT_S
CLIENTS = 8


class Load:
    """Clients that ask again as soon as they are answered, each over a connection of its own, until told to end."""

    def __init__(self, url: str, **more: Any) -> None:
        self.answers: list[tuple[float, float, int, str]] = []
        """When asked, after how many seconds answered, how, and what."""
        self.cut = 0
        """Streams that had begun and broke off."""
        self._url, self._body = url, json.dumps(ask(MODEL, **more))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def bad(self) -> list[tuple[float, float, int, str]]:
        return [answer for answer in self.answers if answer[2] != 200]

    def p99_s(self, since: float) -> float:
        return quantiles([took for at, took, *_ in self.answers if at >= since], n=100)[98]

    async def _run(self) -> None:
        await asyncio.gather(*(self._ask() for _ in range(CLIENTS)))

    async def _ask(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as client:
            while not self._ended.is_set():
                at, status, text = time.monotonic(), 0, ""
                try:
                    async with client.stream("POST", "/v1/chat/completions", content=self._body) as answer:
                        status = answer.status_code
                        text = (await answer.aread()).decode()
                except httpx.RemoteProtocolError:  # cut
                    self.cut += 1
                self.answers.append((at, time.monotonic() - at, status, text))


def table(engines: list[Machine], balance: str) -> str:
    endpoints = ", ".join(f'{{ url = "{engine.url}" }}' for engine in engines)
    return f'[models."{MODEL}"]\nengine = "static"\nbalance = "{balance}"\nendpoints = [{endpoints}]\n'


@contextlib.contextmanager
def pool(folder: Path, balance: str = "least_loaded") -> Iterator[tuple[Service, list[Machine]]]:
    """A service with a model that three stub engines have; each has an address and a mood file of its own."""
    with contextlib.ExitStack() as ends:
        engines = []
        for number in range(3):
            mood = ("--mood-file", str(folder / f"mood{number}"))
            engines.append(Machine("--token-delay-s", "0.03", *mood, host=f"127.0.0.{number + 1}"))
            ends.callback(engines[-1].kill)
        running = ends.enter_context(service(folder, table(engines, balance)))
        until(lambda: len(servers(running)) == 3)
        yield running, engines


def servers(running: Service) -> dict[str, dict[str, Any]]:
    """What `/load-stats` says, by port."""
    with running.client() as client:
        rows = client.get("/load-stats").json()["data"]
    return {row["replica"].rsplit("-", 2)[1]: row for row in rows}


def served(running: Service) -> int:
    """Good answers, as the service has counted them."""
    with running.client() as client:
        page = client.get("/metrics").text
    found = re.search(rf'orchestrator_requests_total{{model="{MODEL}",outcome="ok"}} (\S+)', page)
    return int(float(found[1])) if found else 0


def working(engine: Machine) -> bool:
    """Whether it has a request in hand, by its own account."""
    return "vllm:num_requests_running 1" in httpx.get(f"{engine.url}/metrics").text


def rotating(running: Service, engine: Machine) -> bool:
    return bool(servers(running).get(str(engine.port), {}).get("in_rotation"))


def kill(folder: Path, engine: Machine) -> Callable[[], None]:
    engine.kill()
    return engine.start


def stop(folder: Path, engine: Machine) -> Callable[[], None]:
    engine.process.send_signal(signal.SIGSTOP)
    return lambda: engine.process.send_signal(signal.SIGCONT)


def moody(mood: str) -> Callable[[Path, Machine], Callable[[], None]]:
    def spoil(folder: Path, engine: Machine) -> Callable[[], None]:
        (folder / "mood1").write_text(mood)
        return (folder / "mood1").unlink

    return spoil


def cut(folder: Path, engine: Machine) -> Callable[[], None]:
    """In a network namespace of our own: no packet reaches it, and none comes from it."""
    rules = [("INPUT", "-d", engine.host, "-j", "DROP"), ("INPUT", "-s", engine.host, "-j", "DROP")]
    for rule in rules:
        subprocess.run(("iptables", "-A", *rule), check=True)

    def mend() -> None:
        for rule in rules:
            subprocess.run(("iptables", "-D", *rule), check=True)

    return mend


FAULTS = {
    "killed": (kill, 1.0),
    "hung": (stop, 2 * CHECK_S),
    "cut": (cut, 2 * CHECK_S),
    "garbage": (moody("garbage"), 2 * CHECK_S),
    "5xx": (moody("status-500"), 2 * CHECK_S),
    "slow": (moody("slow:0.3"), 2 * CHECK_S),
}
"""How one is spoiled, which returns how it is mended, and within how many seconds it must be out."""


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"cut"}))
def test_no_request_fails_with_one_engine(fault: str, stream: bool, tmp_path: Path) -> None:
    survive(tmp_path, fault, stream=stream)


@pytest.mark.slow
def test_no_request_fails_with_one_engines_network(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from tests.e2e import test_replicas as t; t.survive(Path({str(tmp_path)!r}), 'cut')"
    )
    script = 'command -v iptables ip >/dev/null || exit 127; ip link set lo up && exec "$@"'
    root = Path(__file__).parents[2]
    done = run_alone("net", script, sys.executable, "-c", code, cwd=root, timeout_s=100)
    print(done.stdout)
    assert not done.returncode, done.stderr[-3000:]


def survive(folder: Path, fault: str, *, stream: bool = False) -> None:
    """Clients ask all the time; one engine is spoiled, leaves, is mended, and comes back."""
    spoil, out_s = FAULTS[fault]
    with pool(folder) as (running, engines):
        load = Load(running.url, stream=stream)
        try:
            until(lambda: len(load.answers) > 100)
            began = time.monotonic()
            mend = spoil(folder, engines[1])
            until(lambda: not rotating(running, engines[1]), timeout_s=out_s)
            out = time.monotonic()
            until(lambda: len([at for at, *_ in load.answers if at > out]) > 100)
            mend()
            until(lambda: rotating(running, engines[1]))
            back = time.monotonic()
        finally:
            load.end()
        counted = served(running)
    print(
        f"{fault}, {'streams' if stream else 'whole'}: {len(load.answers)} requests, out after {out - began:.1f} s, "
        f"back {back - out:.1f} s after, p99 {load.p99_s(began):.2f} s, "
        f"at most {max(took for at, took, *_ in load.answers if at >= began - 1):.1f} s, {load.cut} cut"
    )
    assert not load.bad(), load.bad()[:3]
    assert counted == len(load.answers) - load.cut  # and none twice, however often it was tried
    assert load.cut <= CLIENTS if stream and fault == "killed" else not load.cut


def test_what_waits_at_an_engine_that_dies_goes_to_another(tmp_path: Path) -> None:
    """The answer would have come from it; the client sees nothing but another second."""
    with pool(tmp_path) as (running, engines):
        for number in range(3):
            (tmp_path / f"mood{number}").write_text("slow:1.0")
        load = Load(running.url)
        until(lambda: all(row["in_flight"] for row in servers(running).values()))
        engines[0].kill()
        load.end()
    assert not load.bad(), load.bad()[:3]


def test_what_may_have_had_its_effect_is_not_sent_twice(tmp_path: Path) -> None:
    """An answer of /v1/responses is kept by its engine, and tools may have been called for it."""
    with pool(tmp_path) as (running, engines), running.client() as client, ThreadPoolExecutor() as threads:
        for number in range(3):
            (tmp_path / f"mood{number}").write_text("slow:20")
        asked = threads.submit(client.post, "/v1/responses", json={"model": MODEL, "input": "x"})
        busy = until(lambda: [port for port, row in servers(running).items() if row["in_flight"]])
        (worker,) = until(lambda: [e for e in engines if str(e.port) in busy and working(e)])
        worker.kill()
        answer = asked.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_unreachable")
        assert not any(working(engine) for engine in engines if engine is not worker)


def test_an_answer_that_is_kept_is_gone_on_with_at_its_engine(tmp_path: Path) -> None:
    def engine_of(client: httpx.Client, **more: str) -> tuple[str, str]:
        answer = client.post("/v1/responses", json={"model": MODEL, **more}).json()
        return answer["id"], answer["id"].split("_")[1]

    with pool(tmp_path, "prefix") as (running, _), running.client() as client:
        engines = set()
        for number in range(12):
            kept, engine = engine_of(client, input=f"conversation {number}")
            engines.add(engine)
            for turn in range(3):
                kept, next_engine = engine_of(client, input=f"turn {turn}", previous_response_id=kept)
                assert next_engine == engine
        assert len(engines) > 1


def test_all_engines_have_their_part_and_are_told_of(tmp_path: Path) -> None:
    with pool(tmp_path) as (running, engines), running.client() as client:
        for _ in range(30):
            assert client.post("/v1/chat/completions", json=ask(MODEL)).status_code == 200
        rows = until(
            lambda: (found := servers(running)) and all(r["told_s"] is not None for r in found.values()) and found
        )
        assert set(rows) == {str(engine.port) for engine in engines}
        for row in rows.values():
            assert (row["breaker"], row["in_rotation"], row["running"], row["waiting"]) == ("closed", True, 0, 0)
            assert row["cache_use"] is None  # the stub does not say
        page = client.get("/metrics").text
        assert page.count("orchestrator_replica_in_rotation{") == 3
        assert 'orchestrator_retries_total{model="acme/pool"} 0.0' in page
        health = client.get("/health").json()
        assert len(health["servers"]) == 3
