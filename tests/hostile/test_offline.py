"""S16: with no way out, everything works that needs none, and nobody looks for one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.hostile.offline import WAY_OUT
from tests.namespaces import run_alone

ALONE = f"""
set -e
ip link set lo up
ip link add {WAY_OUT} type veth peer name end0
ip link set {WAY_OUT} addrgenmode none
ip link set end0 addrgenmode none
ip addr add 10.99.0.1/24 dev {WAY_OUT}
ip link set end0 up
ip link set {WAY_OUT} up
ip neigh add 10.99.0.2 lladdr 02:00:00:00:00:02 dev {WAY_OUT}
ip route add default via 10.99.0.2
exec "$1" -m tests.hostile.offline "$2"
"""
"""A network of its own, whose only way out ends in the same namespace, where nobody takes what comes."""


@pytest.mark.slow
def test_nothing_goes_out(tmp_path: Path) -> None:
    done = run_alone("net", ALONE, sys.executable, str(tmp_path), cwd=Path(__file__).parents[2], timeout_s=110)
    assert done.returncode == 0, done.stderr
