"""The way to the controller: its table as it comes, and reports to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import msgspec

from orchestrator.errors import OrchestratorError
from orchestrator.gateway.api import REPORTS, TABLE
from orchestrator.gateway.registry import BEAT_S
from orchestrator.gateway.table import LINE_BYTES_MAX, Line, Report, decode_line, encode_report

SILENCE_S = 4 * BEAT_S
CONNECT_S = 5.0
REPORT_S = 10.0


class ControllerAway(OrchestratorError):
    """It does not answer, or not as a controller does. It may come back."""


class ControllerRefuses(OrchestratorError):
    """It does not take our key."""


class Link:
    """To one controller. `key`: one with scope `admin`."""

    def __init__(self, url: str, key: str | None, *, name: str) -> None:
        self.url = url
        self._name = name
        headers = {"authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(REPORT_S, connect=CONNECT_S, read=SILENCE_S)
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=False)

    async def lines(self) -> AsyncIterator[Line]:
        """What it says, until it does not. Raises `ControllerAway`, `ControllerRefuses`."""
        try:
            async with self._client.stream("GET", TABLE, params={"gateway": self._name}) as answer:
                self._check(answer)
                rest = b""
                async for data in answer.aiter_raw():
                    *whole, rest = (rest + data).split(b"\n")
                    if len(rest) > LINE_BYTES_MAX:
                        raise ControllerAway(f"what answers at {self.url} is no controller")
                    for line in whole:
                        yield decode_line(line)
        except httpx.HTTPError as error:
            raise ControllerAway(f"the controller at {self.url} does not answer: {_said(error)}") from None
        except msgspec.DecodeError as error:
            raise ControllerAway(f"what the controller at {self.url} says can't be read: {error}") from None

    async def report(self, report: Report) -> None:
        """Tell it. Raises `ControllerAway`, `ControllerRefuses`."""
        try:
            answer = await self._client.post(REPORTS, content=encode_report(report), timeout=REPORT_S)
        except httpx.HTTPError as error:
            raise ControllerAway(f"the controller at {self.url} does not answer: {_said(error)}") from None
        self._check(answer)

    async def aclose(self) -> None:
        """Hang up."""
        await self._client.aclose()

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code in (401, 403):
            raise ControllerRefuses(
                f"the controller at {self.url} refuses the key: ORCHESTRATOR_API_KEY is one with scope admin"
            )
        if answer.status_code >= 300:
            raise ControllerAway(f"what answers at {self.url} is no controller: it says {answer.status_code}")


def _said(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
