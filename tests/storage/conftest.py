"""A shelf that tests share: each takes a tenant of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.documents.ports import Shelf
from storage.catalog import Catalog
from storage.shelf import DuckShelf
from tests.storage.shelved import TENANTS
from tests.storage.test_history import catalog


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """One for all tests that take a tenant of their own."""
    with catalog(tmp_path_factory.mktemp("shelf") / "catalog.duckdb") as made:
        yield made


@pytest.fixture
def shelf(made: Catalog) -> Shelf:
    return DuckShelf(made)


@pytest.fixture
def tenant() -> str:
    return next(TENANTS)
