"""The table and the reports: what is written is read again, and what is limited is not in it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.access.key import Key
from orchestrator.activator import Route
from orchestrator.balance.lane import Lane
from orchestrator.balance.names import Balance
from orchestrator.gateway import table as wire
from orchestrator.gateway.table import Entry, Line, Model, Report, Row, Seen, Sums, Table, Way
from orchestrator.metering.limits import Limits
from orchestrator.metering.usage import Counts
from orchestrator.metrics import ModelMetrics
from orchestrator.model import EngineKind, Phase, Scope, Track
from orchestrator.servers.disguise import Disguise
from orchestrator.servers.look import within
from orchestrator.upstream import Pool
from tests.values import deployment

TEXT = st.text(max_size=20)
NAMES = st.text(min_size=1, max_size=20)
COUNTS = st.integers(0, 2**53)
SECONDS = st.floats(0, 1e9)
DISGUISES = st.builds(Disguise, base=st.binary(max_size=20), end=st.binary(max_size=40), model=TEXT)
WAYS = st.builds(
    Way,
    replica=NAMES,
    host=TEXT,
    port=st.integers(0, 65535),
    authority=TEXT,
    tls_name=TEXT,
    gpus=st.integers(0, 8),
    capacity=st.integers(1, 1000),
    weight=st.floats(0.01, 1000),
    disguise=st.none() | DISGUISES,
)
MODELS = st.builds(
    Model,
    name=NAMES,
    engine=st.sampled_from(EngineKind),
    balance=st.sampled_from(Balance),
    stream_usage=st.booleans(),
    aliases=st.lists(NAMES, max_size=2).map(tuple),
    ways=st.lists(WAYS, max_size=3).map(tuple),
)
ENTRIES = st.builds(
    Entry,
    sha256=TEXT,
    name=NAMES,
    scopes=st.frozensets(st.sampled_from(Scope)),
    models=st.lists(NAMES, max_size=2).map(tuple),
    expires_unix=st.none() | SECONDS,
)
TABLES = st.builds(
    Table,
    controller=TEXT,
    version=COUNTS,
    open=st.booleans(),
    models=st.lists(MODELS, max_size=3).map(tuple),
    keys=st.lists(ENTRIES, max_size=3).map(tuple),
)
ROWS = st.builds(Row, NAMES, NAMES, st.integers(0, 10**6), st.builds(Counts, requests=COUNTS, seconds=SECONDS))
REPORTS = st.builds(
    Report,
    gateway=NAMES,
    address=TEXT,
    controller=TEXT,
    version=COUNTS,
    traffic=st.dictionaries(NAMES, st.builds(Seen, in_flight=COUNTS, idle_s=st.none() | SECONDS), max_size=3),
    serial=COUNTS,
    sums=st.none()
    | st.builds(
        Sums,
        usage=st.lists(ROWS, max_size=3).map(tuple),
        metrics=st.dictionaries(NAMES, st.lists(SECONDS, max_size=5), max_size=2),
    ),
    last=st.booleans(),
)


@given(TABLES)
def test_a_table_is_read_as_it_was_written(table: Table) -> None:
    line = wire.encode_line(Line(table=table))
    assert b"\n" not in line
    assert wire.decode_line(line).table == table


@given(REPORTS)
def test_a_report_is_read_as_it_was_written(report: Report) -> None:
    assert wire.decode_report(wire.encode_report(report)) == report


def test_what_has_limits_is_not_in_it() -> None:
    limited = Limits(max_concurrent=1)
    routes = {
        "free": route("free", aliases=("other",)),
        "limited": route("limited", limits=limited),
    }
    (model,) = wire.models_of(routes)
    assert (model.name, model.aliases, [way.replica for way in model.ways]) == ("free", ("other",), ["free-0"])
    keys = {
        "a": Key(name="free", scopes=frozenset({Scope.REALTIME}), models=("x/*",), expires_unix=1.0),
        "b": Key(name="limited", scopes=frozenset({Scope.REALTIME}), limits=limited),
    }
    assert wire.keys_of(wire.entries_of(keys)) == {"a": keys["a"]}


def test_nothing_of_how_an_engine_is_started_is_in_it() -> None:
    routes = {"m": route("m", env=(("TOKEN", "canary-1"),), command=("canary-2",), args=("canary-3",))}
    told = wire.encode_line(Line(table=Table(controller="c", version=1, models=wire.models_of(routes))))
    assert b"canary" not in told


@given(st.lists(st.floats(0, 2000), max_size=20), st.lists(st.floats(0, 2000), max_size=20))
def test_numbers_that_are_added_are_as_counted_in_one_place(ours: list[float], theirs: list[float]) -> None:
    one, here, there = ModelMetrics(), ModelMetrics(), ModelMetrics()
    for metrics, values in ((here, ours), (there, theirs), (one, ours + theirs)):
        for value in values:
            metrics.ended("ok", value)
            metrics.first_byte_seconds.observe(value)
            metrics.prompt_tokens += int(value)
    here.add(there.numbers())
    assert all(abs(a - b) < 1e-6 for a, b in zip(here.numbers(), one.numbers(), strict=True))


def route(name: str, **more: Any) -> Route:
    lane = Lane(f"{name}-0", Pool("127.0.0.1", 1, within(1.0)))
    return Route(deployment=deployment(name, **more), track=Track(phase=Phase.READY), lanes=(lane,))
