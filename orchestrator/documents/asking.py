"""Asks one of the service's own models: through the front door, so it starts, is counted and is reaped like any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.errors import EmbedderFailed, EmbedderUnavailable

if TYPE_CHECKING:
    from httpx import AsyncClient as Client

TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 4 * 2**20
RETRY_AFTER_S_DEFAULT = 5.0
PASSAGE_CHARS_MAX = 8_000
"""Of one passage that a reranker judges."""
REWRITE_TOKENS_MAX = 64
REWRITE_PROMPT = (
    "Rewrite the user's question as a short search query: the words that a relevant passage would contain, no "
    "explanation. Answer with the query only."
)


class ModelReranker:
    """`search.Reranker` by a model's ``/v1/rerank`` (the API of Jina and Cohere, as vLLM has it)."""

    def __init__(self, client: Client, model: str) -> None:
        self._client = client
        self._model = model

    async def scores(self, query: str, passages: Sequence[str]) -> Sequence[float]:
        """See `search.Reranker.scores`. Does not wait for a cold model: it is asked to start, and says when."""
        documents = [passage[:PASSAGE_CHARS_MAX] for passage in passages]
        body = {"model": self._model, "query": query, "documents": documents, "top_n": len(documents)}
        answer = await ask(self._client, "/v1/rerank", body, self._model)
        scores = [0.0] * len(documents)
        try:
            for result in answer["results"]:
                scores[int(result["index"])] = float(result["relevance_score"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise EmbedderFailed(f"{self._model} does not answer as a reranker does") from None
        return scores


class ModelRewriter:
    """`search.Rewriter` by a chat model."""

    def __init__(self, client: Client, model: str) -> None:
        self._client = client
        self._model = model

    async def rewrite(self, query: str) -> str:
        """See `search.Rewriter.rewrite`. Does not wait for a cold model."""
        messages = [{"role": "system", "content": REWRITE_PROMPT}, {"role": "user", "content": query}]
        body = {
            "model": self._model,
            "messages": messages,
            "max_tokens": REWRITE_TOKENS_MAX,
            "temperature": 0,
        }
        answer = await ask(self._client, "/v1/chat/completions", body, self._model)
        try:
            text = str(answer["choices"][0]["message"]["content"]).strip()
        except (KeyError, IndexError, TypeError):
            raise EmbedderFailed(f"{self._model} does not answer as a chat model does") from None
        return text or query


async def ask(client: Client, path: str, body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The JSON of an answer. Raises `EmbedderUnavailable` for a model that is cold or silent, `EmbedderFailed` for
    one that refuses."""
    import httpx

    try:
        answer = await client.post(path, json=body, timeout=TIMEOUT_S)
    except httpx.HTTPError:
        raise EmbedderUnavailable(f"{model} does not answer", retry_after_s=RETRY_AFTER_S_DEFAULT) from None
    if answer.status_code in (429, 502, 503, 504):
        told = answer.headers.get("retry-after", "")
        retry_after_s = float(told) if told.isdigit() else RETRY_AFTER_S_DEFAULT
        raise EmbedderUnavailable(f"{model} is not ready", retry_after_s=retry_after_s)
    if answer.status_code != 200 or len(answer.content) > ANSWER_BYTES_MAX:
        raise EmbedderFailed(f"{model} refused with status {answer.status_code}")
    try:
        return msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise EmbedderFailed(f"{model} did not answer with JSON") from None
