"""The Files API against its real parts: what the stock SDK does, hostile names, ranges, faults."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from orchestrator.documents.fields import PURPOSES
from tests.documents.app import FILE_BYTES_MAX, Documents, documents, sha256
from tests.hostile.edge import begun, reply
from tests.stub import until

BODY = b"0123456789" * 1000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Documents]:
    with documents(tmp_path_factory.mktemp("documents")) as running:
        yield running


def form(filename: bytes, content: bytes, *fields: tuple[bytes, bytes]) -> bytes:
    """A form, as it is sent."""
    lines = [b'--B\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n' % field for field in fields]
    head = b'--B\r\ncontent-disposition: form-data; name="file"; filename="%b"\r\n\r\n' % filename
    return b"".join([*lines, head, content, b"\r\n--B--\r\n"])


FORM = {"content-type": "multipart/form-data; boundary=B"}
HEAD = (b"authorization: Bearer ada", b"content-type: " + FORM["content-type"].encode(), b"connection: close")


# --- what the SDK does ---


def test_a_file_s_life(shared: Documents) -> None:
    client = shared.sdk()
    made = client.files.create(file=("notes.txt", BODY), purpose="assistants")
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(BODY), "notes.txt", "assistants")
    assert (made.status, made.status_details, made.expires_at) == ("processed", None, None)
    assert abs(made.created_at - time.time()) < 60
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == BODY
    assert made.id in [file.id for file in client.files.list()]
    deleted = client.files.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "file", True)
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_purposes(shared: Documents, purpose: str) -> None:
    made = shared.sdk("bob").files.create(file=("a", b"x"), purpose=purpose)  # type: ignore[arg-type]
    assert made.purpose == purpose
    assert [f.purpose for f in shared.sdk("bob").files.list(purpose=purpose)] == [purpose]


def test_zero_bytes_and_duplicates(shared: Documents) -> None:
    client = shared.sdk()
    empty = client.files.create(file=("empty", b""), purpose="user_data")
    assert (empty.bytes, client.files.content(empty.id).content) == (0, b"")
    twins = [client.files.create(file=("twin.txt", BODY), purpose="user_data") for _ in range(2)]
    assert twins[0].id != twins[1].id
    client.files.delete(twins[0].id)
    shared.app.sweep()
    assert client.files.content(twins[1].id).content == BODY


def test_a_large_file_goes_and_comes_in_pieces(shared: Documents) -> None:
    body = BODY * 3500
    assert 32 * 2**20 < len(body) < FILE_BYTES_MAX
    client = shared.sdk()
    made = client.files.create(file=("large.bin", io.BytesIO(body)), purpose="user_data")
    with client.files.with_streaming_response.content(made.id) as answer:
        assert sha256(b"".join(answer.iter_bytes())) == sha256(body)


def test_expiry(tmp_path: Path) -> None:
    with documents(tmp_path) as running:
        client = running.sdk()
        expiry: dict[str, object] = {"anchor": "created_at", "seconds": 3600}
        made = client.files.create(file=("a", b"x"), purpose="user_data", expires_after=expiry)  # type: ignore[arg-type]
        assert made.expires_at == made.created_at + 3600
        kept = client.files.create(file=("b", b"y"), purpose="user_data")
        running.app.later_s = 3601
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(made.id)
        assert running.app.sweep() == 2  # the file, and its content
        assert [file.id for file in client.files.list()] == [kept.id]
        assert len(running.app.stored) == 1
        assert running.app.sweep() == 0


def test_listings_have_pages(tmp_path: Path) -> None:
    with documents(tmp_path) as running:
        client = running.sdk()
        made = [client.files.create(file=(str(n), b"x"), purpose="batch" if n % 2 else "vision").id for n in range(7)]
        assert [file.id for file in client.files.list(limit=3)] == made[::-1]
        assert [file.id for file in client.files.list(limit=2, order="asc")] == made
        assert [file.id for file in client.files.list(limit=2, order="asc", purpose="batch")] == made[1::2]
        page = client.files.list(limit=3, order="asc", after=made[1])
        assert ([file.id for file in page.data], page.has_more) == (made[2:5], True)
        assert not client.files.list(after=made[0]).data
        with running.http() as http:
            raw = http.get("/v1/files?limit=2&order=asc").json()
            assert (raw["object"], raw["first_id"], raw["last_id"]) == ("list", made[0], made[1])
            none = http.get("/v1/files?purpose=evals").json()
            assert none == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
            for bad in (
                "limit=0",
                "limit=10001",
                "limit=x",
                "limit=-1",
                "limit=99999999999999999999",
                "order=up",
                "after=file-x",
            ):
                answer = http.get(f"/v1/files?{bad}")
                assert answer.status_code == 400
                assert answer.json()["error"]["param"] == bad.partition("=")[0]
        other = running.sdk("bob").files.create(file=("o", b"x"), purpose="batch")
        with pytest.raises(openai.BadRequestError):
            client.files.list(after=other.id)


# --- what is refused ---


PURPOSE = (b"purpose", b"batch")
ANCHOR = (b"expires_after[anchor]", b"created_at")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ([], "purpose"),
        ([(b"purpose", b"batch_output")], "purpose"),
        ([(b"purpose", b"")], "purpose"),
        ([PURPOSE, (b"expires_after[anchor]", b"now"), (b"expires_after[seconds]", b"3600")], "expires_after"),
        ([PURPOSE, (b"expires_after[seconds]", b"3600")], "expires_after"),
        ([PURPOSE, ANCHOR], "expires_after"),
        ([PURPOSE, ANCHOR, (b"expires_after[seconds]", b"60")], "expires_after"),
        ([PURPOSE, ANCHOR, (b"expires_after[seconds]", b"2592001")], "expires_after"),
        ([PURPOSE, ANCHOR, (b"expires_after[seconds]", b"9" * 30)], "expires_after"),
        ([PURPOSE, (b"expires_after", b"3600")], "expires_after"),
        ([PURPOSE, (b"porpoise", b"1")], "porpoise"),
    ],
    ids=str,
)
def test_bad_fields_are_named(shared: Documents, fields: list[tuple[bytes, bytes]], param: str) -> None:
    before = len(shared.app.stored)
    with shared.http() as http:
        answer = http.post("/v1/files", content=form(b"a", b"x", *fields), headers=FORM)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert len(shared.app.stored) == before
    until(lambda: not shared.app.spooled)


@pytest.mark.parametrize("filename", ["", "a" * 256, "a\x7fb"], ids=["empty", "long", "delete"])
def test_bad_names_are_400(shared: Documents, filename: str) -> None:
    with shared.http() as http:
        body = form(filename.encode(), b"x", PURPOSE)
        answer = http.post("/v1/files", content=body, headers=FORM)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")


def test_a_form_without_a_file_is_400(shared: Documents) -> None:
    with shared.http() as http:
        answer = http.post("/v1/files", files={"other": ("a", b"x")}, data={"purpose": "batch"})
        assert answer.status_code == 400
        answer = http.post("/v1/files", json={"purpose": "batch"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_form")


@pytest.mark.parametrize("expect", [(), (b"expect: 100-continue",)])
def test_oversize_is_413_before_the_body_is_read(shared: Documents, expect: tuple[bytes, ...]) -> None:
    connection = socket.create_connection(("127.0.0.1", shared.port), timeout=10)
    connection.sendall(begun(b"/v1/files", b"content-length: 20000000000", *HEAD, *expect))
    told = reply(connection)
    assert told.statuses == [413]
    assert told.error()["code"] == "request_too_large"


@pytest.mark.parametrize("over", [1, 8 * 2**20])
def test_oversize_without_a_length_is_413_and_leaves_nothing(shared: Documents, over: int) -> None:
    """Also where the body as a whole would still be within the connection's limit."""
    before = len(shared.app.stored)

    def pieces() -> Iterator[bytes]:
        head, tail = form(b"a", b"@", PURPOSE).split(b"@")
        yield head
        for _ in range(FILE_BYTES_MAX // 2**20):
            yield b"x" * 2**20
        yield b"x" * over
        yield tail

    with shared.http() as http:
        answer = http.post("/v1/files", content=pieces(), headers=FORM)
    assert answer.status_code == 413
    until(lambda: not shared.app.spooled)
    assert len(shared.app.stored) == before


def test_exactly_as_large_as_allowed(shared: Documents) -> None:
    made = shared.sdk().files.create(file=("most", b"x" * FILE_BYTES_MAX), purpose="user_data")
    assert made.bytes == FILE_BYTES_MAX
    shared.sdk().files.delete(made.id)


@pytest.mark.parametrize("cut", ["close", "short"])
def test_a_cut_upload_leaves_nothing(shared: Documents, cut: str) -> None:
    before = len(shared.app.stored)
    body = form(b"a", b"x" * 2_000_000, PURPOSE)
    connection = socket.create_connection(("127.0.0.1", shared.port), timeout=10)
    length = len(body) if cut == "close" else len(body) - 9
    connection.sendall(begun(b"/v1/files", b"content-length: %d" % length, *HEAD) + body[:1_500_000])
    until(lambda: shared.app.spooled)
    if cut == "short":
        connection.sendall(body[1_500_000:length])
        assert reply(connection).statuses == [400]
    connection.close()
    until(lambda: not shared.app.spooled)
    assert len(shared.app.stored) == before


def test_uploads_at_once_are_bounded(tmp_path: Path) -> None:
    with documents(tmp_path, files_max=1) as running:
        body = form(b"a", b"x" * 100, PURPOSE)
        connection = socket.create_connection(("127.0.0.1", running.port), timeout=10)
        connection.sendall(begun(b"/v1/files", b"content-length: %d" % len(body), *HEAD))
        until(lambda: running.app.spooled)
        with running.http() as http:
            answer = http.post("/v1/files", content=body, headers=FORM)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_uploads")
            assert int(answer.headers["retry-after"]) >= 1
            connection.sendall(body)
            assert reply(connection).statuses == [200]
            assert http.post("/v1/files", content=body, headers=FORM).status_code == 200


# --- content ---


@pytest.mark.parametrize(
    ("given", "status", "start", "end"),
    [
        ({}, 200, 0, 10_000),
        ({"range": "bytes=0-0"}, 206, 0, 1),
        ({"range": "bytes=10-19"}, 206, 10, 20),
        ({"range": "bytes=9990-"}, 206, 9990, 10_000),
        ({"range": "bytes=-5"}, 206, 9995, 10_000),
        ({"range": "bytes=-99999"}, 206, 0, 10_000),
        ({"range": "bytes=9999-99999"}, 206, 9999, 10_000),
        ({"range": "bytes=0-1,5-6"}, 200, 0, 10_000),
        ({"range": "lines=1-2"}, 200, 0, 10_000),
        ({"range": "bytes=5-1"}, 200, 0, 10_000),
        ({"range": "bytes=0-9", "if-range": f'"{sha256(BODY)}"'}, 206, 0, 10),
        ({"range": "bytes=0-9", "if-range": '"another"'}, 200, 0, 10_000),
        ({"range": "bytes=0-9", "if-range": "Sat, 21 Nov 2026 11:00:00 GMT"}, 200, 0, 10_000),
    ],
    ids=str,
)
def test_ranges(shared: Documents, given: dict[str, str], status: int, start: int, end: int) -> None:
    id = shared.sdk().files.create(file=("r", BODY), purpose="user_data").id
    with shared.http() as http:
        answer = http.get(f"/v1/files/{id}/content", headers=given)
    assert (answer.status_code, answer.content) == (status, BODY[start:end])
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers.get("content-range") == (f"bytes {start}-{end - 1}/10000" if status == 206 else None)


@pytest.mark.parametrize("given", ["bytes=10000-", "bytes=10000-10001", "bytes=-0"])
def test_ranges_outside_are_416(shared: Documents, given: str) -> None:
    id = shared.sdk().files.create(file=("r", BODY), purpose="user_data").id
    with shared.http() as http:
        answer = http.get(f"/v1/files/{id}/content", headers={"range": given})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */10000")


def test_content_is_kept_and_never_run(shared: Documents) -> None:
    made = shared.sdk().files.create(file=('ü\u202e".html', b"<script>", "text/html"), purpose="user_data")
    assert made.filename == 'ü\u202e".html'
    with shared.http() as http:
        for answer in (http.get(f"/v1/files/{made.id}/content"), http.head(f"/v1/files/{made.id}/content")):
            assert answer.status_code == 200
            heads = answer.headers
            assert heads["content-disposition"] == "attachment; filename*=UTF-8''%C3%BC%E2%80%AE%22.html"
            assert (heads["content-type"], heads["content-length"]) == ("text/html", "8")
            assert (heads["x-content-type-options"], heads["content-security-policy"]) == ("nosniff", "sandbox")
            assert (heads["etag"], heads["accept-ranges"]) == (f'"{sha256(b"<script>")}"', "bytes")
        refused = http.get(f"/v1/files/{made.id}/content?presigned=1")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "presigned_unavailable")


