"""Runs the service under uvicorn: limits, signals, draining."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import os
import socket
import sys
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from orchestrator.errors import OrchestratorError
from orchestrator.guard import Express, GuardedProtocol
from orchestrator.settings import Settings

BACKLOG = 2048
GC_THRESHOLD = 20_000
"""Collections are rarer than by default (700): each walks all that is young, and requests leave few cycles."""
GIVE_UP_S = 1
"""After the drain's time, tasks that were told that their clients are gone get this long to end."""
SWEEP_TICKS = 5
"""uvicorn ticks ten times a second; connections are swept at every fifth."""


class AddressInUse(OrchestratorError):
    """The address can't be listened on."""


class Drainable(Protocol):
    """What is served."""

    def asgi(self) -> ASGIApp:
        """The outermost app."""

    def express(self) -> Express:
        """The lane past ASGI for warm requests."""

    def body_limit(self, target: bytes) -> int:
        """The most bytes of a request's body; see `head.BodyLimit`."""

    def listening(self, url: str, public: str) -> None:
        """Requests are taken from now on: of this machine at `url`, of others at `public`."""

    def drain(self) -> None:
        """The service has been told to end; requests in flight go on."""


class Front(Protocol):
    """Takes requests in place of the service, which answers it; see `gateway.workers`."""

    async def open(self, url: str) -> str:
        """Begin, for a service that listens at `url`. Returns where requests are taken."""

    async def close(self) -> None:
        """Take no more, and wait for those in flight."""


def serve(service: Drainable, settings: Settings, listener: socket.socket, front: Front | None = None) -> None:
    """Serve until a signal says to end. Blocks. Prints ``listening on http://H:P`` once it answers."""
    running = server(service, settings, listener, front)
    gc.freeze()  # what was made so far stays; a request's objects die by their counts
    gc.set_threshold(GC_THRESHOLD, 50, 50)
    try:
        running.run(sockets=[listener])
    finally:
        gc.unfreeze()  # else modules outlive the interpreter, of which DuckDB's complains on stderr


def server(service: Drainable, settings: Settings, listener: socket.socket, front: Front | None = None) -> Server:
    """A server that is not running yet. Signals reach it only when it runs in the main thread."""
    drain_timeout_s = settings.defaults.drain_timeout_s
    config = uvicorn.Config(
        service.asgi(),
        loop="uvloop",
        # uvicorn calls it as it would a protocol class, which is all that its type allows.
        http=functools.partial(GuardedProtocol, settings.server, service.express(), service.body_limit),  # type: ignore[arg-type]
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(drain_timeout_s) + GIVE_UP_S,
    )
    logging.getLogger("uvicorn.error").addFilter(_worth_a_line)
    return Server(config, service, address(listener), drain_timeout_s, front)


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bind the address, which tells a taken port before anything is started; `shared`: other sockets that say so may
    have it too. Raises `AddressInUse`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise AddressInUse(f"can't listen on {host}:{port}: {error.strerror}; try another --port") from None
    return listener


def address(listener: socket.socket) -> str:
    """``http://H:P`` of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def reached_by_us(url: str) -> str:
    """The same where it listens on every address: one of them."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


class Server(uvicorn.Server):
    """uvicorn's server with our sweep, our farewell, and a second signal that ends it at once."""

    def __init__(
        self, config: uvicorn.Config, service: Drainable, url: str, drain_timeout_s: float, front: Front | None
    ) -> None:
        super().__init__(config)
        self._service = service
        self._front = front
        self._url = url
        self._drain_timeout_s = drain_timeout_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains. The second ends the process now: engines run on, to be adopted."""
        if self.should_exit:
            os._exit(1)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        if self.started:
            url = self._url if self._front is None else await self._front.open(self._url)
            self._service.listening(reached_by_us(self._url), reached_by_us(url))
            print(f"listening on {url}", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's tick, and the sweep of slow connections."""
        if counter % SWEEP_TICKS == 0:
            self._sweep()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: no new connections, requests in flight get their time; then an answer, or their cut."""
        if sys.stderr.isatty():
            print("ending; a second Ctrl-C ends it at once", file=sys.stderr)
        self._service.drain()
        if self._front is not None:
            await self._front.close()
        timer = asyncio.get_running_loop().call_later(self._drain_timeout_s, self._give_up)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, GuardedProtocol):
                connection.give_up()

    def _sweep(self) -> None:
        if not self.server_state.connections:
            return
        now = next(iter(self.server_state.connections)).loop.time()
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, GuardedProtocol):
                connection.sweep(now)


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's is worth a log: a stream that we cut, because its engine died or its client
    left, and a task that we cancelled at the end of the drain, are no errors of the app."""
    cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not (cancelled or record.getMessage().startswith("ASGI callable returned without completing response"))
