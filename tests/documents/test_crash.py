"""kill -9 at named points and at random moments: what was acknowledged is there, nothing half-done is seen. R1."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents.crash import POINTS, faults

SEEDS = 20


def test_one_kill(tmp_path: Path) -> None:
    assert faults("catalogue", (3,), tmp_path) == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", POINTS)
def test_kills(kind: str, tmp_path: Path) -> None:
    assert faults(kind, range(SEEDS), tmp_path) == {}
