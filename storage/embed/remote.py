"""An embedder behind an OpenAI-compatible address: another server's, or this service's own models."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import httpx
import msgspec

from orchestrator.errors import EmbedderFailed, EmbedderUnavailable
from storage.embed.turns import Turns

if TYPE_CHECKING:
    from orchestrator.documents.ports import Vectors

PATH = "/v1/embeddings"
HOLD_S = 60
"""How long a server of our kind may hold a request of bulk work while its model starts."""
QUERY_TIMEOUT_S = 15.0
BULK_TIMEOUT_S = HOLD_S + 120.0
RETRY_S = 5.0
"""Where the server does not say."""
RETRY_MAX_S = 60.0
WRONG_RETRY_S = 60.0
"""After what only a person mends: a refused key, an unknown model, an answer that is none."""
ANSWER_BYTES_MAX = 64 * 2**20
MESSAGE_CHARS_MAX = 300
TEXT_FAULTS = (400, 413, 422)
"""Statuses that say that these texts won't do. Others may pass: a key is renewed, a model comes back."""
UNKNOWN = 404
"""The model, not the texts."""
BUSY = (408, 429, 502, 503, 504)


class _Row(msgspec.Struct):
    index: int
    embedding: str | list[float]


class _Answer(msgspec.Struct):
    data: list[_Row]


class _Fault(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Fault | str = ""
    message: str = ""
    detail: str = ""


class RemoteEmbedder:
    """An `Embedder` over HTTP. For one event loop.

    `client` has the server's address as its base URL, without ``/v1``; it stays the caller's. `dimension` is what the
    vectors must have; None: what the first have. Of `parallel_max` requests at once (at least 2), one is kept for
    those that do not wait.
    """

    def __init__(
        self,
        *,
        model: str,
        client: httpx.AsyncClient,
        dimension: int | None = None,
        batch_max: int = 64,
        piece_tokens_max: int = 512,
        api_key: str = "",
        parallel_max: int = 3,
        wait_max_s: float = 900.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._client = client
        self._dimension = dimension
        self._batch_max = batch_max
        self._piece_tokens_max = piece_tokens_max
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._turns = Turns(parallel_max, spare=1)
        self._wait_max_s = wait_max_s
        self._sleep = sleep
        self._now = now

    @property
    def name(self) -> str:
        """The model."""
        return self._model

    @property
    def dimension(self) -> int | None:
        """Of its vectors; None: not known before the first."""
        return self._dimension

    @property
    def piece_tokens_max(self) -> int:
        """The longest text that it takes whole, in tokens."""
        return self._piece_tokens_max

    async def prepare(self) -> None:
        """Nothing: its model is elsewhere, its tokenizer unknown."""

    async def embed(self, texts: Sequence[str], *, wait: bool) -> Vectors:
        """One vector a text, see `Embedder`. With `wait`, a server that is busy, cold or away is asked again as it
        says, for at most `wait_max_s`."""
        import numpy as np

        if not texts:
            return np.zeros((0, self._dimension or 0), np.float32)
        portions = [texts[start : start + self._batch_max] for start in range(0, len(texts), self._batch_max)]
        ask = self._until_served if wait else self._ask
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(portion)) for portion in portions]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return np.concatenate([task.result() for task in tasks])

    async def aclose(self) -> None:
        """Nothing: the client is the caller's."""

    async def _until_served(self, texts: Sequence[str]) -> Vectors:
        ends_at = self._now() + self._wait_max_s
        while True:
            try:
                return await self._ask(texts, hold=True)
            except _Busy as error:
                if self._now() + error.retry_after_s > ends_at:
                    raise
                pause_s = error.retry_after_s
            await self._sleep(pause_s)

    async def _ask(self, texts: Sequence[str], *, hold: bool = False) -> Vectors:
        """One request. Raises `_Busy` for what another may mend soon."""
        body = {"model": self._model, "input": [text or " " for text in texts], "encoding_format": "base64"}
        headers = {**self._headers, "content-type": "application/json"}
        headers |= {"prefer": f"wait={HOLD_S}"} if hold else {}
        async with self._turns.one(urgent=not hold):
            try:
                async with asyncio.timeout(BULK_TIMEOUT_S if hold else QUERY_TIMEOUT_S):
                    response, content = await self._send(msgspec.json.encode(body), headers)
            except (TimeoutError, httpx.HTTPError) as error:
                cause = str(error) or type(error).__name__
                raise _Busy(f"the embeddings server did not answer: {cause}", retry_after_s=RETRY_S) from error
        if response.status_code != 200:
            raise _refused(response, content)
        vectors = await asyncio.to_thread(_vectors, content, len(texts), self._dimension)
        self._dimension = vectors.shape[1]
        return vectors

    async def _send(self, body: bytes, headers: dict[str, str]) -> tuple[httpx.Response, bytes]:
        content = bytearray()
        async with self._client.stream("POST", PATH, content=body, headers=headers, timeout=None) as response:
            async for part in response.aiter_bytes():
                content += part
                if len(content) > ANSWER_BYTES_MAX:
                    raise _wrong(f"its answer has more than {ANSWER_BYTES_MAX} bytes")
        return response, bytes(content)


