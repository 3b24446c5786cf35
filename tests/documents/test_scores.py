"""What results say of themselves in a running service: how relevant they are, and where in their document they stand;
also once a data folder of an older version was taken over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.documents.served import WORDS_ONLY, served
from tests.documents.test_vectors_e2e import attached, completed, found, new_store
from tests.storage import documents
from tests.stub import Service, until

VERBATIM = "A ship is a large vessel that carries cargo across the ocean."
TEXTS = (
    f"# Ships\n\n{VERBATIM} Its crew sleeps on board.\n",
    "# Cats\n\nA cat is a small carnivorous mammal that sleeps for most of the day.\n",
    "# Bridges\n\nThe bridge closes to large trucks in March, since its cables are replaced.\n",
    "# Invoices\n\nInvoices are due within thirty days of delivery, or interest is charged.\n",
)
PAGES = 6


@pytest.fixture(scope="module", params=[WORDS_ONLY, pytest.param("", marks=pytest.mark.slow)], ids=["words", "vectors"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """By words alone, and with the embedded model's vectors."""
    with served(tmp_path_factory.mktemp("scored"), request.param) as service:
        yield service.running


@pytest.fixture(scope="module")
def store(running: Service) -> str:
    with running.client() as client:
        id = new_store(client)
        for number, text in enumerate(TEXTS):
            completed(client, id, attached(client, id, f"{number}.md", text.encode()), 110)
        if running.folder.joinpath("orchestrator.toml").read_text() != WORDS_ONLY:
            until(lambda: not found(client, id, "cargo")["notice"], 110)
    return id


def scores(answer: dict[str, Any]) -> list[float]:
    return [hit["score"] for hit in answer["data"]]


def test_a_sentence_of_a_document_scores_near_1_and_nonsense_near_0(running: Service, store: str) -> None:
    with running.client() as client:
        said = found(client, store, VERBATIM)
        assert said["data"][0]["filename"] == "0.md"
        assert scores(said)[0] > 0.9
        for nonsense in ("qwzx flurb", "gribbleflax wumtor zindle"):
            assert max(scores(found(client, store, nonsense)), default=0) < 0.2
        weak = found(client, store, "what large ships cost in Norway")
        assert 0 < scores(weak)[0] < scores(said)[0]


def test_a_threshold_cuts_off_an_end(running: Service, store: str) -> None:
    with running.client() as client:
        for query in (VERBATIM, "large trucks", ["cargo of a ship", "interest on invoices"]):
            everything = found(client, store, query)
            fallen = scores(everything)
            assert fallen == sorted(fallen, reverse=True)
            assert fallen[-1] >= 0 and fallen[0] <= 1
            for threshold in (0.05, *fallen):
                above = found(client, store, query, ranking_options={"score_threshold": threshold})
                kept = sum(score >= threshold for score in fallen)
                assert above["data"] == everything["data"][:kept]


def report() -> bytes:
    """A PDF whose pages are much alike, but for one word; several of them are in one chunk."""
    lines = [f"This is line {line} of a page that speaks of wings, panels and loads." for line in range(9)]
    return documents.pdf([[f"Part {page}", *lines, f"It names marker{page}."] for page in range(1, PAGES + 1)])


def cites(client: httpx.Client, store: str, page: int) -> bool:
    """Whether the best result for a page's word cites that page."""
    data = found(client, store, f"marker{page}")["data"]
    return bool(data) and (data[0]["place"]["page"], data[0]["place"]["page_end"]) == (page, page)


def test_a_result_cites_the_page_that_answers(running: Service) -> None:
    with running.client() as client:
        store = new_store(client)
        id = attached(client, store, "report.pdf", report())
        completed(client, store, id, 110)
        content = client.get(f"/v1/vector_stores/{store}/files/{id}/content").json()["data"]
        assert any(chunk["place"]["page"] < chunk["place"]["page_end"] for chunk in content)
        assert all(cites(client, store, page) for page in range(1, PAGES + 1))


def age(data: Path) -> None:
    """Make of a data folder one of the version before: of its passages and of its indexes."""
    passages = [path for path in data.rglob("*") if path.is_file() and "passages" in path.parts]
    for path in passages:
        path.write_bytes(b"\1" + path.read_bytes()[1:])
    words = list(data.rglob("words/version"))
    for path in words:
        path.write_text("1")
    assert passages and words


def test_an_older_data_folder_is_read_anew(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        with service.running.client() as client:
            store = new_store(client)
            completed(client, store, attached(client, store, "report.pdf", report()))
            attached(client, store, "ships.md", TEXTS[0].encode())
            until(lambda: found(client, store, "cargo")["data"])
        service.running.end()
        age(tmp_path / "data")
        service.running.restart()
        with service.running.client() as client:
            until(lambda: all(cites(client, store, page) for page in range(1, PAGES + 1)))
            until(lambda: scores(found(client, store, VERBATIM)))
            until(lambda: not found(client, store, "cargo")["notice"])
            files = client.get(f"/v1/vector_stores/{store}/files").json()["data"]
            assert [file["status"] for file in files] == ["completed"] * 2
            for file in files:
                content = client.get(f"/v1/vector_stores/{store}/files/{file['id']}/content")
                assert content.raise_for_status().json()["data"]
