"""What `top` shows, as text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model import Phase
from tests.tui.doubles import gpu, model, replica, server
from ui.tui import tables
from ui.tui.snapshot import Counts, Snapshot
from ui.tui.tables import MARKS, arranged, name_chars, seconds, shortened, summary

FIRST = Snapshot(at=1.0, models=(model("a/cold"), model("b/ready", phase="ready", in_flight=2, held=1)))


def cells(table: tables.Table, row: int = 0) -> dict[str, str]:
    return dict(zip(table.headings, (cell.text for cell in table.rows[row].cells), strict=True))


def test_every_phase_has_a_mark_of_its_own() -> None:
    assert set(MARKS) == {phase.value for phase in Phase}
    assert len(set(MARKS.values())) == len(MARKS)


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, ""),
        ({"eta_s": 16.4}, "ready in 16 s"),
        ({"stops_in_s": 250.0}, "stops in 4 min"),
        ({"sleeps_in_s": 9.0, "stops_in_s": 250.0}, "sleeps in 9 s"),
        ({"retry_s": 7200.0}, "retry in 2 h"),
        ({"pinned": True}, "pinned"),
    ],
)
def test_what_comes_next(fields: dict[str, Any], shown: str) -> None:
    assert cells(tables.models(Snapshot(at=0.0, models=(model(**fields),)), 20))["NEXT"] == shown


def test_a_model_on_its_way() -> None:
    loading = model(phase="loading", progress=0.43, replicas=[replica("r", gpus=["GPU-0"])], held=3)
    table = tables.models(Snapshot(at=0.0, models=(loading,), gpus=(gpu(),)), 20)
    shown = {"MODEL": "acme/echo", "PHASE": "◑ loading 43%", "GPUS": "0", "REQS": "0 +3", "NEXT": ""}
    assert cells(table) == shown


def test_a_gpu_shows_what_is_used_beside_what_is_leased() -> None:
    holders = [{"model": "acme/echo", "replica": "r", "bytes": 70 * 2**30, "phase": "ready"}]
    found = cells(tables.gpus(Snapshot(at=0.0, gpus=(gpu(free_bytes=35 * 2**30, holders=holders),)), 20))
    assert found["USED"] == "████░░"
    assert (found["GiB"], found["LEASED"], found["HELD BY"]) == ("105/140", "70.0", "acme/echo")


@pytest.mark.parametrize(
    ("fields", "shown", "detail"),
    [
        ({}, "● closed", "0 in flight"),
        ({"in_rotation": False}, "◌ draining", "0 in flight"),
        ({"breaker": "half_open", "fault": "errors", "retry_s": 0.0}, "◑ half-open", "errors"),
        (
            {"breaker": "open", "fault": "slow", "retry_s": 4.0, "failures": 2, "in_rotation": False},
            "✗ open",
            "2 failures · out for 4 s: slow",
        ),
    ],
)
def test_a_server_shows_its_breaker(fields: dict[str, Any], shown: str, detail: str) -> None:
    table = tables.servers(Snapshot(at=0.0, servers=(server("r1", **fields),)), 20)
    assert cells(table)["BREAKER"] == shown
    assert detail in table.rows[0].detail


def test_what_a_server_does_not_tell_is_no_zero() -> None:
    silent = server("r1", running=None, waiting=None, cache_use=None)
    table = tables.servers(Snapshot(at=0.0, servers=(silent, server("r2", load=1.5, cache_use=0.25))), 20)
    assert [cells(table)[name] for name in ("RUN", "WAIT", "KV")] == ["–"] * 3
    assert [cells(table, 1)[name] for name in ("LOAD", "RUN", "KV")] == ["1.50", "0", "25%"]
    assert [row.key for row in arranged(table, wanted="", column=4, descending=False)] == [
        "acme/echo r1",
        "acme/echo r2",
    ]


def test_rates_come_from_two_looks_and_a_restart_is_no_rate() -> None:
    before = Snapshot(at=10.0, models=FIRST.models, counts={"b/ready": Counts(ok=10, tokens=100)})
    now = Snapshot(at=12.0, models=FIRST.models, counts={"b/ready": Counts(ok=13, failed=1, tokens=180)})
    found = cells(tables.requests(now.since(before), 20), 1)
    assert (found["REQ/S"], found["TOK/S"], found["OK"], found["ERR"]) == ("2.0", "40", "13", "1")
    assert cells(tables.requests(before.since(now), 20), 1)["REQ/S"] == "0.0"
    assert summary(now.since(before)) == "1/2 ready · 2 in flight · 1 held · 2.0 req/s"


def test_an_event_replaces_its_model_and_no_other() -> None:
    later = FIRST.with_model(model("a/cold", phase="starting")).with_model(model("c/new"))
    assert [(view["id"], view["phase"]) for view in later.models] == [
        ("a/cold", "starting"),
        ("b/ready", "ready"),
        ("c/new", "cold"),
    ]


def test_filter_and_sort() -> None:
    table = tables.models(FIRST, 20)
    assert [row.key for row in arranged(table, wanted="READY", column=0, descending=False)] == ["b/ready"]
    assert [row.key for row in arranged(table, wanted="", column=3, descending=True)] == ["b/ready", "a/cold"]


@given(st.text(max_size=200), st.integers(min_value=3, max_value=80))
def test_a_shortened_name_fits_and_obeys_nothing(name: str, chars: int) -> None:
    found = shortened(name, chars)
    assert len(found) <= chars
    assert "\x1b" not in found and "\n" not in found


@given(st.floats(min_value=0, max_value=1e9))
def test_a_length_of_time_is_short(value: float) -> None:
    assert len(seconds(value)) <= 7


@pytest.mark.parametrize("view", tables.VIEWS)
def test_a_view_fits_80_columns(view: str) -> None:
    """With the longest words that a cell may hold."""
    name, chars = "x" * 200, name_chars(view, 80)
    long = [replica(name, name, phase="sleeping", gpus=["GPU-0"], age_s=5000.0, in_flight=9999)]
    holders = [{"model": name, "replica": name, "bytes": 140 * 2**30, "phase": "ready"}]
    full = model(name, phase="starting", progress=1.0, in_flight=999, held=999, replicas=long, sleeps_in_s=99.0)
    counts = {name: Counts(ok=99999, failed=999, cancelled=999, refused=9999)}
    gpus = (gpu(free_bytes=0, foreign_bytes=140 * 2**30, holders=holders),)
    loaded = {"load": 99.994, "running": 9999, "waiting": 9999, "cache_use": 1.0, "breaker": "half_open"}
    seen = Snapshot(at=0.0, models=(full,), gpus=gpus, servers=(server(name, name, **loaded),), counts=counts)
    table = tables.VIEWS[view](seen, chars)
    widths = [
        max(len(h) + 2 * (not i), len(c.text))
        for i, (h, c) in enumerate(zip(table.headings, table.rows[0].cells, strict=True))
    ]
    assert sum(widths) + 2 * len(widths) <= 80, widths
