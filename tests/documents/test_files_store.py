"""The Files API and its object store: a real S3 server, one that is down, a disk that is full. PROMISES R11, S11."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from storage.objects import open_objects
from tests.documents.app import documents
from tests.documents.test_files_api import BODY, FORM, PURPOSE, form
from tests.s3 import S3Server
from tests.stub import until


@pytest.mark.slow
def test_on_s3_a_url_gets_just_this_content_for_a_while(s3_server: S3Server, tmp_path: Path) -> None:
    """Slow: it starts an S3 server. PROMISES S11."""
    with s3_server.client() as s3:
        s3.create_bucket(Bucket="presigned")
    objects = open_objects(
        "s3://presigned/docs", base=tmp_path, endpoint_url=None, region=None, environ=s3_server.environ
    )
    with capture_logs() as logged, documents(tmp_path, objects) as running, running.http() as http:
        made = running.sdk().files.create(file=("n\u00f6te.txt", BODY, "text/plain"), purpose="user_data")
        assert running.sdk().files.content(made.id).content == BODY
        part = http.get(f"/v1/files/{made.id}/content", headers={"range": "bytes=-7"})
        assert (part.status_code, part.content) == (206, BODY[-7:])
        answer = http.get(f"/v1/files/{made.id}/content?presigned=1")
        assert answer.headers["cache-control"] == "no-store"
        url = answer.json()["url"]
        assert 290 < answer.json()["expires_at"] - time.time() <= 300
        fetched = httpx.get(url)
        assert (fetched.content, fetched.headers["content-type"]) == (BODY, "text/plain")
        assert "n%C3%B6te.txt" in fetched.headers["content-disposition"]
        assert httpx.get(url.replace(made.id, made.id[:-1])).status_code == 403
        assert httpx.delete(url).status_code == 403
        assert not [line for line in logged if "X-Amz" in str(line)]
        running.sdk().files.delete(made.id)
        running.app.sweep()
        assert httpx.get(url).status_code == 404


def test_an_object_store_that_is_down_is_503(tmp_path: Path) -> None:
    environ = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
    objects = open_objects(
        "s3://bucket", base=tmp_path, endpoint_url="http://127.0.0.1:9", region="us-east-1", environ=environ
    )
    with documents(tmp_path, objects) as running, running.http() as http:
        answer = http.post("/v1/files", content=form(b"a", b"x", PURPOSE), headers=FORM)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert "127.0.0.1" not in answer.text
        assert http.get("/v1/files").json()["data"] == []
        until(lambda: not running.app.spooled)


def test_a_file_whose_content_is_gone_is_503_not_half_an_answer(tmp_path: Path) -> None:
    with documents(tmp_path) as running:
        id = running.sdk().files.create(file=("a", BODY), purpose="user_data").id
        running.app.stored[0].unlink()
        with running.http() as http:
            assert http.get(f"/v1/files/{id}/content").status_code == 503


def test_a_disk_with_too_little_room_is_503(tmp_path: Path) -> None:
    with documents(tmp_path, free_bytes_min=2**60) as running, running.http() as http:
        answer = http.post("/v1/files", content=form(b"a", b"x", PURPOSE), headers=FORM)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert not running.app.spooled


def test_what_a_dead_process_left_in_the_spool_is_removed(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "left").write_bytes(b"half")
    with documents(tmp_path) as running:
        assert not running.app.spooled
