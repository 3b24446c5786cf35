"""What clients store and ask is in no log and in no answer to others (S12), presigned URLs give one thing for a short
time (S11), and names of files are data (S10).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest

from tests.documents.embedder import CountingEmbedder, counting_embedder
from tests.documents.served import EMBEDDER, on_s3, with_embedder
from tests.documents.test_vectors_e2e import attached, completed, file_of, found, new_store
from tests.s3 import SECRET_KEY, S3Server
from tests.stub import Service, posted, service, until

CANARY = "canary7f3e"
KEPT = ("objects", "indexes", "catalog.duckdb", "catalog.duckdb.wal")
"""Where a data folder may hold what was stored."""
PUBLISHED = ("/metrics", "/health", "/ready", "/api/models", "/api/replicas", "/api/starts", "/api/gpus")
NAMES = 1000
HOSTILE = (
    *("../", "..\\", "/", "\\", "/etc/passwd", "C:\\", "~", "\0", "\r\n", "\n", "\x1b[2J", "\x7f", '"', "'", ";", "%"),
    *("%00", "%2e%2e%2f", "%22", "$(id)", "`id`", "'; DROP TABLE files;--", "<script>", "{{7*7}}", "con", "nul", "."),
    *(" ", "é", "漢字", "😀", "\u202e", "\u2028", "\ufeff", "e\u0301", "\ud800", "a" * 120, ".md", "filename*=UTF-8''"),
)


def canary(place: str) -> str:
    return f"{CANARY}{place}"


@pytest.fixture
def embedder() -> Iterator[CountingEmbedder]:
    with counting_embedder() as made:
        yield made


# --- privacy ---


@pytest.mark.slow
def test_what_is_stored_and_asked_shows_nowhere_else(tmp_path: Path, embedder: CountingEmbedder) -> None:
    (tmp_path / "service").mkdir()
    with service(tmp_path / "service", embedder.config) as running:
        with running.client() as client:
            store = new_store(client)
            id = good(client, store)
            failing(client, store, embedder)
            refused(client, store, id)
            unserved(client, running, store)
            embedder.hold()  # a job is under way when the service is killed
            attached(client, store, "killed.md", f"{canary('content')} again".encode())
            check_published(client)
        running.process.kill()
        running.process.wait()
        embedder.go_on()
        running.restart()
        with running.client() as client:
            until(lambda: found(client, store, canary("query")) and not busy(client, store))
            check_published(client)
        running.end()
        assert CANARY not in running.log()
        check_folder(tmp_path / "service")


def good(client: httpx.Client, store: str) -> str:
    """A file that is read well, with all that can be said of it; its id."""
    content = f"# {canary('content')}\n\n{canary('content')} stands here.".encode()
    id = attached(client, store, f"{canary('name')}.md", content)
    completed(client, store, id)
    attributes = {"attributes": {"label": canary("attribute")}}
    client.post(f"/v1/vector_stores/{store}/files/{id}", json=attributes).raise_for_status()
    client.post(f"/v1/vector_stores/{store}", json={"metadata": {"key": canary("metadata")}}).raise_for_status()
    same = {"type": "eq", "key": "label", "value": canary("attribute")}
    assert found(client, store, f"{canary('query')} {canary('content')}", filters=same)["data"]
    return id


def failing(client: httpx.Client, store: str, embedder: CountingEmbedder) -> None:
    """Files that can't be read, and embedders that repeat what they refuse."""
    body = canary("content").encode()
    for name, content in (
        ("a.pdf", b"%PDF-1.7 " + body),
        ("a.docx", body),
        ("a.bin", b"\0\xff" + body),
        ("a.json", body),
    ):
        id = attached(client, store, canary("name") + name, content)
        ended(client, store, id)
    for status in (400, 500, 503):
        embedder.status = status
        id = attached(client, store, f"{status}.md", f"{canary('content')} for {status}".encode())
        if status == 400:
            assert ended(client, store, id) == "failed"
        elif status == 500:
            until(lambda: client.get("/health").json()["status"] != "ok")
        found(client, store, canary("query"))
        check_published(client)
        client.delete(f"/v1/files/{id}").raise_for_status()
    embedder.status = 200


