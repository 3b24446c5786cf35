"""A reranker and a rewriter, which are models of the service's own: warm, cold, failing, and left out by the client."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.documents.served import WORDS_ONLY, served
from tests.documents.test_vectors_e2e import attached, completed, found, new_store
from tests.stub import Service, ask, model_table, until

CONFIG = f'{WORDS_ONLY}[search]\nreranker = "acme/reranker"\nrewriter = "acme/chat"\n'
QUERY = "red fox"
TEXTS = (
    "fox fox fox: an animal, and fox again.",
    "A red fox has a red coat; this one is long, and says much of other things that are of no use to anybody at all.",
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("reranked")
    tables = [
        model_table("acme/reranker", "--model", "acme/reranker", "--start-s", "0.5", idle_timeout_s=600),
        model_table("acme/chat", "--model", "acme/chat", "--start-s", "0.5", idle_timeout_s=600),
    ]
    with served(folder, CONFIG + "".join(tables)) as service:
        yield service.running


@pytest.fixture(scope="module")
def store(running: Service) -> str:
    with running.client() as client:
        id = new_store(client)
        for number, text in enumerate(TEXTS):
            completed(client, id, attached(client, id, f"{number}.txt", text.encode()))
    return id


def _warm(client: httpx.Client, model: str) -> None:
    path, body = "/v1/chat/completions", ask(model)
    until(lambda: client.post(path, json=body, headers={"prefer": "wait=30"}).status_code == 200)


def _names(answer: dict[str, list[dict[str, object]]]) -> list[object]:
    return [hit["filename"] for hit in answer["data"]]


def test_cold_models_are_done_without_and_asked_to_start(running: Service, store: str) -> None:
    """Runs first: nothing is warm yet."""
    with running.client() as client:
        answer = found(client, store, QUERY)
        assert len(answer["data"]) == 2
        assert "not reranked" in answer["notice"]["message"] and answer["notice"]["retry_after_s"] > 0
        until(lambda: found(client, store, QUERY)["notice"] is None)
        assert running.phase("acme/chat") == "cold"
        answer = found(client, store, QUERY, rewrite_query=True)
        assert answer["search_query"] == [QUERY]
        assert "not rewritten" in answer["notice"]["message"]
        until(lambda: found(client, store, QUERY, rewrite_query=True)["notice"] is None)


def test_a_reranker_has_the_last_word(running: Service, store: str) -> None:
    with running.client() as client:
        _warm(client, "acme/reranker")
        none = found(client, store, QUERY, ranking_options={"ranker": "none"})
        assert none["notice"] is None
        answer = found(client, store, QUERY)
        assert _names(answer) == ["1.txt", "0.txt"]
        assert [hit["score"] for hit in answer["data"]] == [1.0, 0.5]
        above = found(client, store, QUERY, ranking_options={"score_threshold": 0.6})
        assert _names(above) == ["1.txt"]
        assert [hit["score"] for hit in none["data"]] != [1.0, 0.5]


def test_a_query_is_rewritten_where_asked_to(running: Service, store: str) -> None:
    with running.client() as client:
        _warm(client, "acme/chat")
        answer = found(client, store, QUERY, rewrite_query=True)
        assert answer["search_query"] == [f"echo: {QUERY}"]
        assert found(client, store, QUERY)["search_query"] == [QUERY]
        assert found(client, store, "France", rewrite_query=True)["search_query"] == ["The capital of France is Paris."]
