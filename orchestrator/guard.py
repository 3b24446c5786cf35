"""uvicorn's httptools protocol with limits and receive deadlines.

uvicorn 0.54 keeps slow heads, slow bodies and silent connections open for ever, takes heads of any size and
requests without Host. Here every connection carries one `deadline`; a sweep over all of them, twice a second,
cuts those that are past it, so a request costs no timer. A body is judged by its rate, as Apache's
mod_reqtimeout does (https://httpd.apache.org/docs/2.4/mod/mod_reqtimeout.html), so a long upload is not cut.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

import httptools
import msgspec
from uvicorn._types import ASGI3Application, HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from orchestrator.config import ServerSettings
from orchestrator.errors import ApiError
from orchestrator.proxy import CONNECTION, CYCLE

EXPRESS_BYTES_MAX = 32 * 2**10
"""Larger bodies go by the app, which reads them with back-pressure."""


class Ride(Protocol):
    """A request on its way past ASGI; see `express`."""

    def left(self) -> None:
        """The client is gone."""

    def writable(self) -> None:
        """The client's socket takes bytes again."""


class Express(Protocol):
    """Takes warm requests past ASGI; see `express`."""

    def takes(self, scope: HTTPScope) -> bool:
        """Whether a request with this head may be one of them."""

    def board(self, client: GuardedProtocol, cycle: RequestResponseCycle) -> Ride | None:
        """Send it on its way; None when it must go by the app."""


class _Refused(Exception):
    """Raised within a parser callback to stop parsing; the answer is in `GuardedProtocol._refusal`."""


