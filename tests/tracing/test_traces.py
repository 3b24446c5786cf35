"""Traces as a collector gets them, from the real service over stub engines."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.metering.helpers import ADMIN, client, entry, stream, write_keys
from tests.stub import Service, ask, model_table, posted, service, until
from tests.tracing.collector import Collector, Seen, collector

CHAT = "/v1/chat/completions"
ON = "[tracing]\nenabled = true\n"
CANARY = "tell-nobody-of-this-prompt"
SERVER, CLIENT = 2, 3


def environ(url: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Collector]]:
    folder = tmp_path_factory.mktemp("traces")
    write_keys(folder, entry("a"))
    tables = (
        model_table("warm", "--record", str(folder / "warm"), min_replicas=1),
        model_table("cold", "--start-s", "0.5", "--record", str(folder / "cold")),
        model_table("broken", "--fail-after-s", "0.1"),
        model_table("narrow", min_replicas=1, max_concurrent=1),
    )
    with collector() as found, service(folder, *tables, head=ON, **environ(found.url)) as running:
        with client(running) as operator:
            until(lambda: operator.get("/api/models/warm").json()["phase"] == "ready")
            until(lambda: operator.get("/api/models/narrow").json()["phase"] == "ready")
        post(running, "warm", f"{99:032x}")  # from now on a connection to it is idle, so small requests go by express
        yield running, found


def post(running: Service, model: str, trace: str, *, flags: str = "01", **more: Any) -> httpx.Response:
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-{flags}", "prefer": "wait=20", "tracestate": "vendor=1"}
    with client(running, "a") as caller:
        return caller.post(CHAT, json=ask(model, CANARY, **more), headers=headers)


def names(trace: list[Seen]) -> list[str]:
    return [span.name for span in trace]


def one(trace: list[Seen], name: str) -> Seen:
    (found,) = (span for span in trace if span.name == name)
    return found


def is_sane(trace: list[Seen]) -> None:
    """Each span lies within its parent, and the root ended just now."""
    by_id = {span.span_id: span for span in trace}
    assert len(by_id) == len(trace)
    root = trace[0]
    assert root.parent_id not in by_id
    assert abs(root.end_ns / 1e9 - time.time()) < 60
    for span in trace[1:]:
        parent = by_id[span.parent_id]
        assert parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns, (span, parent)


def passed_on(running: Service, model: str, trace: str) -> dict[str, str]:
    """The header fields that the engine got with a request."""
    found: dict[str, str] = until(
        lambda: [
            line["headers"] for line in posted(running.folder / model, 1) if trace in line["headers"]["traceparent"]
        ]
    )[0]
    return found


WARM = ["POST /v1/chat/completions", "auth", "route", "proxy", "engine", "first byte", "stream"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_warm_request(traced: tuple[Service, Collector], streamed: bool) -> None:
    running, found = traced
    trace_id = f"{1 + streamed:032x}"
    assert post(running, "warm", trace_id, stream=streamed).status_code == 200
    trace = found.trace(trace_id)
    assert names(trace) == WARM
    is_sane(trace)
    root, engine = trace[0], one(trace, "engine")
    assert (root.kind, engine.kind) == (SERVER, CLIENT)
    assert root.parent_id == "00f067aa0ba902b7"
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["orchestrator.key"] == "a"
    assert root.resource["service.name"] == "orchestrator"
    assert engine.attributes["gen_ai.operation.name"] == "chat"
    assert engine.attributes["gen_ai.request.model"] == "warm"
    assert engine.attributes["gen_ai.usage.input_tokens"] == 7
    assert engine.attributes["gen_ai.usage.output_tokens"] == 5
    assert ("gen_ai.response.time_to_first_chunk" in engine.attributes) is streamed
    got = passed_on(running, "warm", trace_id)
    assert got["traceparent"] == f"00-{trace_id}-{engine.span_id}-01"
    assert got["tracestate"] == "vendor=1"


def test_a_large_request_goes_the_other_way_and_is_traced_alike(traced: tuple[Service, Collector]) -> None:
    running, found = traced
    trace_id = f"{3:032x}"
    assert post(running, "warm", trace_id, pad="x" * 50_000).status_code == 200
    trace = found.trace(trace_id)
    assert names(trace) == WARM
    is_sane(trace)
    assert passed_on(running, "warm", trace_id)["traceparent"] == f"00-{trace_id}-{one(trace, 'engine').span_id}-01"


def test_a_cold_start_in_one_trace(traced: tuple[Service, Collector]) -> None:
    running, found = traced
    trace_id = f"{4:032x}"
    assert post(running, "cold", trace_id).status_code == 200
    trace = found.trace(trace_id)
    is_sane(trace)
    assert names(trace)[:4] == ["POST /v1/chat/completions", "auth", "route", "hold"]
    assert names(trace)[-4:] == ["proxy", "engine", "first byte", "stream"]
    phases = trace[4:-4]
    assert "starting" in names(phases)
    assert {span.parent_id for span in phases} == {one(trace, "hold").span_id}
    assert [span.start_ns for span in phases] == sorted(span.start_ns for span in phases)
    assert one(trace, "starting").seconds > 0.4
    assert one(trace, "hold").end_ns <= one(trace, "proxy").start_ns
    assert trace[0].attributes["orchestrator.cold"] is True
    ((start_trace, start_span),) = one(trace, "hold").links
    start = found.trace(start_trace)
    assert (start[0].name, start[0].span_id) == ("start", start_span)
    assert start[0].attributes["orchestrator.outcome"] == "ready"
    assert names(start)[1:] == names(phases)
    is_sane(start)


def test_whoever_waits_for_one_start_names_it_alike(traced: tuple[Service, Collector]) -> None:
    running, found = traced
    ids = [f"{n:032x}" for n in (5, 6)]
    for trace_id in ids:
        assert post(running, "broken", trace_id).status_code == 503
    first, second = (found.trace(trace_id) for trace_id in ids)
    assert first[0].failed
    assert first[0].attributes["orchestrator.outcome"] == "refused"
    assert "proxy" not in names(first) + names(second)
    ((start_trace, _),) = one(first, "hold").links
    start = found.trace(start_trace)
    assert start[0].failed
    assert start[0].attributes["orchestrator.outcome"] == "failed"


def test_a_wait_at_a_model_s_limit_is_a_hold_without_a_start(traced: tuple[Service, Collector]) -> None:
    running, found = traced
    trace_id = f"{7:032x}"
    with stream(running, "a", ask("narrow", user="slow:0.1", stream=True), 1):
        assert post(running, "narrow", trace_id).status_code == 200
    trace = found.trace(trace_id)
    assert names(trace) == [*WARM[:3], "hold", *WARM[3:]]
    assert one(trace, "hold").links == ()
    assert trace[0].attributes["orchestrator.cold"] is False


def test_a_client_that_leaves(traced: tuple[Service, Collector]) -> None:
    running, found = traced
    before = len(found.spans)
    with stream(running, "a", ask("warm", user="slow:0.2", stream=True), 2):
        pass
    cut = until(lambda: [s for s in found.spans[before:] if s.attributes.get("orchestrator.outcome") == "cancelled"])[0]
    trace = found.trace(cut.trace_id)
    assert names(trace) == WARM
    assert (trace[0].failed, trace[0].parent_id) == (False, "")
    assert one(trace, "engine").attributes["gen_ai.usage.output_tokens"] == 2
    is_sane(trace)


@pytest.mark.parametrize(("fault", "status"), [("cut", 200), ("huge-header", 502), ("status-500", 500)])
def test_an_engine_that_fails(traced: tuple[Service, Collector], fault: str, status: int) -> None:
    running, found = traced
    trace_id = f"{16 + status:032x}"
    with pytest.raises(httpx.RemoteProtocolError) if status == 200 else contextlib.nullcontext():
        assert post(running, "warm", trace_id, stream=True, user=fault).status_code == status
    trace = found.trace(trace_id)
    assert trace[0].failed
    assert one(trace, "engine").failed
    assert trace[0].attributes["error.type"] == "error"
    is_sane(trace)


def test_who_is_not_sampled_is_not_traced_but_passed_on(traced: tuple[Service, Collector]) -> None:
    running, found = traced
    quiet, loud = f"{8:032x}", f"{9:032x}"
    assert post(running, "warm", quiet, flags="00").status_code == 200
    got = passed_on(running, "warm", quiet)["traceparent"]
    assert got.startswith(f"00-{quiet}-")
    assert got.endswith("-00")
    assert "00f067aa0ba902b7" not in got
    post(running, "warm", loud)
    found.trace(loud)
    assert quiet not in {span.trace_id for span in found.spans}


def test_nothing_of_a_request_s_content_or_its_key_is_exported(traced: tuple[Service, Collector]) -> None:
    running, found = traced
    trace_id = f"{10:032x}"
    with client(running, "a") as caller:
        headers = {"traceparent": f"00-{trace_id}-{1:016x}-01", "x-canary": CANARY}
        caller.post(f"{CHAT}?q={CANARY}", json=ask("warm", CANARY), headers=headers)
        caller.post(CHAT, json=ask("broken", CANARY), headers=headers)
        caller.post(CHAT, json=ask(CANARY, CANARY), headers=headers)
    with client(running) as operator:
        operator.post(CHAT, json=ask("warm", CANARY), headers={"traceparent": f"00-{10:032x}-{2:016x}-01"})
    until(lambda: [span for span in tuple(found.spans) if span.attributes.get("orchestrator.key") == "operator"])
    found.trace(trace_id)
    everything = b"".join(found.raw)
    assert CANARY.encode() not in everything
    assert b"Paris" not in everything
    assert b"Bearer" not in everything
    assert ADMIN.encode() not in everything


def test_counts_are_at_metrics(traced: tuple[Service, Collector]) -> None:
    running, _ = traced
    with client(running) as operator:
        text = operator.get("/metrics").text
    assert 'orchestrator_trace_spans_total{outcome="dropped"} 0.0' in text


def test_the_environment_names_the_service_and_the_way(tmp_path: Path) -> None:
    with collector() as found:
        more = {"OTEL_SERVICE_NAME": "llms", "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=blue"}
        with service(tmp_path, model_table("m"), head=ON, **environ(found.url), **more) as running:
            httpx.post(running.url + CHAT, json=ask("m"))
            (root,) = found.roots("POST /v1/chat/completions")
            assert running.end() == 0
    assert root.resource["service.name"] == "llms"
    assert found.headers[0]["x-tenant"] == "blue"


def test_the_last_traces_are_sent_at_the_end(tmp_path: Path) -> None:
    with collector() as found:
        late = {**environ(found.url), "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        with service(tmp_path, model_table("m"), head=ON, **late) as running:
            assert httpx.post(running.url + CHAT, json=ask("m")).status_code == 503
            assert running.end() == 0
        assert found.roots("POST /v1/chat/completions")


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True])
def test_without_a_collector_requests_go_on_and_the_end_is_not_held_up(tmp_path: Path, silent: bool) -> None:
    with collector(silent=True) as found, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = found.url if silent else f"http://127.0.0.1:{nobody.getsockname()[1]}"
        few = {**environ(url), "OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16"}
        table = model_table("m", min_replicas=1)
        with service(tmp_path, table, head=ON, **few) as running, running.client() as caller:
            until(lambda: running.phase("m") == "ready")
            slowest = 0.0
            for _ in range(100):
                began = time.monotonic()
                assert caller.post(CHAT, json=ask("m")).status_code == 200
                slowest = max(slowest, time.monotonic() - began)
            assert slowest < 1
            line = 'orchestrator_trace_spans_total{outcome="dropped"} '
            assert float(caller.get("/metrics").text.partition(line)[2].split("\n")[0]) > 0
            began = time.monotonic()
            assert running.end() == 0
            assert time.monotonic() - began < 8
        assert running.log().count("traces_not_sent") <= 1


@pytest.mark.slow
def test_what_a_silent_collector_never_took_is_counted_at_the_end(tmp_path: Path) -> None:
    """The batch on its way, too: here it is all there is."""
    with collector(silent=True) as found:
        late = {**environ(found.url), "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        with service(tmp_path, model_table("m"), head=ON, **late) as running:
            assert httpx.post(running.url + CHAT, json=ask("m")).status_code == 503
            assert running.end() == 0
        (left,) = (line for line in running.log().splitlines() if "traces_left_behind" in line)
        assert json.loads(left)["spans"] == len(found.spans) > 0


def test_without_the_extra_the_start_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.toml").write_text(ON)
    hidden = "import sys; sys.modules['opentelemetry'] = None; from orchestrator.cli import main; main()"
    argv = (sys.executable, "-c", hidden, "serve", "--port", "0")
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "pip install 'orchestrator[otel]'" in done.stderr


def test_off_it_loads_nothing_and_passes_the_client_s_context(tmp_path: Path) -> None:
    code = "import sys, orchestrator.app; print(json.dumps(sorted(m for m in sys.modules if 'opentelemetry' in m)))"
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    record = tmp_path / "record"
    with service(tmp_path, model_table("m", "--record", str(record))) as running:
        headers = {"traceparent": f"00-{11:032x}-{1:016x}-01", "prefer": "wait=20"}
        httpx.post(running.url + CHAT, json=ask("m"), headers=headers, timeout=30)
    assert posted(record, 1)[0]["headers"]["traceparent"] == headers["traceparent"]
