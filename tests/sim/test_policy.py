"""What the policy promises to those who wait, in the simulator."""

from __future__ import annotations

import pytest

from tests.sim.policy import POLICIES, SCENARIOS, START_S, Result, Turns

HOURS = 0.75


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], Result]:
    return {(s, p): Turns(s, p).run(HOURS) for s in SCENARIOS for p in POLICIES}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_waiting_is_bounded_and_swaps_are_few(found: dict[tuple[str, str], Result], scenario: str) -> None:
    ours, hasty, stubborn = (found[scenario, policy] for policy in POLICIES)
    rivals = len(SCENARIOS[scenario][0]) - 1
    residency_s, turn_s = POLICIES["ours"]
    assert ours.wait_max_s <= rivals * (residency_s + turn_s + 2 * START_S[1])
    assert ours.swaps_per_hour < hasty.swaps_per_hour
    assert ours.starting_share < hasty.starting_share
    assert stubborn.wait_max_s > ours.wait_max_s
    assert stubborn.swaps_per_hour <= ours.swaps_per_hour


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_who_waits_is_told_about_when(found: dict[tuple[str, str], Result], scenario: str) -> None:
    ours = found[scenario, "ours"]
    assert ours.forecasts > 50
    assert ours.forecast_error_median_s <= max(ours.forecast_median_s / 2, 10.0)