class GuardedProtocol(HttpToolsProtocol):
    """One client connection, and its own ASGI extension ``orchestrator.connection``.

    An app may set `on_close` while it answers, to learn at once that the client left (half-closing counts as
    leaving), and may `abort` it.
    """

    def __init__(self, limits: ServerSettings, express: Express | None = None, **uvicorn: object) -> None:
        super().__init__(**uvicorn)  # type: ignore[arg-type]
        self._limits = limits
        self._express = express
        self._parsing_head = False
        self._waiting: RequestResponseCycle | None = None
        """A request that may go by `express` once its body is here."""
        self._ride: Ride | None = None
        self._refusal: ApiError | None = None
        self._closed = False
        self._in_head = False
        self._head_bytes = 0
        self._fed_bytes = 0
        """An upper bound of the size of the head that is being parsed."""
        self._body_began_at = 0.0
        self._body_bytes = 0
        self.body_bytes: int | None = None
        """The length that the request's head tells."""
        self.deadline = math.inf
        """On the loop's clock: when the client is cut unless more of its request has come."""
        self.on_close: Callable[[], None] | None = None

    def abort(self) -> None:
        """Cut the connection hard: an answer without its end, which the client can't take for whole."""
        self.transport.abort()

    def sweep(self, now: float) -> None:
        """Cut the connection if its deadline has passed."""
        if now < self.deadline or self._closed:
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.cycle is not None and not answering and not self._in_head:
            self.transport.close()  # kept alive for long enough
            return
        if answering and (self._in_head or self.cycle.response_started):
            return  # the next request of a pipeline, or a body nobody waits for: the answer goes first
        if self.flow.read_paused:
            self.deadline = now + self._limits.body_timeout_s  # we are the slow ones
            return
        self._refuse(ApiError(408, "the request came too slowly", code="request_timeout"))

    def answer(self, cycle: RequestResponseCycle, head: bytes, body: bytes) -> None:
        """Send a whole answer of known length in one write, where ASGI's two messages would take two.

        `cycle` is the request's own (the extension ``orchestrator.cycle``); `head` holds every field but Date and
        Connection, and no blank line. Call it once, before anything was sent.
        """
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        if cycle.disconnected:
            return
        self.transport.write(b"".join((head, self._fields(cycle), body)))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def begin_answer(self, cycle: RequestResponseCycle, head: bytes, *, chunked: bool) -> bytes:
        """The bytes that begin an answer whose body comes in pieces; see `answer` for `head`."""
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        framing = b"transfer-encoding: chunked\r\n" if chunked else b""
        return b"".join((head, framing, self._fields(cycle)))

    def send(self, cycle: RequestResponseCycle, data: bytes) -> bool:
        """Send bytes of an answer as they are; False when the client's socket is full."""
        if data and not cycle.disconnected:
            self.transport.write(data)
        return not self.flow.write_paused

    def end_answer(self, cycle: RequestResponseCycle) -> None:
        """All of the answer has been sent: the next request may come."""
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def run_app(self, cycle: RequestResponseCycle) -> None:
        """Hand a request to the ASGI app after all."""
        super()._start_asgi_task(cycle, self.app)

    def write_chunk(self, cycle: RequestResponseCycle, data: bytes) -> bool:
        """Send a piece of a chunked answer that was begun by ASGI; False when the client's socket is full."""
        if not cycle.disconnected:
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self.flow.write_paused

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline = self.loop.time() + self._limits.header_timeout_s
        if len(self.connections) > self._limits.connections_max:
            headers = {"retry-after": "1"}
            self._refuse(ApiError(503, "too many connections", code="too_many_connections", headers=headers))

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        self._unset_keepalive_if_required()
        self._fed_bytes = self._head_bytes + len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return  # we stay with HTTP/1.1, as a server may (RFC 9110, 7.8)
        except httptools.HttpParserError:
            self._refuse(self._refusal or ApiError(400, "the request is not valid HTTP", code="invalid_http"))
            return
        if self._in_head:
            self._head_bytes += len(data)  # one field that never ends is shown by the parser only when whole
            if self._head_bytes > self._limits.header_bytes_max or not self._fits():
                self._refuse(_head_too_large())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._closed = True
        self._waiting = None
        if self._ride is not None:
            self._ride.left()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._ride is not None:
            self._ride.writable()

    # --- parser callbacks ---

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]
        self._in_head = True
        self._head_bytes = 0
        self.deadline = self.loop.time() + self._limits.header_timeout_s

    def on_headers_complete(self) -> None:
        if self._fed_bytes > self._limits.header_bytes_max or len(self.headers) > self._limits.headers_max:
            self._check_fit()
        if problem := self._problem():
            self._stop(ApiError(400, problem, code="invalid_http"))
        try:
            self._parsing_head = True
            super().on_headers_complete()
            self._parsing_head = False
        except (httptools.HttpParserError, UnicodeDecodeError):
            self._stop(ApiError(400, "the request target is not valid", code="invalid_http"))
        self.scope["extensions"][CYCLE] = self.cycle  # type: ignore[assignment]
        self._in_head = False
        self._body_bytes = 0
        self._body_began_at = self.loop.time()
        self.deadline = self._body_began_at + self._limits.body_timeout_s

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        earned_s = self._body_bytes / self._limits.body_bytes_per_s_min
        self.deadline = self._body_began_at + self._limits.body_timeout_s + earned_s
        super().on_body(body)
        if self._waiting is not None and len(self.cycle.body) > EXPRESS_BYTES_MAX:
            waiting, self._waiting = self._waiting, None
            self.run_app(waiting)

    def on_message_complete(self) -> None:
        self.deadline = math.inf
        super().on_message_complete()
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._ride = self._express.board(self, waiting) if self._express else None
            if self._ride is None:
                self.run_app(waiting)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """uvicorn starts the app with the head; what may go by express waits for its body first."""
        ahead = self._parsing_head and app is self.app and not cycle.waiting_for_100_continue
        small = self.body_bytes is not None and self.body_bytes <= EXPRESS_BYTES_MAX
        if self._express is not None and ahead and small and self._express.takes(cycle.scope):
            self._waiting = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def _fields(self, cycle: RequestResponseCycle) -> bytes:
        """The last fields of a head, and the blank line."""
        ours = b"".join([b"%b: %b\r\n" % field for field in self.server_state.default_headers])
        return ours + (b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")

    def ride_ended(self) -> None:
        """The request that went by express is done with this connection."""
        self._ride = None

    def _check_fit(self) -> None:
        if not self._fits():
            self._stop(_head_too_large())

    def _fits(self) -> bool:
        """Whether the fields that have come are within the limits."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return len(self.headers) <= self._limits.headers_max and size <= self._limits.header_bytes_max

    def _problem(self) -> str:
        """What is wrong with a head that parsed; empty: nothing."""
        if self.parser.get_method() == b"CONNECT" or not self.url.startswith((b"/", b"http://", b"https://")):
            return "the request target is not a path"
        if b"#" in self.url:
            return "the request target has a fragment"
        hosts = 0
        self.body_bytes = None
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                self.body_bytes = int(value)  # the parser has seen that it is a number, and only one
        if hosts != 1 and (hosts > 1 or self.parser.get_http_version() == "1.1"):
            return "a request has exactly one Host field"
        return ""

    def on_response_complete(self) -> None:
        """As uvicorn's, but an idle connection is left to the sweep instead of a timer of its own."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self.deadline = self.loop.time() + self._limits.keep_alive_s

    # --- refusing ---

    def _stop(self, refusal: ApiError) -> None:
        self._refusal = refusal
        raise _Refused

    def _refuse(self, error: ApiError) -> None:
        """Answer before any app sees the request, and close."""
        self._closed = True
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if not (answering and self.cycle.response_started):
            self.transport.write(_answer(error))
        self.transport.close()


def _head_too_large() -> ApiError:
    return ApiError(431, "the request head is too large", code="headers_too_large")


def _answer(error: ApiError) -> bytes:
    body = msgspec.json.encode(error.body())
    fields = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        "x-request-id": f"req-{secrets.token_hex(10)}",
        **error.headers,
    }
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        *(f"{k}: {v}" for k, v in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
