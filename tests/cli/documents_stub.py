"""A service that speaks OpenAI's files and vector stores from memory, and fails as it is told: for the command line."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.stub import until

PIECE_BYTES = 64 * 2**10
FILES_PAGE = 2


@dataclass(slots=True)
class Documents:
    """What it holds, and the faults that it is to show."""

    url: str = ""
    files: dict[str, tuple[dict[str, Any], bytes]] = field(default_factory=dict)
    stores: list[dict[str, Any]] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)
    """The fields of each form that was taken."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of searches."""
    ranges: list[str | None] = field(default_factory=list)
    """What each download asked for."""
    page: dict[str, Any] = field(default_factory=dict)
    """What a search finds."""
    busy: int = 0
    """So many uploads are refused with 503."""
    cut: int = 0
    """So many downloads break off in the middle."""
    hang: bool = False
    """Downloads stand still in the middle."""
    unread: set[str] = field(default_factory=set)
    """Names of files that can't be read."""

    def reset(self) -> None:
        """Hold nothing, and fail nowhere."""
        fresh = Documents(url=self.url)
        for one in fields(self):
            setattr(self, one.name, getattr(fresh, one.name))

    def keep(self, name: str, content: bytes, purpose: str = "assistants") -> str:
        """Have a file; its id."""
        id = f"file-{len(self.files):032x}"
        view = {"id": id, "object": "file", "bytes": len(content), "created_at": 1_700_000_000 + len(self.files)}
        self.files[id] = ({**view, "filename": name, "purpose": purpose, "status": "processed"}, content)
        return id

    def make_store(self, name: str) -> dict[str, Any]:
        """Have a store."""
        counts = dict.fromkeys(("in_progress", "completed", "failed", "cancelled", "total"), 0)
        id = f"vs_{len(self.stores):032x}"
        view = {"id": id, "name": name, "created_at": 1_700_000_000, "usage_bytes": 0, "file_counts": counts}
        self.stores.append(view)
        return view


@contextlib.contextmanager
def documents_stub() -> Iterator[Documents]:
    """The stub on a port of its own."""
    held = Documents()
    config = uvicorn.Config(_Api(held).app(), port=0, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    held.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield held
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


class _Api:
    def __init__(self, held: Documents) -> None:
        self._held = held

    def app(self) -> Starlette:
        one = "/v1/vector_stores/{store}"
        return Starlette(
            routes=[
                Route("/v1/files", self._put, methods=["POST"]),
                Route("/v1/files", self._files),
                Route("/v1/files/{file}", self._file),
                Route("/v1/files/{file}", self._delete, methods=["DELETE"]),
                Route("/v1/files/{file}/content", self._content),
                Route("/v1/vector_stores", self._stores),
                Route("/v1/vector_stores", self._new_store, methods=["POST"]),
                Route(one, self._store),
                Route(f"{one}/search", self._search, methods=["POST"]),
                Route(f"{one}/files", self._attach, methods=["POST"]),
                Route(f"{one}/files/{{file}}", self._store_file),
            ]
        )

    async def _put(self, request: Request) -> Response:
        if self._held.busy:
            self._held.busy -= 1
            return _error(503, "the object store is away", {"retry-after": "1"})
        async with request.form() as form:
            self._held.forms.append({name: value for name, value in form.items() if isinstance(value, str)})
            upload: Any = form["file"]
            id = self._held.keep(upload.filename, await upload.read(), str(form["purpose"]))
        return JSONResponse(self._held.files[id][0])

    async def _files(self, request: Request) -> Response:
        query = request.query_params
        found = [view for view, _ in reversed(self._held.files.values())]
        found = [view for view in found if query.get("purpose") in (None, view["purpose"])]
        return _listing(found, query.get("after"), min(int(query["limit"]), FILES_PAGE))

    async def _file(self, request: Request) -> Response:
        found = self._held.files.get(request.path_params["file"])
        return JSONResponse(found[0]) if found else _error(404, "no such file")

    async def _delete(self, request: Request) -> Response:
        found = self._held.files.pop(request.path_params["file"], None)
        return JSONResponse({**found[0], "deleted": True}) if found else _error(404, "no such file")

    async def _content(self, request: Request) -> Response:
        _, data = self._held.files[request.path_params["file"]]
        asked = request.headers.get("range")
        self._held.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        headers = {"content-length": str(len(data) - start)}
        return StreamingResponse(_pieces(self._held, data, start), 206 if asked else 200, headers)

    async def _stores(self, request: Request) -> Response:
        query = request.query_params
        return _listing(self._held.stores, query.get("after"), int(query["limit"]))

    async def _new_store(self, request: Request) -> Response:
        return JSONResponse(self._held.make_store((await request.json())["name"]))

    async def _store(self, request: Request) -> Response:
        found = next((one for one in self._held.stores if one["id"] == request.path_params["store"]), None)
        return JSONResponse(found) if found else _error(404, "no such store")

    async def _attach(self, request: Request) -> Response:
        return JSONResponse(_store_file(self._held, (await request.json())["file_id"], "in_progress"))

    async def _store_file(self, request: Request) -> Response:
        return JSONResponse(_store_file(self._held, request.path_params["file"], "completed"))

    async def _search(self, request: Request) -> Response:
        self._held.asked.append(await request.json())
        return JSONResponse(self._held.page)


async def _pieces(held: Documents, data: bytes, start: int) -> AsyncIterator[bytes]:
    middle = start + (len(data) - start) // 2
    for begin in itertools.count(start, PIECE_BYTES):
        if begin >= len(data):
            return
        if held.cut and begin >= middle:
            held.cut -= 1
            raise ConnectionError("cut")
        if held.hang and begin >= middle:
            await asyncio.Event().wait()
        yield data[begin : begin + PIECE_BYTES]


def _store_file(held: Documents, id: str, status: str) -> dict[str, Any]:
    name = held.files[id][0]["filename"]
    error = None
    if name in held.unread and status == "completed":
        status, error = "failed", {"code": "unsupported_file", "message": "it is of no known kind"}
    return {"id": id, "status": status, "filename": name, "last_error": error, "progress": 0.5}


def _listing(found: list[dict[str, Any]], after: str | None, limit: int) -> Response:
    ids = [one["id"] for one in found]
    begin = ids.index(after) + 1 if after else 0
    data = found[begin : begin + limit]
    return JSONResponse({"object": "list", "data": data, "has_more": begin + limit < len(found)})


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    error = {"message": message, "type": "", "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)
