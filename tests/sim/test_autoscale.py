"""What scaling by load promises, on the first half of the simulated day."""

from __future__ import annotations

import pytest

from tests.sim.autoscale import Knative, Ours, fixed
from tests.sim.day import REPLICAS_MAX

HOURS = 12
SECONDS = HOURS * 3600


@pytest.mark.slow
def test_a_day_costs_less_than_any_fixed_number_that_makes_as_few_wait() -> None:
    ours, knative = Ours().run("ours", SECONDS), Knative().run(SECONDS)
    constant = [fixed(count, SECONDS) for count in range(1, REPLICAS_MAX + 1)]
    assert all(ours.gpu_hours < each.gpu_hours for each in constant if each.delayed_share <= ours.delayed_share)
    assert ours.delayed_share < knative.delayed_share and ours.starts < knative.starts
    assert ours.starts / HOURS < 6
    assert ours.p99_s <= 30
