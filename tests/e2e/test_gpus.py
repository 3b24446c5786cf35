"""GPUs as users see them: a real service, stub engines, and a stub of the driver's library."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.nvml.library import H100, MIB, StubNvml, gpu, mig, slice_uuid, uuid
from tests.stub import WAIT_S, Service, ask, model_table, service, until

CHAT = "/v1/chat/completions"
HOLD = {"prefer": "wait=25"}
TURNS = "[defaults]\nresidency_min_s = 0.5\nturn_max_s = 600\nidle_timeout_s = 600\n"
USABLE = (81_559 - 559) * MIB


@contextmanager
def on_gpus(
    folder: Path, lines: tuple[str, ...], *tables: str, head: str = TURNS
) -> Iterator[tuple[Service, StubNvml]]:
    """A service on a machine with these GPUs."""
    nvml = StubNvml(folder)
    nvml.write(*lines)
    with service(folder, *tables, head=head, **nvml.env(), CUDA_VISIBLE_DEVICES="0,1") as running:
        yield running, nvml


@contextmanager
def on_two(folder: Path, *tables: str, head: str = TURNS) -> Iterator[Service]:
    with on_gpus(folder, (gpu(0), gpu(1)), *tables, head=head) as (running, _):
        yield running


def one_gpu(name: str, *options: str, **settings: Any) -> str:
    return model_table(name, *options, gpus=1, **settings)


def serve(running: Service, name: str) -> None:
    """Have it answer once, however long it takes."""
    with running.client() as client:
        answer = client.post(CHAT, json=ask(name), headers=HOLD)
        assert answer.status_code == 200, answer.text


def gpus(running: Service) -> list[dict[str, Any]]:
    with running.client() as client:
        found: list[dict[str, Any]] = client.get("/api/gpus").json()["data"]
    return found


def holders(running: Service) -> dict[str, str]:
    """Model to the GPU that it holds; each holds one."""
    return {holder["model"]: one["uuid"] for one in gpus(running) for holder in one["holders"]}


def visible(running: Service) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each engine."""
    return [psutil.Process(pid).environ().get("CUDA_VISIBLE_DEVICES") for pid in running.engines()]


def refused(running: Service, name: str) -> httpx.Response:
    with running.client() as client:
        return client.post(CHAT, json=ask(name))


def queued(running: Service, name: str, place: int = 1) -> bool:
    ordinal = {1: "1st", 2: "2nd"}[place]
    view = running.model(name)
    return bool(view["phase"] == "queued" and f"waiting for a GPU, {ordinal} in line" in view["note"])


def test_each_engine_sees_its_own_gpu_only(tmp_path: Path) -> None:
    with on_two(tmp_path, one_gpu("a"), one_gpu("b"), model_table("cpu", gpus=0)) as running:
        for name in ("a", "b", "cpu"):
            serve(running, name)
        assert sorted(str(seen) for seen in visible(running)) == ["", uuid(0), uuid(1)]
        assert sorted(holders(running).values()) == [uuid(0), uuid(1)]
        assert sorted(holders(running)) == ["a", "b"]


def test_gpus_are_shown_with_their_holders(tmp_path: Path) -> None:
    with on_gpus(tmp_path, (gpu(0, used_mib=1000), gpu(1, ecc=2)), one_gpu("a")) as (running, _):
        serve(running, "a")
        well, sick = gpus(running)
        (holder,) = well.pop("holders")
        assert {key: holder[key] for key in ("model", "phase")} == {"model": "a", "phase": "ready"}
        assert 0 < holder["bytes"] <= USABLE - 1000 * MIB
        used = {"memory_bytes": USABLE, "free_bytes": USABLE - 1000 * MIB, "foreign_bytes": 1000 * MIB}
        facts = {"uuid": uuid(0), "index": 0, "name": H100, "host": "", "mig": False, "healthy": True, "fault": ""}
        assert well == {**facts, **used}
        assert (sick["uuid"], sick["healthy"], sick["holders"]) == (uuid(1), False, [])
        assert sick["fault"]


@pytest.mark.slow
def test_ps_tells_the_gpus(tmp_path: Path) -> None:
    with on_two(tmp_path, one_gpu("a")) as running:
        serve(running, "a")
        argv = (sys.executable, "-m", "orchestrator", "ps", "--url", running.url)
        shown = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
        heading, row = (line.split() for line in shown.splitlines()[:2])
        assert row[heading.index("GPUS")] == "0"


@pytest.mark.slow
def test_the_third_waits_in_line_and_then_takes_the_place_of_the_least_recently_used(tmp_path: Path) -> None:
    patient = TURNS.replace("residency_min_s = 0.5", "residency_min_s = 4")
    with on_two(tmp_path, one_gpu("a"), one_gpu("b"), one_gpu("c"), head=patient) as running:
        serve(running, "a")
        serve(running, "b")
        until(lambda: refused(running, "c").json()["error"]["code"] == "no_capacity", timeout_s=3)
        answer = refused(running, "c")
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "c is waiting for a GPU, 1st in line"
        assert answer.json()["status"]["phase"] == "queued"
        assert 1 <= int(answer.headers["retry-after"]) <= 4 + 3 + 5 + 1
        assert sorted(holders(running)) == ["a", "b"]
        serve(running, "c")
        assert sorted(holders(running)) == ["b", "c"]
        assert running.phase("a") == "cold"


@pytest.mark.slow
def test_a_higher_priority_does_not_wait(tmp_path: Path) -> None:
    long = TURNS.replace("residency_min_s = 0.5", "residency_min_s = 600")
    with on_gpus(tmp_path, (gpu(0),), one_gpu("a"), one_gpu("b", priority=1), head=long) as (running, _):
        serve(running, "a")
        serve(running, "b")
        assert holders(running) == {"b": uuid(0)}
        refused(running, "a")
        until(lambda: queued(running, "a"))


