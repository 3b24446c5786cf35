"""What every object store promises, wherever its bytes lie: the same tests for both."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import random
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.documents.ports import READ_BYTES, ObjectStore
from orchestrator.errors import ConfigError, NotFound, ObjectsUnavailable
from storage.objects import DEFAULT_TYPE, LIST_ROWS, attachment, checked_prefix, is_key, open_objects, safe_type
from storage.s3_upload import MIB, PART_BYTES, PARTS_MAX, part_bytes

Opened = Callable[[], contextlib.AbstractAsyncContextManager[ObjectStore]]
SIZES = (0, 1, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 12345)
NO_KEYS = ("", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.b", ".tmp/x", "a b", "a\nb", "a\0b", "ä", "a" * 256)


@pytest.fixture(params=["file", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens a store that is empty at first, as often as one likes."""
    url, environ = "file://objects", {}
    if request.param == "s3":
        url, environ = f"s3://test-{secrets.token_hex(6)}/some/prefix", request.getfixturevalue("s3_server").environ

    @contextlib.asynccontextmanager
    async def open_one() -> AsyncIterator[ObjectStore]:
        store = open_objects(url, base=tmp_path, endpoint_url=None, region=None, environ=environ)
        try:
            yield store
        finally:
            await store.aclose()

    return open_one


def spooled(folder: Path, data: bytes) -> tuple[Path, str]:
    """A file with this content, and its digest."""
    path = folder / secrets.token_hex(8)
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


