"""Minutes in which a model is kept warm."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.windows import matches, warmed
from tests.values import deployment

FRIDAY = datetime(2026, 11, 20, tzinfo=UTC)
OFFICE = "* 8-17 * * mon-fri"


@pytest.mark.parametrize(
    ("expression", "at", "inside"),
    [
        (OFFICE, FRIDAY.replace(hour=8), True),
        (OFFICE, FRIDAY.replace(hour=17, minute=59, second=59), True),
        (OFFICE, FRIDAY.replace(hour=18), False),
        (OFFICE, FRIDAY.replace(hour=7, minute=59, second=59), False),
        (OFFICE, FRIDAY.replace(hour=12) + timedelta(days=1), False),
        ("*/30 * * * *", FRIDAY.replace(minute=30, second=5), True),
        ("*/30 * * * *", FRIDAY.replace(minute=31), False),
    ],
)
def test_a_minute_is_in_the_window_or_not(expression: str, at: datetime, inside: bool) -> None:
    assert matches(expression, at) is inside


def test_a_window_keeps_a_replica_without_a_restart() -> None:
    models = {"m": deployment(keep_warm=(OFFICE,)), "n": deployment("n")}
    by_day, by_night = warmed(models, FRIDAY.replace(hour=10)), warmed(models, FRIDAY.replace(hour=3))
    assert (by_day["m"].min_replicas, by_day["n"].min_replicas) == (1, 0)
    assert by_night == models
    assert by_day["m"].spec == by_night["m"].spec
