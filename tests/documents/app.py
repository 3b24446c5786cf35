"""The Files and Uploads API over its real parts: guarded server, catalogue, spool, object store. Without engines."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from orchestrator.access.auth import KeyRing
from orchestrator.control import on_api_error, on_bug, on_http_exception
from orchestrator.documents.api_files import FilesApi
from orchestrator.documents.api_uploads import UploadsApi
from orchestrator.documents.endpoints import Endpoint, routes
from orchestrator.documents.files import Files
from orchestrator.documents.garbage import Garbage
from orchestrator.documents.gates import Gates
from orchestrator.documents.limits import body_limit
from orchestrator.documents.ports import ObjectStore
from orchestrator.documents.spool import Spool
from orchestrator.documents.uploads import Uploads
from orchestrator.errors import ApiError
from orchestrator.guard import Express
from orchestrator.server import listen, server
from orchestrator.settings import Settings
from storage.catalog import Catalog
from storage.objects_folder import FolderObjects
from storage.shelf import DuckShelf
from tests.hostile.edge import NoExpress
from tests.stub import until

FILE_BYTES_MAX = 40 * 2**20
"""Beyond what other paths may have, 32 MiB, so that the path's own limit counts."""
KEYS = (
    ("ada", ("upload", "realtime")),
    ("bob", ("upload", "realtime")),
    ("reader", ("realtime",)),
    ("writer", ("upload",)),
    ("monitor", ("monitor",)),
)
"""Names, which are secrets and tenants, too, with their scopes."""

T = TypeVar("T")


class DocumentsApp:
    """What is served."""

    def __init__(
        self, folder: Path, objects: ObjectStore, *, files_max: int, free_bytes_min: int, file_bytes_max: int
    ) -> None:
        self.folder = folder
        self.objects = objects
        self._file_bytes_max = file_bytes_max
        self.later_s = 0.0
        """Added to the clock."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self._catalog = Catalog(folder / "catalog.duckdb")
        self.shelf = DuckShelf(self._catalog)
        self.spool = Spool(folder / "spool", files_max=files_max, free_bytes_min=free_bytes_min)
        files = Files(shelf=self.shelf, objects=objects, unix=self.unix, left=lambda members: None)
        uploads = Uploads(
            shelf=self.shelf,
            objects=objects,
            spool=self.spool,
            files=files,
            unix=self.unix,
            bytes_max=FILE_BYTES_MAX,
        )
        self.garbage = Garbage(shelf=self.shelf, objects=objects, files=files, uploads=uploads, gates=Gates())
        self.endpoints: Sequence[Endpoint] = (
            *FilesApi(files=files, spool=self.spool, file_bytes_max=file_bytes_max).endpoints(),
            *UploadsApi(uploads=uploads, spool=self.spool, upload_bytes_max=FILE_BYTES_MAX).endpoints(),
        )
        entries = [{"name": name, "sha256": sha256(name.encode()), "scopes": scopes} for name, scopes in KEYS]
        (folder / "keys.json").write_text(json.dumps({"keys": entries}))

    def unix(self) -> float:
        """The clock."""
        return time.time() + self.later_s

    def asgi(self) -> ASGIApp:
        """The app."""
        return Starlette(
            routes=routes(self.endpoints, KeyRing(self.folder / "keys.json")),
            lifespan=self._lifespan,
            exception_handlers={ApiError: on_api_error, HTTPException: on_http_exception, Exception: on_bug},
        )

    def express(self) -> Express:
        """No lane."""
        return NoExpress()

    def body_limit(self, target: bytes) -> int:
        """More for files and parts."""
        return body_limit(target, file_bytes_max=self._file_bytes_max, otherwise=Settings().server.body_bytes_max)

    def listening(self, url: str, public: str) -> None:
        """Nothing to do."""

    def drain(self) -> None:
        """Nothing to do."""

    @property
    def spooled(self) -> list[Path]:
        """What lies in the spool."""
        return list((self.folder / "spool").iterdir())

    @property
    def stored(self) -> list[Path]:
        """What lies in the object store, where that is a folder."""
        return [path for path in (self.folder / "objects").rglob("*") if path.is_file()]

    def run(self, made: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run it on the server's loop, from a test's thread."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(made(), self.loop).result(30)

    def sweep(self) -> int:
        """One pass of the garbage."""
        return self.run(lambda: self.garbage.sweep(self.unix()))

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.loop = asyncio.get_running_loop()
        yield
        await self.objects.aclose()
        await asyncio.to_thread(self._catalog.close)


class Documents:
    """The running app, and clients to it."""

    def __init__(self, app: DocumentsApp, port: int) -> None:
        self.app = app
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def sdk(self, key: str = "ada") -> openai.OpenAI:
        """The stock client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def http(self, key: str = "ada") -> httpx.Client:
        """A bare one."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=60)


@contextlib.contextmanager
def documents(
    folder: Path,
    objects: ObjectStore | None = None,
    *,
    files_max: int = 64,
    free_bytes_min: int = 0,
    file_bytes_max: int = FILE_BYTES_MAX,
) -> Iterator[Documents]:
    """A server in a thread, on a folder unless `objects` says otherwise."""
    listener = listen("127.0.0.1", 0)
    app = DocumentsApp(
        folder,
        objects or FolderObjects(folder / "objects"),
        files_max=files_max,
        free_bytes_min=free_bytes_min,
        file_bytes_max=file_bytes_max,
    )
    running = server(app, Settings(), listener)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: running.started or not thread.is_alive())
        assert running.started
        yield Documents(app, listener.getsockname()[1])
    finally:
        running.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    with documents(Path(sys.argv[1]), file_bytes_max=int(sys.argv[2])):  # its server says where it listens
        sys.stdin.readline()
