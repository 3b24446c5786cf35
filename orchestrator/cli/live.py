"""A running service for the screens, which must not block: the same calls as `remote.Remote`, awaited."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Any, Self

import httpx

from orchestrator.cli.remote import TIMEOUT_S, error_of, explained
from orchestrator.errors import OrchestratorError

SILENCE_S = 60.0
"""The service and its engines say something more often, be it a comment."""
LINE_BYTES_MAX = 2**20


class Live:
    """One service at `url`. Every call raises `OrchestratorError` with a sentence for people; close it by ``async
    with``."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> Any:
        """The JSON of an answer."""
        try:
            return (await self._call("GET", path)).json()
        except ValueError:
            raise OrchestratorError(f"what answers at {self.url} is no orchestrator") from None

    async def text(self, path: str) -> str:
        """The text of an answer."""
        return (await self._call("GET", path)).text

    async def post(self, path: str) -> None:
        """Ask for something; its answer is not of interest."""
        await self._call("POST", path)

    async def lines(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        headers: dict[str, str] | None = None,
        silence_s: float | None = SILENCE_S,
    ) -> AsyncIterator[str]:
        """The lines of an answer as they come, without their ends; each of at most `LINE_BYTES_MAX`. Where nothing may
        come for `silence_s`, the answer is taken for broken."""
        kept = b""
        timeout = httpx.Timeout(TIMEOUT_S, read=silence_s)
        with explained(self.url):
            async with self._client.stream(method, path, json=body, headers=headers, timeout=timeout) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    raise error_of(answer)
                async for data in answer.aiter_bytes():
                    *whole, kept = (kept + data).split(b"\n")
                    for line in whole:
                        yield line.rstrip(b"\r").decode("utf-8", "replace")
                    if len(kept) > LINE_BYTES_MAX:
                        raise OrchestratorError(f"a line from {self.url} is longer than {LINE_BYTES_MAX // 2**20} MiB")
        if kept:
            yield kept.decode("utf-8", "replace")

    async def events(
        self, method: str, path: str, *, body: object = None, headers: dict[str, str] | None = None
    ) -> AsyncGenerator[tuple[str, str], None]:
        """Server-sent events as (name, data); a comment is an event with the name ``:``."""
        name, data = "", list[str]()
        async for line in self.lines(method, path, body=body, headers=headers):
            if not line:
                if data:
                    yield name or "message", "\n".join(data)
                name, data = "", []
                continue
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not field:
                yield ":", value
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)

    async def _call(self, method: str, path: str) -> httpx.Response:
        with explained(self.url):
            answer = await self._client.request(method, path)
        if answer.status_code >= 400:
            raise error_of(answer)
        return answer


def decoded(text: str) -> Any:
    """The JSON of an event; None when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
