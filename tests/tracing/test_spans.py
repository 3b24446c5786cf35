"""Spans of requests and starts, from their times."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from orchestrator.metering.tap import Tokens
from orchestrator.model import Phase, StartRecord, Track
from orchestrator.tracing.context import Context, start_context
from orchestrator.tracing.spans import Ended, Hold, Span, Visit, phases_of, request_spans, start_spans

READY = Track(
    phase=Phase.READY,
    phase_at=19.0,
    start_at=10.0,
    seconds=((Phase.PULLING, 4.0), (Phase.STARTING, 3.0), (Phase.LOADING, 2.0)),
)
FIRST = Visit(replica="r1", began_at=20.0, ended_at=20.5, first_byte_at=None)
GOOD = Visit(replica="r2", began_at=21.0, ended_at=24.0, first_byte_at=22.0, status=200)


def spans(**more: Any) -> tuple[Span, ...]:
    base: dict[str, Any] = {
        "root": Context(1, 2),
        "parent": None,
        "engine": Context(1, 3),
        "path": "/v1/chat/completions",
        "model": "m",
        "provider": "vllm",
        "key": "ci",
        "stream": True,
        "cold": False,
        "arrived_at": 9.0,
        "admitted_at": 9.1,
        "routed_at": 9.2,
        "ended_at": 25.0,
        "holds": (),
        "visits": (GOOD,),
        "outcome": "ok",
        "tokens": Tokens(prompt=7, completion=5, cached=3),
    }
    return request_spans(Ended(**{**base, **more}), "boot", itertools.count(100).__next__)


def told(found: tuple[Span, ...]) -> list[tuple[str, float, float]]:
    return [(span.name, span.began_at, span.ended_at) for span in found]


def test_a_warm_one() -> None:
    assert told(spans()) == [
        ("POST /v1/chat/completions", 9.0, 25.0),
        ("auth", 9.0, 9.1),
        ("route", 9.1, 9.2),
        ("proxy", 21.0, 25.0),
        ("engine", 21.0, 24.0),
        ("first byte", 21.0, 22.0),
        ("stream", 22.0, 24.0),
    ]


def test_the_engine_s_is_the_one_that_it_was_told() -> None:
    (engine,) = (span for span in spans() if span.name == "engine")
    assert engine.context == Context(1, 3)
    assert engine.attributes["gen_ai.usage.cache_read.input_tokens"] == 3


@pytest.mark.parametrize(
    ("began_at", "expected"),
    [
        (9.5, [("pulling", 10.0, 14.0), ("starting", 14.0, 17.0), ("loading", 17.0, 19.0)]),
        (15.0, [("starting", 15.0, 17.0), ("loading", 17.0, 19.0)]),
        (19.0, []),
    ],
)
def test_a_hold_has_the_part_of_the_start_that_it_waited_for(
    began_at: float, expected: list[tuple[str, float, float]]
) -> None:
    found = spans(holds=(Hold(began_at=began_at, ended_at=20.0, track=READY),))
    (hold,) = (span for span in found if span.name == "hold")
    assert told(tuple(span for span in found if span.parent == hold.context)) == expected
    assert hold.link == (start_context("boot", "m", 10.0) if expected else None)


def test_an_engine_that_was_gone_is_seen_and_keeps_no_answer() -> None:
    engines = [span for span in spans(visits=(FIRST, GOOD)) if span.name == "engine"]
    assert [(span.fault, span.context == Context(1, 3)) for span in engines] == [("unreachable", False), ("", True)]
    assert "gen_ai.usage.input_tokens" not in engines[0].attributes


@pytest.mark.parametrize(("outcome", "fault"), [("ok", ""), ("cancelled", ""), ("error", "error")])
def test_outcomes(outcome: str, fault: str) -> None:
    found = spans(outcome=outcome)
    assert [span.fault for span in found if span.name in ("engine", "POST /v1/chat/completions")] == [fault] * 2


def test_a_refused_one_was_at_no_engine() -> None:
    found = spans(outcome="refused", visits=())
    assert [span.name for span in found] == ["POST /v1/chat/completions", "auth", "route"]
    assert (found[0].fault, found[0].attributes["error.type"]) == ("refused", "refused")


def test_every_span_is_its_own_and_stands_after_its_parent() -> None:
    found = spans(holds=(Hold(began_at=9.5, ended_at=20.0, track=READY),), visits=(FIRST, GOOD))
    seen: list[Context] = []
    for span in found:
        assert span.context not in seen
        assert span.parent is None or span.parent in seen
        seen.append(span.context)


def test_a_running_start_ends_now() -> None:
    running = Track(phase=Phase.STARTING, phase_at=14.0, start_at=10.0, seconds=((Phase.PULLING, 4.0),))
    assert list(phases_of(running, 16.0)) == [(Phase.PULLING, 10.0, 14.0), (Phase.STARTING, 14.0, 16.0)]
    assert list(phases_of(Track(), 16.0)) == []


@pytest.mark.parametrize(("outcome", "fault"), [("ready", ""), ("failed", "out of memory")])
def test_a_start(outcome: str, fault: str) -> None:
    record = StartRecord(
        model="m",
        replica="r",
        spec="s",
        engine="vllm",
        started_at_unix=0.0,
        seconds={Phase.STARTING: 6.0},
        outcome=outcome,
        error=fault,
    )
    loading = Track(phase=Phase.LOADING, phase_at=13.0, start_at=10.0, seconds=((Phase.STARTING, 3.0),))
    found = start_spans(record, loading, 16.0, Context(1, 2), itertools.count(100).__next__)
    assert told(found) == [("start", 10.0, 16.0), ("starting", 10.0, 13.0), ("loading", 13.0, 16.0)]
    assert found[0].fault == fault
