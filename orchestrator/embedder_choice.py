"""Which embedders a configuration asks for. Part of the wiring, see `app`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import structlog

from orchestrator.clients import Clients
from orchestrator.config import cache_dir
from orchestrator.documents.embedders import Embedders
from orchestrator.documents.ports import Embedder
from orchestrator.settings import Settings
from storage.embed.minilm import EmbeddedMiniLm

if TYPE_CHECKING:
    import httpx

BULK_WAIT_S = 20.0
"""So long a job asks an embedder that is busy, cold or away; then its turn is another's, and the cause is told."""
API_KEY = "EMBEDDINGS_API_KEY"

log = structlog.get_logger()


class EmbedderChoice:
    """The embedders of `settings`. Makes clients where they are needed, loads nothing.

    1. None is wanted: searches are by words only.
    2. A server somewhere else has the model.
    3. One of our own models, started on demand as any other.
    4. The small model that runs inside.
    """

    def __init__(self, settings: Settings, clients: Clients) -> None:
        self._settings = settings
        self._clients = clients
        self._small: EmbeddedMiniLm | None = None
        self.embedders = self._choose()

    def tick(self, monotonic: float) -> None:
        """Called now and then: a model that runs inside and is not used gives its memory back."""
        if self._small is not None:
            self._small.tick(monotonic)

    def _choose(self) -> Embedders:
        chosen = self._settings.embeddings
        if not (chosen.model or chosen.url):
            return Embedders(None)
        small = self._small = EmbeddedMiniLm(cache_dir(os.environ), folder=chosen.folder, threads=chosen.threads)
        if chosen.url:
            client = self._clients.to(chosen.url.rstrip("/").removesuffix("/v1"), os.environ.get(API_KEY, ""))
            return Embedders(self._remote(client, chosen.model), [small], make=self._own)
        if (own := self._own(chosen.model)) is not None:
            return Embedders(own, [small], make=self._own)
        if missing := small.available():
            log.warning("no_embedder", cause=missing)
            return Embedders(None, missing=missing, make=self._own)
        return Embedders(small, make=self._own)

    def _own(self, model: str) -> Embedder | None:
        return self._remote(self._clients.own(), model) if model in self._settings.models else None

    def _remote(self, client: httpx.AsyncClient, model: str) -> Embedder:
        from storage.embed.remote import RemoteEmbedder  # its httpx is slow to import, and few need it

        return RemoteEmbedder(
            model=model,
            client=client,
            piece_tokens_max=self._settings.embeddings.piece_tokens_max,
            wait_max_s=BULK_WAIT_S,
        )
