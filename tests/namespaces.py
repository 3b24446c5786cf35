"""Programs in namespaces of their own, where a test may mount, or cut the network, without being root outside."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.missing import missing

NOT_FOUND = 127
"""A shell's exit code for a program that is not there."""


def run_alone(
    kind: str,
    script: str,
    *args: str,
    cwd: Path,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a shell script, which gets `args`, in a user namespace and another of `kind` (mount, net).

    Skips the test, and in CI fails it, where the machine gives no such namespaces.
    """
    done = subprocess.run(
        ["unshare", f"--{kind}", "--user", "--map-root-user", "sh", "-c", script, "sh", *args],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr or done.returncode == NOT_FOUND:
        missing(f"needs iproute2 and user namespaces (sysctl kernel.unprivileged_userns_clone=1): {done.stderr}")
    return done
