"""What tests of several packages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3 import S3Server, running_s3


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all of a process's tests, which leave it running; take a bucket of your own."""
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server
