"""What only S3 can do, and do wrong: signed URLs, keys, outages, uploads that are cut off."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from orchestrator.documents.ports import ObjectStore
from orchestrator.errors import ObjectsUnavailable
from storage.objects import open_objects
from storage.s3_connection import OUTAGE_S, REFUSED_S_MAX, SILENT_S_MAX
from storage.s3_upload import PART_BYTES
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.s3 import SECRET_KEY, S3Server, environ, running_s3
from tests.storage.test_objects import keys, spooled, whole
from tests.stub import until

PREFIX = "some/prefix"


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """A new one."""
    name = f"test-{secrets.token_hex(6)}"
    with s3_server.client() as client:
        client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """Before the server that all tests share."""
    with fault_proxy(s3_server.port) as made:
        yield made


@contextlib.asynccontextmanager
async def opened(bucket: str, variables: dict[str, str]) -> AsyncIterator[ObjectStore]:
    store = open_objects(f"s3://{bucket}/{PREFIX}", base=Path(), endpoint_url=None, region=None, environ=variables)
    try:
        yield store
    finally:
        await store.aclose()


def dangling(server: S3Server, bucket: str) -> int:
    """Uploads in parts that were neither ended nor aborted."""
    with server.client() as client:
        return len(client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()))


def test_a_signed_url_names_the_address_that_clients_reach(s3_server: S3Server, bucket: str) -> None:
    async def url() -> str:
        store = open_objects(
            f"s3://{bucket}",
            base=Path(),
            endpoint_url="http://s3.inside:8333",
            public_endpoint_url=s3_server.url,
            region=None,
            environ=s3_server.environ,
        )
        try:
            return await store.presign("a", seconds=60, filename="a", content_type="text/plain") or ""
        finally:
            await store.aclose()

    with s3_server.client() as client:
        client.put_object(Bucket=bucket, Key="a", Body=b"content")
    assert httpx.get(asyncio.run(url())).content == b"content"


def test_a_signed_url_gets_one_object_for_a_while(s3_server: S3Server, bucket: str) -> None:
    async def urls() -> tuple[str, str]:
        async with opened(bucket, s3_server.environ) as store:
            await store.put_bytes("a", b"content")
            await store.put_bytes("b", b"another's")
            name = 'naïve "x"\r\nSet-Cookie: a=b; 文\\..pdf'
            long = await store.presign("a", seconds=10**6, filename=name, content_type="text/html")
            brief = await store.presign("a", seconds=1, filename="x", content_type="text/html\r\nx: y")
            assert long and brief
            return long, brief

    long, brief = asyncio.run(urls())
    assert "X-Amz-Expires=300" in long and SECRET_KEY not in long
    answer = httpx.get(long)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"content", "text/html")
    assert "set-cookie" not in answer.headers
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    assert httpx.get(long.replace(f"{PREFIX}/a", f"{PREFIX}/b")).status_code == 403
    assert httpx.get(long.replace("X-Amz-Expires=300", "X-Amz-Expires=900")).status_code == 403
    assert httpx.put(long, content=b"changed").status_code == 403
    assert httpx.delete(long).status_code == 403
    assert "response-content-type=application%2Foctet-stream" in brief
    assert until(lambda: httpx.get(brief).status_code == 403, 10, every_s=0.2)


def test_a_wrong_key_and_a_missing_one_are_told_of_without_showing_them(s3_server: S3Server, bucket: str) -> None:
    async def check() -> None:
        wrong = {**s3_server.environ, "AWS_SECRET_ACCESS_KEY": "wrong-secret-9876"}
        async with opened(bucket, wrong) as store:
            with pytest.raises(ObjectsUnavailable, match="refuses the key: check AWS_ACCESS_KEY_ID") as caught:
                await store.check()
            assert "9876" not in str(caught.value)
        async with opened(bucket, {**s3_server.environ, "AWS_ENDPOINT_URL_S3": "http://me:pass@127.0.0.1:9"}) as store:
            with pytest.raises(ObjectsUnavailable, match=re.escape("at 127.0.0.1:9 can't be reached")) as caught:
                await store.check()
            assert "pass" not in str(caught.value)
        async with opened(bucket, {**s3_server.environ, "AWS_ENDPOINT_URL_S3": "no address"}) as store:
            with pytest.raises(ObjectsUnavailable, match="no proper address"):
                await store.check()

    asyncio.run(check())


def test_without_any_key_it_says_what_to_set(
    s3_server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))

    async def check() -> None:
        async with opened(bucket, {"AWS_ENDPOINT_URL_S3": s3_server.url}) as store:
            with pytest.raises(ObjectsUnavailable, match="needs a key: set AWS_ACCESS_KEY_ID"):
                await store.check()

    asyncio.run(check())


def test_a_file_that_is_not_what_was_said_is_not_stored(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with opened(bucket, s3_server.environ) as store:
            for size in (10, 2 * PART_BYTES):
                source, _ = spooled(tmp_path, bytes(size))
                with pytest.raises(ObjectsUnavailable, match="changed on its way"):
                    await store.put("x", source, sha256="0" * 64)
                assert source.exists()
            assert await keys(store) == []

    asyncio.run(check())
    assert dangling(s3_server, bucket) == 0


@pytest.mark.parametrize("size", [100_000, 3 * PART_BYTES])
def test_what_is_damaged_on_the_way_is_not_stored(
    size: int, s3_server: S3Server, proxy: FaultProxy, bucket: str, tmp_path: Path
) -> None:
    async def check() -> None:
        async with opened(bucket, environ(proxy.url)) as store:
            await store.check()
            source, digest = spooled(tmp_path, secrets.token_bytes(size))
            proxy.corrupt_after(size // 2)
            with pytest.raises(ObjectsUnavailable, match="received other bytes than were sent"):
                await store.put("x", source, sha256=digest)
            assert await keys(store) == []
            await store.put("x", source, sha256=digest)

    asyncio.run(check())


@pytest.mark.parametrize("size", [pytest.param(PART_BYTES, marks=pytest.mark.slow), 5 * PART_BYTES])
def test_an_upload_that_is_cut_leaves_nothing(
    size: int, s3_server: S3Server, proxy: FaultProxy, bucket: str, tmp_path: Path
) -> None:
    async def check() -> None:
        async with opened(bucket, environ(proxy.url)) as store:
            data = secrets.token_bytes(size)
            source, digest = spooled(tmp_path, data)
            await store.check()
            proxy.cut_after(size // 2)
            with pytest.raises(ObjectsUnavailable, match="can't be reached"):
                await store.put("x", source, sha256=digest)
            proxy.up()
            await asyncio.sleep(OUTAGE_S)
            assert await keys(store) == []
            await store.sweep(older_than_s=0)
            assert dangling(s3_server, bucket) == 0
            await store.put("x", source, sha256=digest)
            assert await whole(store, "x") == data

    asyncio.run(check())


def test_an_upload_that_nobody_waits_for_is_aborted(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    async def check() -> None:
        with fault_proxy(s3_server.port) as proxy:
            async with opened(bucket, environ(proxy.url)) as store:
                source, digest = spooled(tmp_path, bytes(12 * PART_BYTES))
                putting = asyncio.ensure_future(store.put("x", source, sha256=digest))
                await asyncio.to_thread(until, lambda: proxy.sent_bytes >= PART_BYTES)
                assert await store.sweep(older_than_s=0) == 0  # it is under way
                putting.cancel()
                await asyncio.wait([putting])
            assert source.exists() and proxy.sent_bytes < 8 * PART_BYTES

    asyncio.run(check())
    assert dangling(s3_server, bucket) == 0
    with s3_server.client() as client:
        assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_others_uploads_are_not_swept(s3_server: S3Server, bucket: str) -> None:
    async def check() -> None:
        async with opened(bucket, s3_server.environ) as store:
            assert await store.sweep(older_than_s=3600) == 0
            assert dangling(s3_server, bucket) == 2
            assert await store.sweep(older_than_s=-5) == 1

    with s3_server.client() as client:
        ours = client.create_multipart_upload(Bucket=bucket, Key=f"{PREFIX}/x")
        theirs = client.create_multipart_upload(Bucket=bucket, Key="elsewhere/x")
        asyncio.run(check())
        (left,) = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
        assert left["UploadId"] == theirs["UploadId"] != ours["UploadId"]


def test_what_others_put_there_is_not_ours(s3_server: S3Server, bucket: str) -> None:
    async def check() -> None:
        async with opened(bucket, s3_server.environ) as store:
            await store.put_bytes("ours", b"")
            assert await keys(store) == ["ours"]

    with s3_server.client() as client:
        for key in ("elsewhere", f"{PREFIX}/a b", f"{PREFIX}/ü", f"{PREFIX}2/x"):
            client.put_object(Bucket=bucket, Key=key)
    asyncio.run(check())


def test_down_is_told_at_once_and_back_is_noticed(proxy: FaultProxy, bucket: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with opened(bucket, environ(proxy.url)) as store:
            await store.put_bytes("x", b"1")
            source, digest = spooled(tmp_path, b"2")
            reading = aiter(store.read("x"))
            proxy.refuse()
            began = time.monotonic()
            calls = [store.put("y", source, sha256=digest) for _ in range(10)]
            calls += [store.put_bytes("y", b"") for _ in range(30)]
            calls += [store.delete("x"), store.check()]
            found = await asyncio.gather(*calls, anext(reading), keys(store), return_exceptions=True)
            assert time.monotonic() - began < REFUSED_S_MAX
            assert {type(each) for each in found} == {ObjectsUnavailable}
            assert {re.sub(r":\d+ ", ": ", str(each)) for each in found} == {
                f"the bucket '{bucket}' at 127.0.0.1: can't be reached: "
                "see whether it runs, and whether its address is right"
            }
            proxy.up()
            await asyncio.sleep(OUTAGE_S)
            await store.check()
            await store.put("y", source, sha256=digest)
            assert await keys(store) == ["x", "y"]

    asyncio.run(check())


@pytest.mark.slow
def test_silence_is_told_in_time_to_all_who_wait(proxy: FaultProxy, bucket: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with opened(bucket, environ(proxy.url)) as store:
            await store.put_bytes("x", bytes(4 * 2**20))
            sources = [spooled(tmp_path, bytes(PART_BYTES * n // 2)) for n in range(6)]
            proxy.hang()
            began = time.monotonic()
            calls = [store.put(f"y{n}", source, sha256=digest) for n, (source, digest) in enumerate(sources)]
            calls += [store.put_bytes(f"z{n}", b"") for n in range(50)]
            found = await asyncio.gather(*calls, whole(store, "x"), keys(store), store.check(), return_exceptions=True)
            assert time.monotonic() - began < SILENT_S_MAX
            assert {type(each) for each in found} == {ObjectsUnavailable}
            assert all(source.exists() for source, _ in sources)
            proxy.drop()
            proxy.up()
            await asyncio.sleep(OUTAGE_S)
            await store.check()

    asyncio.run(check())


@pytest.mark.slow
def test_memory_is_bounded_however_large_the_file(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    done = _run(_UPLOADER, bucket, s3_server, tmp_path / "large", str(300 * 2**20), "3")
    assert done.stdout is not None
    with done.stdout:
        grown_mib = float(done.stdout.read().split()[-1])
    assert done.wait(60) == 0
    assert 0 < grown_mib < 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_killed_uploader_leaves_nothing_visible(seed: int, s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    with fault_proxy(s3_server.port) as proxy:
        done = _run(_UPLOADER, bucket, s3_server, tmp_path / "large", str(100 * 2**20), "1", url=proxy.url)
        until(lambda: proxy.sent_bytes > seed * 4 * 2**20 + 1)
        done.kill()
        done.wait(10)
    assert done.stdout is not None
    acknowledged = b"acknowledged" in done.stdout.read()
    done.stdout.close()

    async def check() -> None:
        async with opened(bucket, s3_server.environ) as store:
            await store.sweep(older_than_s=-5)
            sizes = [each.bytes async for each in store.list("large")]
            assert sizes == [100 * 2**20] if acknowledged else sizes in ([], [100 * 2**20])

    asyncio.run(check())
    assert dangling(s3_server, bucket) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)  # the server sometimes needs 20 s after a kill
def test_what_was_acknowledged_outlives_kills_of_the_server(tmp_path: Path) -> None:
    acknowledged: dict[str, str] = {}

    async def put_until_it_dies(server: S3Server, seed: int) -> None:
        async with opened("kills", server.environ) as store:
            await store.check()
            killing = asyncio.get_running_loop().run_in_executor(None, _kill_after, server, seed)
            with contextlib.suppress(ObjectsUnavailable):
                for n in range(10_000):
                    data = hashlib.sha256(f"{seed}/{n}".encode()).digest() * (1 + n % 7 * 5000)
                    await store.put_bytes(f"{seed}/{n}", data)
                    acknowledged[f"{seed}/{n}"] = hashlib.sha256(data).hexdigest()
            await killing

    async def verify(server: S3Server) -> None:
        async with opened("kills", server.environ) as store:
            for key, digest in acknowledged.items():
                data = await store.read_bytes(key, bytes_max=2 * 2**20)
                assert hashlib.sha256(data).hexdigest() == digest, key

    with running_s3(tmp_path) as server:
        for seed in range(10):
            asyncio.run(put_until_it_dies(server, seed))
            server.restart()
        asyncio.run(verify(server))
    assert len(acknowledged) > 100


def _kill_after(server: S3Server, seed: int) -> None:
    time.sleep(0.1 + seed * 0.07)  # the moment is what varies
    server.kill()


def _run(program: str, bucket: str, server: S3Server, path: Path, *more: str, url: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, f"s3://{bucket}/{PREFIX}", str(path), *more],
        env={**os.environ, **environ(url or server.url)},
        stdout=subprocess.PIPE,
    )


_UPLOADER = """
import asyncio, hashlib, os, sys
from pathlib import Path
from storage.objects import open_objects

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

async def main(url, path, size, count):
    store = open_objects(url, base=Path(), endpoint_url=None, region=None, environ=os.environ)
    await store.check()
    before, digest = peak(), hashlib.sha256()
    for _ in range(int(size) // 2**20):
        digest.update(bytes(2**20))
    async def put(name):
        with open(path + name, "wb") as file:
            file.truncate(int(size))
        await store.put("large" + name, Path(path + name), sha256=digest.hexdigest())
    await asyncio.gather(*(put(str(n)) for n in range(int(count))))
    print("acknowledged", flush=True)
    async for _ in store.read("large0"):
        pass
    print(peak() - before, flush=True)
    await store.aclose()

asyncio.run(main(*sys.argv[1:]))
"""