class _Busy(EmbedderUnavailable):
    """A little later it may well work."""


def _vectors(content: bytes, count: int, dimension: int | None) -> Vectors:
    """What an answer holds, row by row at length 1. For a thread: an answer may be megabytes.

    Raises `EmbedderUnavailable` for what is no such answer, and `EmbedderFailed` for numbers that are no direction.
    """
    import numpy as np

    try:
        rows = msgspec.json.decode(content, type=_Answer).data
    except msgspec.MsgspecError as error:
        raise _wrong(str(error)) from None
    if sorted(row.index for row in rows) != list(range(count)):
        raise _wrong(f"{count} vectors were asked for, and {len(rows)} came, or not each once")
    rows.sort(key=lambda row: row.index)
    try:
        vectors = np.stack([_numbers(row.embedding) for row in rows])
    except ValueError as error:
        raise _wrong(str(error)) from None
    if vectors.ndim != 2 or vectors.shape[1] != (dimension or vectors.shape[1]) or not vectors.shape[1]:
        raise _wrong(f"its vectors have the shape {vectors.shape[1:]}, not ({dimension},)")
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise EmbedderFailed(
            "the embeddings server gave a vector without a direction (zeros, or numbers that are none)"
        )
    units: Vectors = (vectors / lengths).astype(np.float32)
    return units


def _numbers(embedding: str | list[float]) -> Vectors:
    import numpy as np

    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    with np.errstate(over="ignore"):  # what is too large is found out as no direction
        return np.array(embedding, np.float32)


def _wrong(what: str) -> EmbedderUnavailable:
    message = f"the embeddings server answered wrongly: {what:.{MESSAGE_CHARS_MAX}}"
    return EmbedderUnavailable(message, retry_after_s=WRONG_RETRY_S)


def _refused(response: httpx.Response, content: bytes) -> EmbedderUnavailable | EmbedderFailed:
    status = response.status_code
    if status in (401, 403):  # some servers repeat the key in their message
        message = f"the embeddings server refused the key ({status})"
        return EmbedderUnavailable(message, retry_after_s=WRONG_RETRY_S)
    said = f"the embeddings server answered {status}"
    words = f"{said}: {_message(content):.{MESSAGE_CHARS_MAX}}"
    if status in TEXT_FAULTS:
        return EmbedderFailed(words)
    if status in BUSY:  # its words may repeat the texts, and this one is for logs and for all to see
        return _Busy(said, retry_after_s=_retry_after_s(response.headers.get("retry-after", "")))
    return EmbedderUnavailable(words if status == UNKNOWN else said, retry_after_s=WRONG_RETRY_S)


def _message(content: bytes) -> str:
    """The server's own words: OpenAI's form, vLLM's old one, FastAPI's, or whatever it is."""
    try:
        refusal = msgspec.json.decode(content, type=_Refusal)
    except msgspec.MsgspecError:
        return content[: 4 * MESSAGE_CHARS_MAX].decode("utf-8", "replace").strip()
    error = refusal.error if isinstance(refusal.error, str) else refusal.error.message
    return error or refusal.message or refusal.detail


def _retry_after_s(value: str) -> float:
    """Of a ``Retry-After``, in seconds or as a date (RFC 9110); within 0 and `RETRY_MAX_S`."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return RETRY_S
    return min(max(seconds, 0.0), RETRY_MAX_S) if seconds == seconds else RETRY_S
