"""How requests look at a server that has its own path, key, and name for the model. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.reader import with_model
from orchestrator.servers.endpoint import Endpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Disguise:
    """What a lane's requests take on; None at the lane where they go as they are.

    The answer passes as it comes, the server's name for the model in it too: as with OpenAI, where the answer to
    ``gpt-4o`` names the model that gave it.
    """

    base: bytes = b""
    """Stands before our path."""
    end: bytes = field(default=b"\r\n", repr=False)
    """As `wire.request_head` takes it; with the server's key, so never to be shown."""
    model: str = ""
    """The model's name there; empty: ours."""

    def body(self, body: bytes, form_type: bytes) -> bytes:
        """A request's body, for a model of that name; `form_type` as `reader.with_model` takes it."""
        return with_model(body, self.model, form_type) if self.model else body


def disguise(endpoint: Endpoint, model: str) -> Disguise | None:
    """What a server wants of requests for `model`; None: nothing."""
    key = f"authorization: Bearer {endpoint.key}\r\n".encode("latin-1") if endpoint.key else b""
    name = "" if endpoint.model == model else endpoint.model
    if not (endpoint.base or key or name):
        return None
    return Disguise(base=endpoint.base.encode(), end=key + b"\r\n", model=name)
