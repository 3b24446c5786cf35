"""Raw sockets against the real service. PROMISES H1, H2, H3, H4."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.hostile.corpus import BODIES, DISGUISED, FRAMING, GOOD_BODY, mutations, post
from tests.hostile.edge import CUT_WITHIN_S, Reply, reply
from tests.stub import Service, ask, model_table, service, until

MODEL = "acme/echo"
CHAT = "/v1/chat/completions"
SEED = 20261121
SLOW = bool(os.environ.get("CI"))
HANG_S = 2.5
"""The deadline of `LIMITS`, half a second to the sweep, and the second that PROMISES allows."""
QUIET_S = 0.2
"""When nothing follows for so long, an answer is taken for the last."""
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


def connect(running: Service) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def exchange(running: Service, data: bytes, silence_s: float = CUT_WITHIN_S) -> Reply:
    """Send bytes and read until the server closes, or is silent for so long."""
    connection = connect(running)
    connection.sendall(data)
    return reply(connection, silence_s)


def statuses(answer: bytes) -> list[int]:
    """The status codes of all responses in a stream of bytes."""
    return Reply(answer, ended=False, seconds=0).statuses


def good(running: Service) -> bool:
    return httpx.post(running.url + CHAT, json=ask(MODEL), timeout=5).status_code == 200


def forwarded(running: Service) -> list[str]:
    lines = (running.folder / "record.jsonl").read_text().splitlines()
    return [json.loads(line)["path"] for line in lines]


@pytest.mark.parametrize("name", FRAMING)
def test_framing_gets_one_answer_and_the_connection_ends(target: Service, name: str) -> None:
    """H3."""
    told = exchange(target, FRAMING[name])
    assert len(told.statuses) == 1, name
    assert 400 <= told.statuses[0] < 500, name
    assert told.ended, name
    assert told.seconds < 0.9, "at once, not at some deadline"
    assert not [path for path in forwarded(target) if "pause" in path]
    assert good(target)


@pytest.mark.parametrize("name", DISGUISED)
def test_a_request_within_a_body_stays_there(target: Service, name: str) -> None:
    """H3: sent in two segments, so that the parser meets the body anew. The app answers, for the body is no JSON."""
    head, _, body = DISGUISED[name].partition(b"\r\n\r\n")
    connection = connect(target)
    connection.sendall(head + b"\r\n\r\n")
    connection.sendall(body)
    told = reply(connection)
    assert told.statuses == [400], name
    assert not [path for path in forwarded(target) if "pause" in path]


@pytest.mark.parametrize("name", BODIES)
def test_bad_bodies_are_400(target: Service, name: str) -> None:
    answer = httpx.post(target.url + CHAT, content=BODIES[name])
    assert answer.status_code == 400, name
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


async def _one(running: Service, data: bytes) -> tuple[list[int], float]:
    """The statuses that these bytes get, and the seconds to the first byte or the end; fails if neither comes."""
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    began, received = time.monotonic(), b""
    try:
        writer.write(data)
        received = await asyncio.wait_for(reader.read(65536), HANG_S)
        first_s = time.monotonic() - began
        while part := await asyncio.wait_for(reader.read(65536), QUIET_S):
            received += part
    except ConnectionError:
        first_s = time.monotonic() - began
    except TimeoutError:
        first_s = time.monotonic() - began if not received else first_s
    finally:
        writer.close()
    return statuses(received), first_s


async def _all(running: Service, count: int) -> list[tuple[list[int], float]]:
    gate = asyncio.Semaphore(100)

    async def one(data: bytes) -> tuple[list[int], float]:
        async with gate:
            return await _one(running, data)

    return await asyncio.gather(*(one(data + b"\r\n\r\n") for data in mutations(SEED, count)))


def _fuzz(running: Service, count: int) -> dict[str, float]:
    process = psutil.Process(running.process.pid)
    before = process.memory_info().rss
    found = asyncio.run(_all(running, count))
    codes = Counter(code for answers, _ in found for code in answers)
    figures = {
        "requests": count,
        "seed": SEED,
        "answers": sum(codes.values()),
        "slow_and_cut": codes[408],
        "server_errors": sum(number for code, number in codes.items() if code >= 500),
        "slowest_s": round(max(seconds for _, seconds in found), 3),
        "rss_growth_mb": round((process.memory_info().rss - before) / 1e6, 1),
    }
    print(json.dumps(figures))
    return figures


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_mutations_do_no_harm(target: Service, count: int) -> None:
    """H1. A request that is not whole is cut at its deadline of a second; to hang is to be silent after that."""
    figures = _fuzz(target, count)
    assert figures["server_errors"] == 0
    assert figures["answers"] > count / 2
    assert figures["slowest_s"] < HANG_S
    assert figures["rss_growth_mb"] < 20
    assert "Traceback" not in target.log()
    assert good(target)


@pytest.mark.slow
def test_slow_senders_are_cut_and_good_ones_served(target: Service) -> None:
    """H2, with deadlines of a second."""
    begun = [b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nx: ", b"", post(b"x" * 1000)[:-990]]
    began = time.monotonic()
    slow = [connect(target) for _ in range(500)]
    for index, connection in enumerate(slow):
        connection.sendall(begun[index % len(begun)])
    seconds = []
    with httpx.Client(base_url=target.url) as client:
        while time.monotonic() < began + 3:  # before, while and after the slow ones are cut
            asked_at = time.monotonic()
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200
            seconds.append(time.monotonic() - asked_at)
    p99_s = statistics.quantiles(seconds, n=100)[98]
    replies = [reply(connection, 0.5) for connection in slow]
    figures = {"slow": len(slow), "good": len(seconds), "good_p99_ms": round(p99_s * 1000, 1)}
    print(json.dumps({**figures, "cut": sum(told.statuses == [408] and told.ended for told in replies)}))
    assert all(told.statuses == [408] and told.ended for told in replies)
    assert p99_s < 0.1


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
    assert [p for p in sorted((target.folder / "data").rglob("*")) if not p.name.startswith("catalog")] == [
        p for p in files if not p.name.startswith("catalog")
    ]


def test_connections_are_capped(target: Service) -> None:
    held = [connect(target) for _ in range(600)]
    told = until(lambda: (found := exchange(target, b"")).statuses == [503] and found)
    assert told.error()["code"] == "too_many_connections"
    for connection in held:
        connection.close()
    until(lambda: good(target))


def test_too_large_is_refused_before_it_is_read(target: Service) -> None:
    """H4, detail 15: no 100 Continue for what will not be taken."""
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 20000000000\r\n\r\n"
    )
    assert exchange(target, head).statuses == [413]

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    answer = httpx.post(target.url + CHAT, content=chunks())
    assert answer.status_code == 413


@pytest.mark.slow
def test_long_upload_at_a_good_rate_passes(target: Service) -> None:
    """Longer than the deadline, faster than the least rate."""
    data, began = post(GOOD_BODY + b" " * 60_000, b"connection: close"), time.monotonic()
    connection = connect(target)
    for number, start in enumerate(range(0, len(data), 6000)):
        connection.sendall(data[start : start + 6000])
        time.sleep(max(0, began + number * 0.2 - time.monotonic()))
    assert reply(connection).statuses == [200]
    assert time.monotonic() - began > 2


def test_pipelined_requests_are_answered_in_order(target: Service) -> None:
    two = post(GOOD_BODY) + post(GOOD_BODY, b"connection: close")
    assert exchange(target, two).statuses == [200, 200]


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
