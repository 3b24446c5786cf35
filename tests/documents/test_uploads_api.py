"""The Uploads API against its real parts: parts in any order, states, digests, what the SDK does."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from orchestrator.documents.api_uploads import PART_BYTES_MAX
from tests.documents.app import FILE_BYTES_MAX, Documents, documents
from tests.hostile.edge import begun, reply
from tests.stub import until


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Documents]:
    with documents(tmp_path_factory.mktemp("documents")) as running:
        yield running


def begin(client: openai.OpenAI, size: int) -> str:
    """An upload's id."""
    return client.uploads.create(bytes=size, filename="b.txt", mime_type="text/plain", purpose="user_data").id


def parts(client: openai.OpenAI, upload: str, *contents: bytes) -> list[str]:
    """The ids of parts."""
    return [client.uploads.parts.create(upload, data=content).id for content in contents]


def test_an_upload_s_life(shared: Documents) -> None:
    client = shared.sdk()
    upload = client.uploads.create(
        bytes=9,
        filename="naïve.txt",
        mime_type="text/plain",
        purpose="assistants",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (upload.object, upload.status, upload.bytes, upload.file) == ("upload", "pending", 9, None)
    assert upload.expires_at == upload.created_at + 3600
    first = client.uploads.parts.create(upload.id, data=b"world")
    assert (first.object, first.upload_id) == ("upload.part", upload.id)
    second = client.uploads.parts.create(upload.id, data=b"hell")
    ids, md5 = [second.id, first.id], hashlib.md5(b"hellworld").hexdigest()
    done = client.uploads.complete(upload.id, part_ids=ids, md5=md5)
    assert done.status == "completed" and done.file is not None
    assert (done.file.filename, done.file.bytes, done.file.purpose) == ("naïve.txt", 9, "assistants")
    assert done.file.expires_at == done.file.created_at + 7200
    assert client.files.content(done.file.id).content == b"hellworld"
    assert client.files.retrieve(done.file.id) == done.file
    assert client.uploads.complete(upload.id, part_ids=ids) == done
    shared.app.sweep()
    assert len(shared.app.stored) == 1
    client.files.delete(done.file.id)
    assert client.uploads.complete(upload.id, part_ids=ids).file is None


def test_the_sdk_cuts_a_file_into_parts(shared: Documents, tmp_path: Path) -> None:
    content = b"0123456789" * 300_000
    (tmp_path / "big.txt").write_bytes(content)
    done = shared.sdk().uploads.upload_file_chunked(
        file=tmp_path / "big.txt",
        mime_type="text/plain",
        purpose="user_data",
        part_size=1_000_000,
        md5=hashlib.md5(content).hexdigest(),
    )
    assert done.file is not None
    assert shared.sdk().files.content(done.file.id).content == content


def test_zero_bytes_without_parts(shared: Documents) -> None:
    done = shared.sdk().uploads.complete(begin(shared.sdk(), 0), part_ids=[])
    assert done.file is not None and done.file.bytes == 0


def test_what_does_not_add_up_is_400_and_may_be_mended(shared: Documents) -> None:
    client = shared.sdk()
    upload = begin(client, 4)
    ids = parts(client, upload, b"ab", b"cd", b"e")
    other = parts(client, begin(client, 2), b"zz")
    for wanted, md5, param in (
        ([], None, "part_ids"),
        (ids[:1], None, "part_ids"),
        (ids, None, "part_ids"),
        ([ids[0], ids[0]], None, "part_ids"),
        ([ids[0], other[0]], None, "part_ids"),
        ([ids[0], "part_" + "0" * 32], None, "part_ids"),
        (ids[:2], "0" * 32, "md5"),
        (ids[:2], "nonsense", "md5"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.uploads.complete(upload, part_ids=wanted, md5=md5 or openai.omit)
        assert caught.value.param == param
    until(lambda: not shared.app.spooled)
    assert client.uploads.complete(upload, part_ids=ids[:2]).status == "completed"


@pytest.mark.parametrize("end", ["completed", "cancelled", "expired"])
def test_an_ended_upload_takes_nothing(tmp_path: Path, end: str) -> None:
    with documents(tmp_path) as running:
        client = running.sdk()
        upload = begin(client, 2)
        ids = parts(client, upload, b"ab", b"cd")
        if end == "completed":
            client.uploads.complete(upload, part_ids=ids[:1])
        elif end == "cancelled":
            assert client.uploads.cancel(upload).status == "cancelled"
        else:
            running.app.later_s = 3601
        for call in (
            lambda: parts(client, upload, b"x"),
            lambda: client.uploads.cancel(upload),
            lambda: client.uploads.complete(upload, part_ids=ids[1:]),
        ):
            with pytest.raises(openai.BadRequestError, match=end):
                call()
        running.app.sweep()
        assert len(running.app.stored) == (1 if end == "completed" else 0)
        with pytest.raises(openai.BadRequestError, match=end):
            client.uploads.cancel(upload)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "bytes"),
        ({"bytes": -1}, "bytes"),
        ({"bytes": True}, "bytes"),
        ({"bytes": 1.5}, "bytes"),
        ({"bytes": FILE_BYTES_MAX + 1}, "bytes"),
        ({"bytes": 10**30}, "bytes"),
        ({"bytes": 1}, "mime_type"),
        ({"bytes": 1, "mime_type": "a/b"}, "filename"),
        ({"bytes": 1, "mime_type": "a/b", "filename": "a\n"}, "filename"),
        ({"bytes": 1, "mime_type": "a/b", "filename": "a"}, "purpose"),
        ({"bytes": 1, "mime_type": "a/b", "filename": "a", "purpose": ["batch"]}, "purpose"),
        ({"bytes": 1, "mime_type": "a/b", "filename": "a", "purpose": "batch", "expires_after": 1}, "expires_after"),
        ({"bites": 1}, "bites"),
    ],
    ids=str,
)
def test_bad_fields_are_named(shared: Documents, body: dict[str, object], param: str) -> None:
    with shared.http() as http:
        answer = http.post("/v1/uploads", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff", b"1", b"[" * 100_000])
def test_bodies_that_are_no_object_are_400(shared: Documents, body: bytes) -> None:
    with shared.http() as http:
        answer = http.post("/v1/uploads", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_a_part_has_a_limit_of_its_own(shared: Documents) -> None:
    client = shared.sdk()
    upload = begin(client, 2)
    path, length = f"/v1/uploads/{upload}/parts".encode(), b"content-length: %d" % (PART_BYTES_MAX + 2**20)
    connection = socket.create_connection(("127.0.0.1", shared.port), timeout=10)
    connection.sendall(begun(path, b"authorization: Bearer ada", length))
    assert reply(connection).statuses == [413]
    with shared.http() as http:
        answer = http.post(f"/v1/uploads/{upload}/parts", files={"datum": b"x"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "data")
    with pytest.raises(openai.BadRequestError, match="at most"):
        parts(client, upload, b"x" * FILE_BYTES_MAX, b"x")


def test_completed_many_times_at_once_it_is_one_file(shared: Documents) -> None:
    client = shared.sdk()
    upload = begin(client, 6)
    ids = parts(client, upload, b"abc", b"def")
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: client.uploads.complete(upload, part_ids=ids), range(8)))
    assert len({answer.file.id for answer in done if answer.file}) == 1
    assert done[0].file is not None
    assert client.files.content(done[0].file.id).content == b"abcdef"


def test_of_an_end_and_another_one_wins(shared: Documents) -> None:
    """Cancelled and completed at once, in either order of arrival: what is told is what is."""
    client = shared.sdk()
    for _ in range(10):
        upload = begin(client, 2)
        ids = parts(client, upload, b"ab")
        with ThreadPoolExecutor(2) as pool:
            completed = pool.submit(client.uploads.complete, upload, part_ids=ids)
            cancelled = pool.submit(client.uploads.cancel, upload)
        told = [future.exception() for future in (completed, cancelled)]
        assert sum(error is None for error in told) == 1, told
        until(lambda: not shared.app.spooled)