def ended(client: httpx.Client, store: str, id: str) -> str:
    """The file's last state."""
    return str(until(lambda: (found := file_of(client, store, id)["status"]) != "in_progress" and found))


def refused(client: httpx.Client, store: str, id: str) -> None:
    """What is no good request."""
    said = canary("error")
    for path, body in (
        (f"/v1/vector_stores/{store}/search", {"query": canary("query"), "filters": {"type": said}}),
        (f"/v1/vector_stores/{store}/search", {"query": canary("query"), said: 1}),
        (f"/v1/vector_stores/{store}/files", {"file_id": said}),
        (f"/v1/vector_stores/{store}/files/{id}", {"attributes": {"a": "\ud800" + said}}),
        (f"/v1/vector_stores/{store}/files/{id}", {"attributes": {said: [said]}}),
        (f"/v1/vector_stores/{said}/search", {"query": canary("query")}),
        ("/v1/vector_stores", {"name": "\0" + said}),
    ):
        answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code < 500, answer.text
    assert client.post(f"/v1/vector_stores/{store}/search", content=b"{" + said.encode()).status_code == 400
    assert client.get(f"/v1/files/{said}?{said}={said}").status_code == 404
    file = {"file": (f"{said}\n", said.encode())}
    assert client.post("/v1/files", data={"purpose": said}, files=file).status_code == 400
    assert client.post("/v1/files", content=said.encode()).status_code == 400


def unserved(client: httpx.Client, running: Service, store: str) -> None:
    """What fails, since the disk does."""
    objects = running.folder / "data" / "objects"
    away = objects.with_name("away")
    objects.rename(away)
    objects.touch()
    until(lambda: client.get("/ready").status_code == 503)
    answer = client.post(
        "/v1/files", data={"purpose": "assistants"}, files={"file": (canary("name"), canary("content"))}
    )
    assert answer.status_code == 503, answer.text
    assert client.post(f"/v1/vector_stores/{store}", json={"name": canary("metadata")}).status_code == 503
    found(client, store, canary("query"))
    check_published(client)
    objects.unlink()
    away.rename(objects)
    until(lambda: client.get("/ready").status_code == 200)


def busy(client: httpx.Client, store: str) -> bool:
    counts = client.get(f"/v1/vector_stores/{store}").json()["file_counts"]
    return bool(counts["in_progress"])


def check_published(client: httpx.Client) -> None:
    """What others than the owner may see."""
    for path in PUBLISHED:
        assert CANARY not in client.get(path).text, path


def check_folder(folder: Path) -> None:
    """Only what is kept on purpose is kept; and a query is not."""
    data = folder / "data"
    for path in folder.rglob("*"):
        text = path.read_bytes() if path.is_file() else b""
        where = path.relative_to(folder)
        kept = where.parts[0] == "data" and not {*where.parts[1:2]}.isdisjoint(KEPT)
        assert kept or CANARY.encode() not in text, where
        assert CANARY not in str(where)
        assert canary("query").encode() not in text, where
    assert list((data / "spool").iterdir()) == list((data / "reading").iterdir()) == []


@pytest.mark.slow
def test_secrets_show_nowhere(tmp_path: Path, s3_server: S3Server) -> None:
    folder, record = tmp_path / "service", tmp_path / "record"
    folder.mkdir()
    keys = {"keys": [{"name": "ada", "sha256": hashlib.sha256(b"sesame-ada").hexdigest(), "scopes": ["admin"]}]}
    (folder / "keys.json").write_text(json.dumps(keys))
    config = '[auth]\nkeys_file = "keys.json"\n' + with_embedder("--model", EMBEDDER, "--record", str(record))
    with (
        service(folder, config, **on_s3(s3_server)) as running,
        running.client(authorization="Bearer sesame-ada") as client,
    ):
        store = new_store(client)
        id = attached(client, store, "a.md", b"# Alpha\n\nalpha")
        completed(client, store, id)
        url = check_presigned(client, id)
        sent = {line["headers"].get("authorization", "").removeprefix("Bearer ") for line in posted(record, 1)}
        secrets = {SECRET_KEY, "sesame-ada", url.partition("X-Amz-Signature=")[2][:64], *sent} - {""}
        seen = "".join(client.get(path).text for path in PUBLISHED)
        running.end()
        seen += running.log()
        for path in (folder / "data").rglob("*"):
            seen += path.read_bytes().decode("latin-1") if path.is_file() else ""
        assert [secret for secret in secrets if secret in seen] == []
        assert "X-Amz" not in running.log()


