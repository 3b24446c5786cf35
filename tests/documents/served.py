"""A real service with document storage: words only unless a test asks for vectors."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import openai

from tests.s3 import S3Server
from tests.stub import Service, model_table, service

WORDS_ONLY = '[embeddings]\nmodel = ""\n'
EMBEDDER = "acme/embedder"


def with_embedder(*options: str) -> str:
    """A configuration whose vectors come from a model of the service's own: the stub, with these options."""
    return f'[embeddings]\nmodel = "{EMBEDDER}"\n' + model_table(EMBEDDER, *options)


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


def on_s3(server: S3Server) -> Mapping[str, str]:
    """What a service's environment must say to keep its files in a new bucket of that server."""
    bucket = f"documents-{secrets.token_hex(4)}"
    return {**server.environ, "ORCHESTRATOR_STORAGE__URL": f"s3://{bucket}/files"}
