"""A real service with document storage: words only unless a test asks for vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import openai

from tests.stub import Service, service

WORDS_ONLY = '[embeddings]\nmodel = ""\n'


@dataclass(frozen=True, slots=True)
class Served:
    """A running service, and clients to it."""

    running: Service

    def client(self, key: str = "none", *, retries: int = 0) -> openai.OpenAI:
        """The stock SDK, pointed at the service."""
        return openai.OpenAI(base_url=f"{self.running.url}/v1", api_key=key, max_retries=retries, timeout=60)


@contextlib.contextmanager
def served(folder: Path, config: str = WORDS_ONLY, **environ: str) -> Iterator[Served]:
    """The service, on a folder unless `environ` says otherwise."""
    with service(folder, config, **environ) as running:
        yield Served(running)


@contextlib.contextmanager
def bucket() -> Iterator[Mapping[str, str]]:
    """An S3 server with a bucket of its own: what the service's environment must say."""
    raise NotImplementedError
