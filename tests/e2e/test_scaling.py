"""A second engine starts when there is work for two, beside the first, which serves on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.stub import Service, ask, model_table, service, until

MODEL = "acme/echo"
CHAT = "/v1/chat/completions"


def phases(running: Service) -> list[str]:
    """Of the replicas, the oldest first."""
    return [replica["phase"] for replica in running.model(MODEL)["replicas"]]


@pytest.mark.slow
def test_more_work_starts_another_and_a_limit_counts_for_each(tmp_path: Path) -> None:
    table = model_table(MODEL, min_replicas=1, max_replicas=2, max_concurrent=2, target_concurrency=1)
    with service(tmp_path, table) as running, ThreadPoolExecutor(8) as clients:

        def slow(_: int) -> int:
            with running.client() as client:
                return client.post(CHAT, json=ask(MODEL, user="slow:2")).status_code

        until(lambda: running.phase(MODEL) == "ready")
        assert phases(running) == ["ready"]
        answers = [clients.submit(slow, n) for n in range(8)]
        until(lambda: phases(running) == ["ready", "ready"])
        until(lambda: sorted(r["in_flight"] for r in running.model(MODEL)["replicas"]) == [2, 2])
        assert [answer.result() for answer in answers] == [200] * 8
        assert len(running.engines()) == 2
        with running.client() as client:
            assert len(client.get("/api/starts").json()["data"]) == 1  # of the model; it was ready all along
