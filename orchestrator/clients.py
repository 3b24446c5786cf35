"""The service's own HTTP clients: to itself, and to servers that the configuration names."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from orchestrator.access.auth import KeyRing
from orchestrator.access.key import Key
from orchestrator.model import Scope

if TYPE_CHECKING:
    import httpx


class Clients:
    """Makes them when they are first wanted, since httpx is slow to import; lets go of them all."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._made: list[httpx.AsyncClient] = []
        self._own: httpx.AsyncClient | None = None
        self._own_url = "http://127.0.0.1"

    def own(self) -> httpx.AsyncClient:
        """One to this very service, with a key of its own for inference. It can be used once `listening` was called."""
        if self._own is None:
            secret = self._keys.own(Key(name="", scopes=frozenset({Scope.REALTIME})))
            self._own = self.to(self._own_url, secret, proxies=False)
        return self._own

    def to(self, url: str, secret: str, *, proxies: bool = True) -> httpx.AsyncClient:
        """One to another server. `proxies`: those that the environment names are used."""
        import httpx

        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        client = httpx.AsyncClient(base_url=url, headers=headers, trust_env=proxies)
        self._made.append(client)
        return client

    def listening(self, url: str) -> None:
        """The service can be asked at `url` from now on."""
        self._own_url = url
        if self._own is not None:
            self._own.base_url = url

    async def aclose(self) -> None:
        """Close them all."""
        await asyncio.gather(*(client.aclose() for client in self._made))
