"""The ledger: nothing is lost while the store is away, groups add up, a GPU's seconds are shared out whole."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from orchestrator.balance.lane import Lane
from orchestrator.errors import OrchestratorError
from orchestrator.gateway.books import Ours
from orchestrator.gateway.table import Row, Sums
from orchestrator.metering import serials, usage
from orchestrator.metering.gate import Gate
from orchestrator.metering.meter import reserve
from orchestrator.metering.serials import Serials
from orchestrator.metering.usage import Counts, Ledger, Place, Query, grouped
from orchestrator.metering.usage_book import UsageBook
from orchestrator.metrics import Metrics
from orchestrator.reader import peek
from orchestrator.upstream import Pool, Timeouts

PLACES = st.tuples(st.sampled_from("ab"), st.sampled_from("mn"), st.integers(500_000, 500_050))
SUMS = Sums(usage=(Row("k", "m", 1, Counts(requests=1)),))
MINUTE = Timeouts(connect_timeout_s=1, first_byte_timeout_s=1, stream_idle_timeout_s=1, request_timeout_s=1)


class Store:
    """Keeps rows in memory, or refuses them."""

    def __init__(self) -> None:
        self.broken = False
        self.kept: dict[Place, Counts] = {}
        self.kept_serials: dict[str, int] = {}

    async def add(self, rows: Mapping[Place, Counts], serials: Mapping[str, int]) -> None:
        if self.broken:
            raise OrchestratorError("the disk is full")
        for place, counts in rows.items():
            self.kept.setdefault(place, Counts()).add(counts)
        self.kept_serials.update(serials)

    async def rows(self, query: Query, *, rows_max: int) -> list[tuple[Place, Counts]]:
        return list(self.kept.items())

    async def tokens(self, since_unix: float) -> dict[str, int]:
        if self.broken:
            raise OrchestratorError("the disk is full")
        return {"a": 7}

    async def serials(self) -> dict[str, int]:
        return self.kept_serials


class Clock:
    def monotonic(self) -> float:
        return 0.0

    def unix(self) -> float:
        return 1e9


@given(st.lists(st.tuples(PLACES, st.integers(0, 9), st.booleans()), max_size=40))
def test_nothing_is_lost_while_the_store_is_away(steps: list[tuple[tuple[str, str, int], int, bool]]) -> None:
    async def run() -> None:
        ledger, store = Ledger(), Store()
        book = UsageBook(ledger=ledger, gate=Gate(), store=store, clock=Clock())
        for place, tokens, broken in steps:
            ledger.counts(*place).prompt_tokens += tokens
            store.broken = broken
            assert await book.flush() is not (broken and len(ledger) > 0)
        store.broken = False
        assert await book.flush()
        assert not book.error
        assert sum(counts.prompt_tokens for counts in store.kept.values()) == sum(tokens for _, tokens, _ in steps)

    with capture_logs():
        asyncio.run(run())


def test_what_a_gateway_counted_is_counted_once_whenever_its_controller_is_killed() -> None:
    """Its last sums come again, and are new only to one whose store has not kept them."""

    async def run() -> None:
        store = Store()
        for new, flushed in ((True, False), (True, True), (False, True)):
            ledger = Ledger()
            book = UsageBook(ledger=ledger, gate=Gate(), store=store, clock=Clock())
            await book.begin()
            ours = Ours(ledger=ledger, gate=Gate(), metrics=Metrics(), unix=Clock().unix)
            assert [ours.add("g", 1, SUMS) for _ in range(2)] == [new, False]
            for store.broken in (True, False) if flushed else ():
                await book.flush()
        assert [counts.requests for counts in store.kept.values()] == [1]
        assert store.kept_serials == {"g": 1}

    with capture_logs():
        asyncio.run(run())


def test_the_memory_for_serials_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serials, "SERIALS_MAX", 3)
    known = Serials()
    for number in range(5):
        known.add(f"g{number}", 1)
    assert [known.known(f"g{number}", 1) for number in range(5)] == [False, False, True, True, True]
    taken = known.take()
    assert (taken, known.take()) == ({"g2": 1, "g3": 1, "g4": 1}, {})
    known.put_back(taken)
    known.add("g5", 2)
    assert known.take() == {"g3": 1, "g4": 1, "g5": 2}


def test_the_memory_for_what_is_not_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "ROWS_MAX", 10)
    ledger = Ledger()
    for hour in range(100):
        ledger.counts("a", "m", hour).requests += 1
        ledger.put_back(ledger.take())
    assert len(ledger) <= 11
    assert sum(counts.requests for counts in ledger.take().values()) == 100


def test_budgets_begin_with_what_was_spent() -> None:
    gate, store = Gate(), Store()
    book = UsageBook(ledger=Ledger(), gate=gate, store=store, clock=Clock())
    asyncio.run(book.begin())
    store.broken = True
    with capture_logs() as logs:
        asyncio.run(book.begin())
    assert [line["event"] for line in logs] == ["budgets_not_read"]


@given(st.lists(st.tuples(PLACES, st.integers(0, 9)), max_size=30), st.sampled_from([(), ("key",), ("day", "model")]))
def test_groups_add_up(rows: list[tuple[tuple[str, str, int], int]], by: tuple[str, ...]) -> None:
    values = [(Place(key=key, model=model, hour=hour), Counts(requests=count)) for (key, model, hour), count in rows]
    sums = grouped(values, by)
    assert sum(counts.requests for counts in sums.values()) == sum(count for _, count in rows)
    assert all(len(group) == len(by) for group in sums)
    assert list(sums) == sorted(sums)


@given(st.lists(st.tuples(st.floats(0.001, 10), st.booleans()), min_size=1, max_size=40))
def test_a_replicas_gpu_seconds_are_shared_out_whole(steps: list[tuple[float, bool]]) -> None:
    lane, now, busy_s, shared_s, inside = Lane("r", Pool("h", 1, MINUTE), gpus=2), 0.0, 0.0, 0.0, list[float]()
    for pause_s, comes in steps:
        busy_s += pause_s if inside else 0.0
        now += pause_s
        if comes or not inside:
            inside.append(lane.enter(now))
        else:
            shared_s += lane.leave(now, inside.pop(0))
    while inside:
        shared_s += lane.leave(now, inside.pop())
    assert shared_s == pytest.approx(2 * busy_s)
    assert lane.in_flight == 0


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ('"max_tokens": 50', 50),
        ('"max_completion_tokens": 60, "max_tokens": 50', 60),
        ('"max_output_tokens": 7, "n": 3', 21),
        ('"max_tokens": null', 0),
        ('"max_tokens": "many", "n": {}', 0),
        ('"max_tokens": -5', 0),
        ('"max_tokens": 99999999999999999999', 10**9),
    ],
)
def test_what_is_reserved(fields: str, tokens: int) -> None:
    body = f'{{"model": "m", {fields}}}'.encode()
    assert reserve(peek(body), len(body)) == len(body) // 4 + tokens
