"""The house plan's import rule: who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WIRING = {f"orchestrator/{name}.py" for name in ("app", "embedder_choice", "library", "parts")}
PURE = (
    *("model", "decide", "fleet", "eta", "starts", "refusal", "patience", "views", "fair"),
    *("arrive", "autoscale", "crew", "placement", "scaling", "slug", "tracks", "victims"),
    *(f"metering/{name}" for name in ("limits", "stream_usage", "tap", "usage")),
    *("access/key", "tracing/context", "tracing/spans"),
    *(f"balance/{name}" for name in ("affinity", "breaker", "loads", "names", "policy", "retry", "rotation")),
    *(f"servers/{name}" for name in ("disguise", "endpoint", "names", "routes", "state", "views")),
    *(
        f"documents/{name}"
        for name in (
            *("checks", "filters", "fusion", "keys", "model", "pieces", "relevance", "store_fields", "store_views"),
        )
    ),
)
NOT_PURE = {
    "asyncio",
    "httpx",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "structlog",
    "subprocess",
}


def _imports(path: Path) -> set[str]:
    """The dotted names of every import in a file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in _imports(path)}


@pytest.mark.parametrize("package", ["runtimes", "storage", "ui"])
def test_outer_packages_do_not_know_each_other(package: str) -> None:
    others = {"runtimes", "storage", "ui"} - {package}
    for path in (ROOT / package).rglob("*.py"):
        assert not _tops(path) & others, path


def test_only_the_wiring_names_concrete_runtimes_and_stores() -> None:
    for path in (ROOT / "orchestrator").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name in WIRING or name.startswith(("orchestrator/cli/", "orchestrator/demo/")):
            continue
        assert not _tops(path) & {"runtimes", "storage", "ui"}, name


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_do_no_io(module: str) -> None:
    assert not _tops(ROOT / "orchestrator" / f"{module}.py") & (NOT_PURE | {"time"})


def test_no_file_is_a_drawer_or_too_long() -> None:
    for package in ("orchestrator", "runtimes", "storage", "ui", "bench"):
        for path in (ROOT / package).rglob("*.py"):
            assert "util" not in path.stem, path
            assert len(path.read_text("utf-8").splitlines()) <= 400, path
