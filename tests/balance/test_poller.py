"""Who is asked for its load, and how often."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.activator import Activator, Route
from orchestrator.balance import poller
from orchestrator.balance.lane import Lane
from orchestrator.balance.poller import Poller
from orchestrator.errors import UpstreamTimeout
from orchestrator.model import EngineKind, Phase, Track
from orchestrator.upstream import Pool, Timeouts
from tests.values import deployment

MINUTE = Timeouts(connect_timeout_s=60, first_byte_timeout_s=60, stream_idle_timeout_s=60, request_timeout_s=60)


class Rounds:
    """A poller of two lanes, whose answers a test sets; `asked` counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: EngineKind) -> None:
        self.now, self.asked, self.page = 0.0, 0, None
        self.silent = False
        self.lanes = tuple(Lane(f"r{n}", Pool("127.0.0.1", 9, MINUTE)) for n in range(2))
        activator = Activator(wake=lambda: None, held_max=1)
        track = Track(phase=Phase.READY, phase_at=0.0)
        activator.publish({"m": Route(deployment=deployment("m", engine=engine), track=track, lanes=self.lanes)}, 0.0)
        monkeypatch.setattr(poller, "read_metrics", self._read)
        self._poller = Poller(activator, lambda: self.now)

    async def _read(self, lane: Lane, read: Any) -> bytes | None:
        self.asked += 1
        if self.silent:
            raise UpstreamTimeout("the engine does not answer")
        return self.page

    def at(self, now: float) -> int:
        """How many are asked in the round at this time."""
        self.now, self.asked = now, 0
        asyncio.run(self._poller._round())
        return self.asked


def test_a_server_of_others_without_the_page_is_asked_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, EngineKind.STATIC)
    assert [rounds.at(now) for now in (0.0, 2.0, 58.0, 60.0, 62.0)] == [2, 0, 0, 2, 0]


def test_while_it_has_requests_of_ours_it_is_asked_on_and_so_is_one_that_fell_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else nobody would know that it hangs, or that it is back."""
    rounds = Rounds(monkeypatch, EngineKind.STATIC)
    rounds.at(0.0)
    rounds.lanes[0].enter(1.0)
    rounds.silent = True
    assert rounds.at(2.0) == 1
    rounds.lanes[0].leave(3.0, 0.0)
    assert rounds.at(4.0) == 1


def test_engines_of_ours_are_asked_always(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, EngineKind.COMMAND)
    assert [rounds.at(now) for now in (0.0, 2.0, 4.0)] == [2, 2, 2]
