"""The stock OpenAI SDK drives files, vector stores and searches against the real service.

On a folder with words alone; and, slow, on a folder and on S3 with the vectors of the real MiniLM.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.documents.served import WORDS_ONLY, Served, on_s3, served
from tests.stub import WAIT_S

CATS = b"# Cats\n\nA cat is a small carnivorous mammal. Cats sleep for most of the day.\n"
SHIPS = b"# Ships\n\nA ship is a large vessel that carries cargo across the ocean.\n"
STARS = "# Étoiles\n\nUne étoile est une boule de plasma lumineuse.\n".encode()


SLOW = pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=["words", pytest.param("vectors", marks=SLOW), pytest.param("vectors on s3", marks=SLOW)],
)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    config = WORDS_ONLY if request.param == "words" else ""
    environ = on_s3(request.getfixturevalue("s3_server")) if "s3" in request.param else {}
    with served(folder, config, **environ) as running:
        yield running


def test_upload_and_poll_then_search(service: Served) -> None:
    client = service.client()
    store = client.vector_stores.create(name="zoo", metadata={"owner": "ada"})
    assert store.status == "completed" and store.file_counts.total == 0
    done = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("cats.md", CATS))
    assert done.status == "completed", done.last_error
    assert done.usage_bytes > 0
    batch = client.vector_stores.file_batches.upload_and_poll(
        vector_store_id=store.id, files=[("ships.md", SHIPS), ("étoiles.md", STARS)]
    )
    assert (batch.status, batch.file_counts.completed) == ("completed", 2)
    hits = client.vector_stores.search(store.id, query="What carries cargo on the ocean?").data
    assert hits[0].filename == "ships.md"
    assert "vessel" in hits[0].content[0].text
    assert 0 <= hits[0].score <= 1
    assert [hit.filename for hit in client.vector_stores.search(store.id, query="etoile").data][:1] == ["étoiles.md"]
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 3
    parsed = client.vector_stores.files.content(file_id=done.id, vector_store_id=store.id)
    assert "carnivorous mammal" in "".join(part.text or "" for part in parsed.data)


def test_attributes_filters_and_deletes_count_at_once(service: Served) -> None:
    client = service.client()
    store = client.vector_stores.create(name="filtered")
    ids = []
    for year in (2023, 2024):
        file = client.files.create(file=(f"{year}.txt", f"report of the year {year}".encode()), purpose="assistants")
        attached = client.vector_stores.files.create_and_poll(
            file.id, vector_store_id=store.id, attributes={"year": year}
        )
        assert attached.status == "completed"
        ids.append(file.id)

    def found(**more: object) -> list[str]:
        return [hit.file_id for hit in client.vector_stores.search(store.id, query="report", extra_body=more).data]

    newer = {"type": "gte", "key": "year", "value": 2024}
    assert sorted(found()) == sorted(ids)
    assert found(filters=newer) == [ids[1]]
    client.vector_stores.files.update(ids[0], vector_store_id=store.id, attributes={"year": 2030})
    assert sorted(found(filters=newer)) == sorted(ids)
    client.vector_stores.files.delete(ids[1], vector_store_id=store.id)
    assert found() == [ids[0]]
    client.files.delete(ids[0])
    assert found() == []
    assert client.files.retrieve(ids[1]).id == ids[1]
    client.vector_stores.delete(store.id)
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)


def test_listings_page_through(service: Served) -> None:
    client = service.client()
    before = {store.id for store in client.vector_stores.list()}
    made = [client.vector_stores.create(name=f"store {n}").id for n in range(5)]
    assert [store.id for store in client.vector_stores.list(limit=2, order="asc") if store.id not in before] == made
    assert [store.id for store in client.vector_stores.list(limit=2)][:5] == made[::-1]
    files = [client.files.create(file=(f"{n}.txt", b"same"), purpose="user_data").id for n in range(5)]
    assert [file.id for file in client.files.list(limit=2, order="asc", purpose="user_data")] == files
    batch = client.vector_stores.file_batches.create_and_poll(made[0], file_ids=files)
    assert batch.file_counts.completed == 5
    listed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=made[0], limit=2, order="asc")
    assert [file.id for file in listed] == files
    assert [f.id for f in client.vector_stores.files.list(made[0], limit=3, order="asc", filter="completed")] == files
    with pytest.raises(openai.BadRequestError):
        client.vector_stores.list(after="vs_00000000000000000000000000000000")


def test_broken_files_fail_with_a_reason(service: Served) -> None:
    client = service.client()
    store = client.vector_stores.create()
    done = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("broken.pdf", b"%PDF-1.7 nothing more")
    )
    assert done.status == "failed"
    assert done.last_error is not None and done.last_error.code in ("invalid_file", "unsupported_file")
    assert done.last_error.message
    batch = client.vector_stores.file_batches.upload_and_poll(
        vector_store_id=store.id, files=[("cats.md", CATS), ("no.bin", bytes(range(256)) * 4)]
    )
    assert (batch.file_counts.completed, batch.file_counts.failed) == (1, 1)


def test_uploads_in_parts(service: Served, tmp_path: Path) -> None:
    client = service.client()
    content = b"line of a large file\n" * 40_000
    path = tmp_path / "large.txt"
    path.write_bytes(content)
    upload = client.uploads.upload_file_chunked(
        file=path, mime_type="text/plain", purpose="assistants", part_size=300_000
    )
    assert upload.status == "completed" and upload.file is not None
    assert client.files.content(upload.file.id).content == content
    assert upload.file.bytes == len(content)


def test_what_is_stored_survives_kill_9(service: Served) -> None:
    client = service.client()
    store = client.vector_stores.create(name="kept")
    done = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("ships.md", io.BytesIO(SHIPS)))
    service.running.process.kill()
    service.running.process.wait(WAIT_S)
    service.running.restart()
    client = service.client()
    assert client.files.content(done.id).content == SHIPS
    assert client.vector_stores.search(store.id, query="vessel").data[0].file_id == done.id


def test_unknown_and_malformed_ids_are_404(service: Served) -> None:
    client = service.client()
    for id in ("vs_00000000000000000000000000000000", "vs_x", "nonsense"):
        with pytest.raises(openai.NotFoundError):
            client.vector_stores.retrieve(id)
        with pytest.raises(openai.NotFoundError):
            client.vector_stores.search(id, query="x")
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(id.replace("vs_", "file-"))


def test_prometheus_is_told(service: Served) -> None:
    with service.running.client() as client:
        page = client.get("/metrics").text
    assert "orchestrator_documents_ready 1.0" in page
    assert 'orchestrator_ingest_files{state="waiting"} 0.0' in page
