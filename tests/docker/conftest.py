"""One Docker engine for the tests of a run, with the stub engine's image in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.daemon import Daemon, build_engine_image, needed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Docker's SDK leaves the sockets of its pools to the garbage collector."""
    for item in items:
        if "tests/docker" in item.path.as_posix():
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Started once for all tests."""
    yield from _running(tmp_path_factory.mktemp("dockerd"))


@pytest.fixture(scope="session")
def second_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Another host."""
    yield from _running(tmp_path_factory.mktemp("dockerd2"))


def _running(folder: Path) -> Iterator[Daemon]:
    """An engine with the stub's image; it ends the run as failed if a test has left a container behind."""
    needed()
    made = Daemon(folder)
    build_engine_image(made)
    yield made
    left = made.containers()
    made.close()
    assert left == []
