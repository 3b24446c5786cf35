"""The embedder behind an address: over a real service and its cold model, and whatever a server may answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from orchestrator.errors import EmbedderFailed, EmbedderUnavailable, OrchestratorError
from storage.embed import remote
from storage.embed.remote import RemoteEmbedder
from tests.stub import model_table, posted, service

KEY = "sk-very-secret"
Handler = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


def units(texts: list[str]) -> Any:
    """What the stub engine must answer, at length 1."""
    rows = np.array([[byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:8]] for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def data(*vectors: Any) -> dict[str, Any]:
    """An answer with these vectors."""
    return {"object": "list", "data": [{"index": index, "embedding": each} for index, each in enumerate(vectors)]}


def answering(*answers: httpx.Response | Exception, seen: list[httpx.Request] | None = None) -> Handler:
    """A server with these answers, one after the other, the last for ever."""
    left = list(answers)

    async def answer(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return httpx.Response(found.status_code, headers=found.headers, content=found.content)

    return answer


def using(handler: Handler, job: Callable[[RemoteEmbedder], Awaitable[Any]], **more: Any) -> Any:
    """Run `job` with an embedder that asks `handler`."""

    async def run() -> Any:
        transport = httpx.MockTransport(handler)
        async with httpx.AsyncClient(transport=transport, base_url="http://embeddings.test") as client:
            embedder = RemoteEmbedder(model="m", client=client, **more)
            try:
                async with asyncio.timeout(20):
                    return await job(embedder)
            finally:
                await embedder.aclose()

    return asyncio.run(run())


def test_a_cold_model_of_our_own_service(tmp_path: Path) -> None:
    """A query does not wait for it, and has it started; bulk work waits, and gets every vector in order."""
    record = tmp_path / "record"
    texts = [f"text {number}" for number in range(150)]

    async def run(url: str) -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            embedder = RemoteEmbedder(model="e", client=client)
            began = time.monotonic()
            with pytest.raises(EmbedderUnavailable) as refused:
                await embedder.embed(["query"], wait=False)
            assert time.monotonic() - began < 2 and 0 < refused.value.retry_after_s <= 60
            found = await embedder.embed(texts, wait=True)
            assert found.dtype == np.float32 and embedder.dimension == 8
            np.testing.assert_allclose(found, units(texts), atol=1e-6)
            np.testing.assert_allclose(await embedder.embed(["query"], wait=False), units(["query"]), atol=1e-6)

    table = model_table("e", "--model", "e", "--start-s", "0.4", "--record", str(record))
    with service(tmp_path, table) as running:
        asyncio.run(run(running.url))
    assert [line["path"] for line in posted(record, 4)] == ["/v1/embeddings"] * 4


def test_lists_of_numbers_are_taken_too_and_the_request_is_openais() -> None:
    seen: list[httpx.Request] = []
    answer = httpx.Response(200, json=data([3, 4], [0.0, -2.0]))
    found = using(answering(answer, seen=seen), lambda embedder: embedder.embed(["a", ""], wait=False), api_key=KEY)
    np.testing.assert_allclose(found, np.array([[0.6, 0.8], [0, -1]]), atol=1e-7)
    (request,) = seen
    assert request.url.path == "/v1/embeddings" and request.headers["authorization"] == f"Bearer {KEY}"
    assert json.loads(request.content) == {"model": "m", "input": ["a", " "], "encoding_format": "base64"}
    assert "prefer" not in request.headers


def test_nothing_is_asked_for_nothing() -> None:
    found = using(answering(AssertionError()), lambda embedder: embedder.embed([], wait=True), dimension=8)
    assert found.shape == (0, 8)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (httpx.Response(503, headers={"retry-after": "7"}), EmbedderUnavailable, 7.0),
        (httpx.Response(503, headers={"retry-after": "100000"}), EmbedderUnavailable, 60.0),
        (httpx.Response(503, headers={"retry-after": "-1"}), EmbedderUnavailable, 0.0),
        (httpx.Response(503, headers={"retry-after": "nan"}), EmbedderUnavailable, 5.0),
        (httpx.Response(503, headers={"retry-after": "soon"}), EmbedderUnavailable, 5.0),
        (httpx.Response(429, headers={"retry-after": formatdate(0, usegmt=True)}), EmbedderUnavailable, 0.0),
        (httpx.Response(429), EmbedderUnavailable, 5.0),
        (httpx.ConnectError("refused"), EmbedderUnavailable, 5.0),
        (TimeoutError(), EmbedderUnavailable, 5.0),
        (httpx.Response(500, content=b"\xffInternal"), EmbedderUnavailable, 60.0),
        (httpx.Response(500, json={"detail": f"not for logs: {KEY}"}), EmbedderUnavailable, "answered 500"),
        (httpx.Response(503, json={"detail": f"not for logs: {KEY}"}), EmbedderUnavailable, "answered 503"),
        (httpx.Response(404, json={"detail": "no such model"}), EmbedderUnavailable, "404: no such model"),
        (httpx.Response(401, json={"error": {"message": f"wrong key {KEY}"}}), EmbedderUnavailable, "refused the key"),
        (httpx.Response(403, json={"error": {"message": f"wrong key {KEY}"}}), EmbedderUnavailable, "refused the key"),
        (httpx.Response(400, json={"error": {"message": "too long", "code": 400}}), EmbedderFailed, "too long"),
        (httpx.Response(422, json={"error": "bad", "code": 1}), EmbedderFailed, "422: bad"),
        (httpx.Response(400, json={"object": "error", "message": "too long"}), EmbedderFailed, "too long"),
        (httpx.Response(413, content=b"<html>" + b"x" * 10**6), EmbedderFailed, "413: <html>"),
        (httpx.Response(200, content=b"<html>"), EmbedderUnavailable, "answered wrongly"),
        (httpx.Response(200, json=data()), EmbedderUnavailable, "1 vectors were asked for, and 0 came"),
        (httpx.Response(200, json=data([1.0], [1.0])), EmbedderUnavailable, "and 2 came"),
        (httpx.Response(200, json={"data": [{"index": 1, "embedding": [1]}]}), EmbedderUnavailable, "answered wrongly"),
        (httpx.Response(200, json=data([])), EmbedderUnavailable, "shape"),
        (httpx.Response(200, json=data("AAA")), EmbedderUnavailable, "answered wrongly"),
        (httpx.Response(200, json=data("AAAA")), EmbedderUnavailable, "answered wrongly"),
        (httpx.Response(200, json=data([0.0, 0.0])), EmbedderFailed, "without a direction"),
        (httpx.Response(200, json=data([1e300])), EmbedderFailed, "without a direction"),
        (
            httpx.Response(200, json=data(base64.b64encode(np.array([1, np.nan], "<f4").tobytes()).decode())),
            EmbedderFailed,
            "without a direction",
        ),
    ],
)
def test_what_is_no_vector_is_said(
    answer: httpx.Response | Exception, kind: type[OrchestratorError], said: str | float
) -> None:
    with pytest.raises(OrchestratorError) as refused:
        using(answering(answer), lambda embedder: embedder.embed(["a text"], wait=False), api_key=KEY)
    assert isinstance(refused.value, kind)
    message = str(refused.value)
    if isinstance(refused.value, EmbedderUnavailable) and isinstance(said, float):
        assert refused.value.retry_after_s == said
    else:
        assert str(said) in message
    assert KEY not in message and len(message) < 400


def test_bulk_work_asks_again_as_it_is_told_and_a_query_does_not() -> None:
    pauses: list[float] = []
    seen: list[httpx.Request] = []
    busy = httpx.Response(503, headers={"retry-after": "3"})
    good = httpx.Response(200, json=data([1.0]))

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    answers = answering(busy, httpx.ReadError("cut"), TimeoutError(), busy, good, seen=seen)
    found = using(answers, lambda embedder: embedder.embed(["a"], wait=True), sleep=sleep)
    assert found.shape == (1, 1) and pauses == [3, 5, 5, 3]
    assert [request.headers["prefer"] for request in seen] == ["wait=60"] * 5


@pytest.mark.parametrize(
    ("answer", "waited_s"),
    [(httpx.Response(503, headers={"retry-after": "30"}), 90), (httpx.Response(401), 0)],
)
def test_bulk_work_gives_up_after_its_bound_or_at_once_where_asking_again_is_no_use(
    answer: httpx.Response, waited_s: float
) -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    with pytest.raises(EmbedderUnavailable):
        using(
            answering(answer),
            lambda embedder: embedder.embed(["a"], wait=True),
            sleep=sleep,
            now=lambda: now,
            wait_max_s=100,
        )
    assert now == waited_s


def test_a_dimension_that_changes_is_refused() -> None:
    answers = answering(httpx.Response(200, json=data([1.0, 2.0])), httpx.Response(200, json=data([1.0])))

    async def job(embedder: RemoteEmbedder) -> None:
        await embedder.embed(["a"], wait=False)
        with pytest.raises(EmbedderUnavailable, match="shape"):
            await embedder.embed(["b"], wait=False)

    using(answers, job)


def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_BYTES_MAX", 1000)
    answers = answering(httpx.Response(200, content=b" " * 2000))
    with pytest.raises(EmbedderUnavailable, match="more than 1000 bytes"):
        using(answers, lambda embedder: embedder.embed(["a"], wait=False))


def test_bulk_work_leaves_a_place_for_a_query() -> None:
    """Two requests of bulk work at once, and a query in between though they hang."""
    both, hanging = asyncio.Event(), asyncio.Event()
    bulk = peak = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal bulk, peak
        if "prefer" in request.headers:
            bulk += 1
            peak = max(peak, bulk)
            if bulk == 2:
                both.set()
            await hanging.wait()
            bulk -= 1
        return httpx.Response(200, json=data(*[[1.0]] * len(json.loads(request.content)["input"])))

    async def job(embedder: RemoteEmbedder) -> None:
        work = asyncio.create_task(embedder.embed(["a"] * 100, wait=True))
        await both.wait()
        assert (await embedder.embed(["q"], wait=False)).shape == (1, 1)
        assert not work.done()
        hanging.set()
        assert (await work).shape == (100, 1) and peak == 2

    using(answer, job, batch_max=10)


def test_one_portion_that_fails_ends_the_rest() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        if b"bad" in request.content:
            return httpx.Response(400, json={"error": {"message": "no"}})
        await asyncio.sleep(3600)
        raise AssertionError

    async def job(embedder: RemoteEmbedder) -> None:
        with pytest.raises(EmbedderFailed, match="400: no"):
            await embedder.embed(["good", "bad"], wait=True)

    using(answer, job, batch_max=1)