def check_presigned(client: httpx.Client, id: str) -> str:
    """A URL for a while, of one object; itself."""
    answer = client.get(f"/v1/files/{id}/content?presigned=1")
    assert answer.headers["cache-control"] == "no-store"
    url = str(answer.json()["url"])
    seconds = re.search(r"X-Amz-Expires=(\d+)", url)
    assert seconds and int(seconds[1]) <= 300
    with httpx.Client() as other:
        assert other.get(url).content == b"# Alpha\n\nalpha"
        assert other.get(url.replace(id, "file-other")).status_code == 403
        assert other.get(url.replace("X-Amz-Expires=", "X-Amz-Expires=9")).status_code == 403
        assert other.get(url.replace("X-Amz-Date=20", "X-Amz-Date=19")).status_code == 403
        assert other.delete(url).status_code == other.put(url, content=b"other").status_code == 403
        assert other.get(url).content == b"# Alpha\n\nalpha"
    return url


# --- names ---


@pytest.mark.parametrize("count", [50, pytest.param(NAMES, marks=pytest.mark.slow)])
def test_hostile_names_are_data(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    chance = random.Random(count)
    with service(folder, '[embeddings]\nmodel = ""\n') as running, running.client() as client:
        before = sorted(outside(tmp_path))
        names: dict[str, str] = {}
        for _ in range(count):
            name = "".join(chance.choices(HOSTILE, k=chance.randrange(1, 5)))
            check_sent_in_json(client, name)
            if (sent := check_sent_in_form(client, name)) is not None:
                names.update([sent])
        assert len(names) > count // 4
        listed = {file["id"]: file["filename"] for file in client.get("/v1/files").json()["data"]}
        assert listed == names
        for id, name in names.items():
            content = client.get(f"/v1/files/{id}/content")
            disposition = content.headers["content-disposition"]
            assert disposition.isascii() and unquote(disposition.removeprefix("attachment; filename*=UTF-8''")) == name
            assert content.content == b"content"
        assert sorted(outside(tmp_path)) == before
        stored = [path.name for path in (folder / "data" / "objects").rglob("*") if path.is_file()]
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in stored)


def outside(folder: Path) -> Iterator[str]:
    """What there is that is not in the data folder."""
    for path in folder.rglob("*"):
        if "data" not in path.relative_to(folder).parts:
            yield str(path)


def check_sent_in_form(client: httpx.Client, name: str) -> tuple[str, str] | None:
    """The file's id and name; None when it was refused. It is sent as a browser would.

    Backslashes may be gone: some clients double them, and Internet Explorer sent whole paths.
    """
    sent = name.replace("\r", "%0D").replace("\n", "%0A").encode("utf-8", "replace").decode()
    head = 'content-disposition: form-data; name="file"; filename="{}"'.format(sent.replace('"', "%22"))
    purpose = b'--cut\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
    body = purpose + b"--cut\r\n" + head.encode() + b"\r\n\r\ncontent\r\n--cut--\r\n"
    answer = client.post("/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=cut"})
    if answer.status_code == 400:
        assert answer.json()["error"]["type"] == "invalid_request_error"
        return None
    assert answer.status_code == 200, (name, answer.text)
    kept = str(answer.json()["filename"])
    assert kept == sent.replace("%22", '"') or "\\" in sent
    return str(answer.json()["id"]), kept


def check_sent_in_json(client: httpx.Client, name: str) -> None:
    """An upload of this name says the same name, or was refused."""
    body = {"filename": name, "purpose": "assistants", "bytes": 7, "mime_type": "text/plain"}
    answer = client.post("/v1/uploads", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400 or (answer.status_code == 200 and answer.json()["filename"] == name), name