@pytest.mark.slow
def test_requests_in_flight_are_finished_before_an_engine_makes_room(tmp_path: Path) -> None:
    """Even for a higher priority, and beyond the drain limit."""
    tables = (one_gpu("a", "--tokens", "8", drain_timeout_s=0.2), one_gpu("b", priority=1))
    with on_gpus(tmp_path, (gpu(0),), *tables) as (running, _):
        serve(running, "a")
        streams: list[bytes] = []

        def read() -> None:
            body = ask("a", stream=True, user="slow:0.3")
            with running.client() as client, client.stream("POST", CHAT, json=body) as answer:
                streams.append(b"".join(answer.iter_bytes()))

        thread = threading.Thread(target=read)
        thread.start()
        until(lambda: running.model("a")["in_flight"] == 1)
        serve(running, "b")
        thread.join(WAIT_S)
        assert b"[DONE]" in streams[0]
        assert holders(running) == {"b": uuid(0)}


@pytest.mark.slow
def test_a_busy_model_is_not_sent_away_by_its_equal(tmp_path: Path) -> None:
    with on_gpus(tmp_path, (gpu(0),), one_gpu("a"), one_gpu("b")) as (running, _):
        serve(running, "a")
        slow = ask("a", user="slow:3")
        thread = threading.Thread(target=lambda: httpx.post(running.url + CHAT, json=slow, timeout=WAIT_S))
        thread.start()
        until(lambda: running.model("a")["in_flight"] == 1)
        refused(running, "b")
        until(lambda: queued(running, "b"))
        assert running.phase("a") == "ready"
        thread.join(WAIT_S)
        until(lambda: running.phase("b") == "ready")


def test_what_never_fits_is_refused_at_once(tmp_path: Path) -> None:
    with on_two(tmp_path, model_table("big", gpus=4)) as running:
        answer = until(lambda: (a := refused(running, "big")).status_code == 400 and a)
        error = answer.json()["error"]
        assert error["code"] == "model_too_large"
        assert error["message"] == (
            "big does not fit on these GPUs: it needs 4 GPUs of one size on one host; there are 2 GPUs: 2 of 84.4 GB"
        )
        assert running.engines() == []


@pytest.mark.slow
def test_mig_slices_are_leased_by_their_uuid(tmp_path: Path) -> None:
    lines = (gpu(0, mig="on"), mig(0, 0), mig(0, 1))
    with on_gpus(tmp_path, lines, one_gpu("a"), one_gpu("b"), model_table("two", gpus=2)) as (running, _):
        serve(running, "a")
        serve(running, "b")
        assert sorted(str(seen) for seen in visible(running)) == [slice_uuid(0, 0), slice_uuid(0, 1)]
        assert "MIG" in refused(running, "two").json()["error"]["message"]


@pytest.mark.slow
def test_memory_that_others_use_is_not_leased_while_they_do(tmp_path: Path) -> None:
    with on_gpus(tmp_path, (gpu(0, used_mib=60_000), gpu(1)), one_gpu("a"), one_gpu("b")) as (running, nvml):
        serve(running, "a")
        assert holders(running) == {"a": uuid(1)}
        nvml.write(gpu(0, used_mib=70_000), gpu(1))
        until(lambda: gpus(running)[0]["foreign_bytes"] == 70_000 * MIB)
        nvml.write(gpu(0), gpu(1))
        serve(running, "b")
        assert holders(running) == {"a": uuid(1), "b": uuid(0)}


@pytest.mark.slow
def test_memory_that_is_given_back_late_is_not_taken_for_anothers(tmp_path: Path) -> None:
    """The third model keeps its place though the GPU that the first has left still looks full."""
    with on_gpus(tmp_path, (gpu(0), gpu(1)), one_gpu("a"), one_gpu("b"), one_gpu("c")) as (running, nvml):
        serve(running, "a")
        serve(running, "b")
        nvml.write(gpu(0, used_mib=70_000), gpu(1, used_mib=70_000))
        until(lambda: all(one["free_bytes"] < USABLE / 2 for one in gpus(running)))
        serve(running, "c")
        assert holders(running) == {"b": uuid(1), "c": uuid(0)}


@pytest.mark.slow
def test_a_gpu_that_is_lost(tmp_path: Path) -> None:
    """An engine on it serves while it can; its next start, and everybody else's, is on another."""
    with on_gpus(tmp_path, (gpu(0), gpu(1)), one_gpu("a")) as (running, nvml):
        serve(running, "a")
        (pid,) = running.engines()
        nvml.write(gpu(0), gpu(1), f"fail * 15 {uuid(0)}")
        until(lambda: not gpus(running)[0]["healthy"])
        assert "fallen off the bus" in gpus(running)[0]["fault"]
        assert holders(running) == {"a": uuid(0)}
        serve(running, "a")
        psutil.Process(pid).kill()
        until(lambda: not running.engines())
        until(lambda: refused(running, "a").status_code == 200)
        assert holders(running) == {"a": uuid(1)}


@pytest.mark.slow
def test_leases_outlive_a_kill(tmp_path: Path) -> None:
    with on_two(tmp_path, one_gpu("a"), one_gpu("b"), one_gpu("c")) as running:
        serve(running, "a")
        serve(running, "b")
        before, engines = holders(running), running.engines()
        running.process.kill()
        running.process.wait(WAIT_S)
        running.restart(ORCHESTRATOR_DEFAULTS__RESIDENCY_MIN_S="600")
        refused(running, "c")
        until(lambda: queued(running, "c"))
        assert holders(running) == before
        assert running.engines() == engines
