"""What counts as other programs' memory, by table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.foreign import SETTLE_S, lent
from orchestrator.gpu import Lent
from orchestrator.model import Phase, Replica
from orchestrator.placement import ASLEEP_BYTES
from tests.gpus import GB, gpu, holder

NOW = 1000.0
LONG_AGO = NOW - SETTLE_S
A = holder("a", 0, gigabytes=30)
KNOWN = Lent(leased_bytes=30 * GB, foreign_bytes=5 * GB, since=LONG_AGO)


def foreign(used: float, *replicas: Replica, before: Lent | None = KNOWN, healthy: bool = True) -> float:
    """In GB, of an 80 GB GPU."""
    one = replace(gpu(0), free_bytes=int((80 - used) * GB), healthy=healthy)
    return lent({} if before is None else {"G0": before}, [one], replicas, NOW)["G0"].foreign_bytes / GB


@pytest.mark.parametrize(
    ("used", "phase", "expected"),
    [
        (30, Phase.READY, 0),
        (25, Phase.READY, 0),  # it takes less than it may
        (50, Phase.READY, 20),
        (0, Phase.STARTING, 5),  # nobody can tell yet
        (50, Phase.LOADING, 5),
        (10, Phase.DRAINING, 5),
        (60, Phase.FAILED, 5),
    ],
)
def test_while_an_engine_comes_or_goes_what_was_known_stands(used: float, phase: Phase, expected: float) -> None:
    assert foreign(used, replace(A, phase=phase)) == expected


def test_at_first_what_our_engines_hold_is_not_taken_for_anothers() -> None:
    assert foreign(50, replace(A, phase=Phase.STARTING), before=None) == 20
    assert foreign(0, replace(A, phase=Phase.STARTING), before=None) == 0
    assert foreign(12, before=None) == 12


def test_memory_given_back_late_is_not_anothers() -> None:
    assert foreign(35) == 5  # it has just gone, and is still counted
    just = Lent(leased_bytes=0, foreign_bytes=5 * GB, since=LONG_AGO + 0.1)
    assert foreign(35, before=just) == 5
    assert foreign(35, before=replace(just, since=LONG_AGO)) == 35
    dozing = replace(A, phase=Phase.SLEEPING)
    assert foreign(35, dozing) == 5
    slept = Lent(leased_bytes=ASLEEP_BYTES, foreign_bytes=5 * GB, since=LONG_AGO)
    assert foreign(35, dozing, before=slept) == 35 - ASLEEP_BYTES / GB


def test_a_lost_gpu_tells_nothing() -> None:
    assert foreign(80, A, healthy=False) == 5
    assert foreign(80, before=None, healthy=False) == 0


def test_holders_are_those_of_this_gpu() -> None:
    assert foreign(50, holder("b", 1, gigabytes=50), before=Lent(since=LONG_AGO)) == 50