def test_methods_that_a_path_does_not_take(shared: Documents) -> None:
    with shared.http() as http:
        answer = http.put("/v1/files")
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


# --- who may ---


def test_scopes(shared: Documents) -> None:
    """Each route with each key: only those with one of its scopes get past 401 and 403."""
    allowed = {"ada": {"upload", "realtime"}, "reader": {"realtime"}, "writer": {"upload"}, "monitor": set[str]()}
    for key, scopes in allowed.items():
        with shared.http(key) as http:
            for endpoint in shared.app.endpoints:
                path = endpoint.path.format(file="file-x", upload="upload_x")
                status = http.request(endpoint.method, path).status_code
                assert (status == 403) is not bool(scopes & set(endpoint.scopes)), (endpoint, key)
                assert http.request(endpoint.method, path, headers={"authorization": ""}).status_code == 401


def test_another_s_id_is_an_unknown_one(shared: Documents) -> None:
    """Also a malformed one: the same answer, but for the id."""
    mine = shared.sdk("bob")
    file = mine.files.create(file=("secret", b"x"), purpose="user_data").id
    upload = mine.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="user_data").id
    unknown = {"file": "file-" + "0" * 32, "upload": "upload_" + "0" * 32}
    forms = ({"file": file, "upload": upload}, unknown, {"file": "X", "upload": "X"})
    with shared.http("ada") as http:
        for endpoint in [endpoint for endpoint in shared.app.endpoints if "{" in endpoint.path]:
            told = set()
            for ids in forms:
                body = b'{"part_ids": []}' if endpoint.path.endswith("complete") else b""
                answer = http.request(endpoint.method, endpoint.path.format(**ids), content=body)
                assert answer.status_code == 404
                assert answer.json()["error"]["code"] in ("file_not_found", "upload_not_found")
                told.add(answer.text.replace(ids["file"], "X").replace(ids["upload"], "X"))
            assert len(told) == 1, (endpoint, told)
    assert mine.files.retrieve(file).id == file
    assert file not in shared.sdk("ada").files.list(limit=10_000).to_json()