async def whole(store: ObjectStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([data async for data in store.read(key, start, end)])


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [each.key async for each in store.list(prefix)]


def test_what_was_put_is_read_again_whatever_its_size(opened: Opened, tmp_path: Path) -> None:
    async def check() -> None:
        contents = {f"a/{size}.bin": random.Random(size).randbytes(size) for size in SIZES}
        async with opened() as store:
            for key, data in contents.items():
                source, digest = spooled(tmp_path, data)
                await store.put(key, source, sha256=digest, content_type="text/plain")
                assert not source.exists()
        async with opened() as store:
            for key, data in contents.items():
                pieces = [piece async for piece in store.read(key)]
                assert b"".join(pieces) == data and all(0 < len(piece) <= READ_BYTES for piece in pieces)
            facts = [each async for each in store.list("")]
            assert {each.key: each.bytes for each in facts} == {key: len(data) for key, data in contents.items()}
            assert all(each.modified_unix > 1.7e9 for each in facts)

    asyncio.run(check())


def test_ranges_are_those_of_python(opened: Opened) -> None:
    async def check() -> None:
        data, chance = random.Random(1).randbytes(700_000), random.Random(2)
        edges = [
            0,
            1,
            2,
            READ_BYTES,
            len(data) - 1,
            len(data),
            len(data) + 1,
            *(chance.randrange(800_000) for _ in "12"),
        ]
        async with opened() as store:
            await store.put_bytes("x", data)
            await store.put_bytes("nothing", b"")
            for start in edges:
                for end in (*edges, None):
                    assert await whole(store, "x", start, end) == data[start:end], (start, end)
                    assert await whole(store, "nothing", start, end) == b""

    asyncio.run(check())


def test_small_objects(opened: Opened) -> None:
    async def check() -> None:
        async with opened() as store:
            await store.put_bytes("x", b"one")
            await store.put_bytes("x", b"three")
            assert await store.read_bytes("x", bytes_max=5) == b"three"
            with pytest.raises(ObjectsUnavailable, match="larger than the 4 bytes"):
                await store.read_bytes("x", bytes_max=4)
            await store.put_bytes("x", b"", content_type="bad\r\nX-Evil: 1")
            assert await store.read_bytes("x", bytes_max=0) == b""

    asyncio.run(check())


def test_what_is_not_there(opened: Opened) -> None:
    async def check() -> None:
        async with opened() as store:
            await store.check()
            assert await keys(store) == []
            await store.put_bytes("a/b", b"x")
            for key in ("a", "a/b/c", "c"):
                for start, end in ((0, None), (5, None), (5, 5)):
                    with pytest.raises(NotFound):
                        await anext(aiter(store.read(key, start, end)))
                with pytest.raises(NotFound):
                    await store.read_bytes(key, bytes_max=1)
                await store.delete(key)
            assert await keys(store) == ["a/b"]
            await store.delete("a/b")
            await store.delete("a/b")
            assert await keys(store) == []

    asyncio.run(check())


def test_listings_are_by_key_and_by_prefix(opened: Opened) -> None:
    async def check() -> None:
        names = [f"t{n % 3}/files/{n:04}" for n in range(60)] + ["t1/parts/x.y_z-0", "t10/files/1", "z"]
        async with opened() as store:
            await asyncio.gather(*(store.put_bytes(name, b"1") for name in names))
            for prefix in ("", "t", "t1", "t1/", "t1/files/00", "t1/parts", "zz", "t0/files/0000", "none/"):
                assert await keys(store, prefix) == sorted(name for name in names if name.startswith(prefix)), prefix

    asyncio.run(check())


@pytest.mark.slow
def test_listings_of_many_pages(opened: Opened) -> None:
    async def check() -> None:
        names = [f"x/{n:04}" for n in range(2 * LIST_ROWS + 1)]
        async with opened() as store:
            for start in range(0, len(names), 500):
                await asyncio.gather(*(store.put_bytes(name, b"1") for name in names[start : start + 500]))
            assert await keys(store) == names

    asyncio.run(check())


def test_hostile_keys_are_refused(opened: Opened, tmp_path: Path) -> None:
    async def check() -> None:
        source, digest = spooled(tmp_path, b"x")
        async with opened() as store:
            await store.check()
            for key in (*NO_KEYS, "../" * 9 + "etc/passwd"):
                with pytest.raises(ValueError, match="not a key"):
                    await store.put(key, source, sha256=digest)
                with pytest.raises(ValueError, match="not a key"):
                    await store.put_bytes(key, b"x")
                with pytest.raises(ValueError, match="not a key"):
                    await whole(store, key)
                with pytest.raises(ValueError, match="not a key"):
                    await store.delete(key)
                with pytest.raises(ValueError, match="not a key"):
                    await store.presign(key, seconds=1, filename="x", content_type="text/plain")
            with pytest.raises(ValueError, match="not the beginning of a key"):
                await keys(store, "../")
            assert await keys(store) == []

    asyncio.run(check())


def test_many_at_a_time_never_see_half_an_object(opened: Opened, tmp_path: Path) -> None:
    async def check() -> None:
        versions = [bytes([n]) * (PART_BYTES + n if n % 4 == 0 else 100_000 + n) for n in range(12)]

        async def put(store: ObjectStore, n: int) -> None:
            source, digest = spooled(tmp_path, versions[n])
            await store.put("shared", source, sha256=digest)
            source, digest = spooled(tmp_path, versions[n])
            await store.put(f"own/{n}", source, sha256=digest)
            assert await whole(store, f"own/{n}") == versions[n]
            assert await store.read_bytes("shared", bytes_max=2 * PART_BYTES) in versions

        async with opened() as store:
            await asyncio.gather(*(put(store, n) for n in range(len(versions))))
            assert len(await keys(store, "own/")) == len(versions)

    asyncio.run(check())


def test_readers_who_go_away_leave_nothing_open(opened: Opened) -> None:
    async def check() -> None:
        process = psutil.Process()
        async with opened() as store:
            await store.put_bytes("x", bytes(4 * 2**20))
            await whole(store, "x")
            gc.collect()
            before = process.num_fds()
            for n in range(30):
                reading = store.read("x")
                await anext(aiter(reading))
                if n % 2:
                    half_way = asyncio.ensure_future(anext(aiter(reading)))
                    await asyncio.sleep(0)
                    half_way.cancel()
                    await asyncio.wait([half_way])
                await reading.aclose()  # type: ignore[attr-defined]
            await whole(store, "x")
            assert process.num_fds() <= before + 1

    asyncio.run(check())


def test_a_closed_store_says_so(opened: Opened) -> None:
    async def check() -> None:
        async with opened() as store:
            await store.put_bytes("x", b"1")
        with pytest.raises(ObjectsUnavailable, match="closed"):
            await store.put_bytes("x", b"1")

    asyncio.run(check())


@pytest.mark.parametrize(
    "url", ["", "data", "http://x/y", "s3://", "s3://UPPER", "s3://a", "s3://bucket/../x", "file://"]
)
def test_other_urls_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="storage\\.url"):
        open_objects(url, base=tmp_path, endpoint_url=None, region=None, environ={})


@given(st.text())
def test_keys_and_their_beginnings_agree(text: str) -> None:
    if is_key(text):
        assert checked_prefix(text) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_a_name_survives_its_header_and_never_ends_it(name: str) -> None:
    header = attachment(name)
    assert header.isascii() and header.isprintable()
    assert unquote(header.partition("filename*=UTF-8''")[2]) == name
    quoted = header.partition('filename="')[2].partition('"; ')[0]
    assert not set(quoted) & set('"\\/%;') and len(quoted) == len(name)


@given(st.text(max_size=50))
def test_a_content_type_never_ends_its_header(text: str) -> None:
    safe = safe_type(text)
    assert safe == DEFAULT_TYPE or (safe == text and safe.isascii() and safe.isprintable())


@given(st.integers(min_value=0, max_value=5 * 2**40))
def test_parts_are_few_enough_for_s3_and_large_enough(size: int) -> None:
    length = part_bytes(size)
    assert length >= PART_BYTES and length % MIB == 0
    assert length * PARTS_MAX >= size
    assert length == PART_BYTES or (length - MIB) * PARTS_MAX < size
