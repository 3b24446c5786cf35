"""Whether documents can be reached, and why not."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.requests import Request
from starlette.responses import Response

from orchestrator.access.key import Key
from orchestrator.documents.endpoints import Handler
from orchestrator.errors import ApiError


class Availability:
    """Two things must be there: the catalogue, whole, and the object store. Until both are known, documents are not."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._catalog_fault = "the service is starting"
        self._objects_fault = ""

    @property
    def fault(self) -> str:
        """Why documents can't be reached; empty when they can."""
        return self._catalog_fault or self._objects_fault

    def rebuilding(self) -> None:
        """The catalogue was begun anew and is filled from the object store."""
        self._catalog_fault = "the catalogue is rebuilt from the object store"

    def broken(self, cause: str) -> None:
        """The catalogue can't be used for now."""
        self._catalog_fault = cause
        self._begun.set()

    def whole(self) -> None:
        """The catalogue has all it should have."""
        self._catalog_fault = ""
        self._begun.set()

    def objects(self, fault: str) -> None:
        """What the object store last said; empty: it is well."""
        self._objects_fault = fault

    async def begun(self, within_s: float) -> None:
        """Return once it is known whether the catalogue is whole, at most after `within_s`."""
        with contextlib.suppress(TimeoutError):  # then it says so itself when it is asked
            async with asyncio.timeout(within_s):
                await self._begun.wait()

    def guard(self, handler: Handler) -> Handler:
        """The handler, once the catalogue is whole; 503 until then."""

        async def guarded(request: Request, key: Key) -> Response:
            if self._catalog_fault:
                message = "documents are not available now; /health tells why"
                raise ApiError(503, message, code="storage_unavailable", headers={"retry-after": "5"})
            return await handler(request, key)

        return guarded
