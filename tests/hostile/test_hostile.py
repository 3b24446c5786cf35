"""Raw sockets against the real service. PROMISES H1, H2, H3, H4."""

from __future__ import annotations

import json
import os
import random
import socket
import statistics
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.hostile.corpus import BODIES, FRAMING, GOOD_BODY, mutations, post
from tests.stub import Service, ask, model_table, service, until

MODEL = "acme/echo"
CHAT = "/v1/chat/completions"
SEED = 20261121
SLOW = bool(os.environ.get("CI"))
LIMITS = """
[server]
header_timeout_s = 1
body_timeout_s = 1
body_bytes_per_s_min = 10000
connections_max = 600
body_bytes_max = 1000000
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service with a ready engine that records every request line."""
    folder = tmp_path_factory.mktemp("hostile")
    table = model_table(MODEL, "--record", str(folder / "record.jsonl"), min_replicas=1)
    with service(folder, table, head=LIMITS) as running:
        until(lambda: running.phase(MODEL) == "ready")
        yield running


def exchange(running: Service, data: bytes, timeout_s: float = 1.0) -> bytes:
    """Send bytes and read until the server closes, or is silent for the whole timeout."""
    host, port = running.url.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR) if not data else None
            while chunk := connection.recv(65536):
                received += chunk
        except (TimeoutError, ConnectionError):
            pass
    return received


def statuses(answer: bytes) -> list[int]:
    """The status codes of all responses in a stream of bytes."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def good(running: Service) -> bool:
    return httpx.post(running.url + CHAT, json=ask(MODEL), timeout=5).status_code == 200


def forwarded(running: Service) -> list[str]:
    lines = (running.folder / "record.jsonl").read_text().splitlines()
    return [json.loads(line)["path"] for line in lines]


@pytest.mark.parametrize("name", FRAMING)
def test_framing_gets_one_answer_and_the_connection_ends(target: Service, name: str) -> None:
    """H3."""
    found = statuses(exchange(target, FRAMING[name], 2.0))
    assert len(found) == 1, name
    assert 400 <= found[0] < 500, name
    assert not [path for path in forwarded(target) if "pause" in path]
    assert good(target)


@pytest.mark.parametrize("name", BODIES)
def test_bad_bodies_are_400(target: Service, name: str) -> None:
    answer = httpx.post(target.url + CHAT, content=BODIES[name])
    assert answer.status_code == 400, name
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def _fuzz(running: Service, count: int) -> dict[str, float]:
    process = psutil.Process(running.process.pid)
    before, slowest, server_errors = process.memory_info().rss, 0.0, 0
    for data in mutations(SEED, count):
        began = time.monotonic()
        found = statuses(exchange(running, data + b"\r\n\r\n", 0.02))
        slowest = max(slowest, time.monotonic() - began)
        server_errors += sum(status >= 500 for status in found)
    figures = {
        "requests": count,
        "seed": SEED,
        "server_errors": server_errors,
        "slowest_s": round(slowest, 3),
        "rss_growth_mb": round((process.memory_info().rss - before) / 1e6, 1),
    }
    print(json.dumps(figures))
    return figures


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_mutations_do_no_harm(target: Service, count: int) -> None:
    """H1."""
    figures = _fuzz(target, count)
    assert figures["server_errors"] == 0
    assert figures["slowest_s"] < 1
    assert figures["rss_growth_mb"] < 20
    assert "Traceback" not in target.log()
    assert good(target)


def test_slow_senders_are_cut_and_good_ones_served(target: Service) -> None:
    """H2, with deadlines of a second."""
    host, port = target.url.removeprefix("http://").split(":")
    begun = [b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nx: ", b"", post(b"x" * 1000)[:-990]]
    slow = [socket.create_connection((host, int(port))) for _ in range(500)]
    for index, connection in enumerate(slow):
        connection.sendall(begun[index % len(begun)])
    seconds = []
    with httpx.Client(base_url=target.url) as client:
        for _ in range(100):
            began = time.monotonic()
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200
            seconds.append(time.monotonic() - began)
    print(json.dumps({"slow": len(slow), "good_p99_ms": round(statistics.quantiles(seconds, n=100)[98] * 1000, 1)}))
    for connection in slow:
        connection.settimeout(4)
        answer = connection.recv(4096)
        assert statuses(answer) == [408]
        connection.close()


def test_ten_thousand_hostile_ids_start_nothing(target: Service) -> None:
    """S7: an id is looked up among the configured ones and goes nowhere else."""
    dice, parts = (
        random.Random(SEED),
        ["..", "/", "\\", "\0", "-rf", "$(id)", ";", "%2e", "acme", "echo", "é", "\n", "{port}"],
    )
    before, launches = forwarded(target), target.log().count('"launched"')
    files = sorted((target.folder / "data").rglob("*"))
    with httpx.Client(base_url=target.url) as client:
        for number in range(10_000 if SLOW else 1000):
            name = "".join(dice.choice(parts) for _ in range(dice.randint(1, 8))) + str(number)
            path = (CHAT, "/v1/embeddings")[number % 2]
            answer = client.post(path, content=json.dumps({"model": name}))
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert target.log().count('"launched"') == launches
    assert not [path for path in forwarded(target)[len(before) :] if path != "/health"]
    assert [p for p in sorted((target.folder / "data").rglob("*")) if ".wal" not in p.name] == [
        p for p in files if ".wal" not in p.name
    ]


def test_connections_are_capped(target: Service) -> None:
    host, port = target.url.removeprefix("http://").split(":")
    held = [socket.create_connection((host, int(port))) for _ in range(600)]
    time.sleep(0.1)
    with socket.create_connection((host, int(port)), timeout=3) as one_more:
        assert statuses(one_more.recv(4096)) == [503]
    for connection in held:
        connection.close()
    until(lambda: good(target))


def test_too_large_is_refused_before_it_is_read(target: Service) -> None:
    """H4, detail 15: no 100 Continue for what will not be taken."""
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 20000000000\r\n\r\n"
    )
    assert statuses(exchange(target, head)) == [413]

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    answer = httpx.post(target.url + CHAT, content=chunks())
    assert answer.status_code == 413


def test_long_upload_at_a_good_rate_passes(target: Service) -> None:
    """Longer than the deadline, faster than the least rate."""
    body = GOOD_BODY + b" " * 60_000
    host, port = target.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        data = post(body)
        for start in range(0, len(data), 6000):
            connection.sendall(data[start : start + 6000])
            time.sleep(0.2)
        assert statuses(connection.recv(4096)) == [200]


def test_pipelined_requests_are_answered_in_order(target: Service) -> None:
    two = post(GOOD_BODY) + post(GOOD_BODY, b"connection: close")
    assert statuses(exchange(target, two, 3.0)) == [200, 200]


def test_framework_errors_have_openai_shape(target: Service) -> None:
    for method, path, status in (("GET", "/nope", 404), ("DELETE", "/v1/models", 405), ("PUT", CHAT, 405)):
        answer = httpx.request(method, target.url + path)
        assert answer.status_code == status
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"].startswith("req-")


def test_prompts_and_secrets_are_nowhere(target: Service) -> None:
    """S12."""
    canary = "canary-7f3a9c"
    headers = {"authorization": f"Bearer {canary}"}
    httpx.post(target.url + CHAT, json=ask(MODEL, canary), headers=headers)
    httpx.post(target.url + CHAT, content=f'{{"model": "{canary}'.encode(), headers=headers)
    assert canary not in target.log()
    assert canary not in httpx.get(target.url + "/metrics").text
    for path in (target.folder / "data").rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path
