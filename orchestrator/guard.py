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
from typing import Protocol

import httptools
from uvicorn._types import ASGI3Application, HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from orchestrator.answering import CONNECTION, CYCLE
from orchestrator.errors import ApiError
from orchestrator.head import BodyLimit, body_too_large, early_answer, head_too_large, judge, size, without_upgrade
from orchestrator.settings import ServerSettings

EXPRESS_BYTES_MAX = 32 * 2**10
"""Larger bodies go by the app, which reads them with back-pressure."""
LINGER_S = 2.0
"""A refused client gets this long to take its answer and close: to close first, with bytes unread, would reset the
connection and may lose the answer (RFC 9112, 9.6)."""


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

    def __init__(
        self,
        limits: ServerSettings,
        express: Express | None = None,
        body_limit: BodyLimit | None = None,
        **uvicorn: object,
    ) -> None:
        super().__init__(**uvicorn)  # type: ignore[arg-type]
        self._limits = limits
        self._body_limit = body_limit or (lambda target: limits.body_bytes_max)
        self._express = express
        self._parsing_head = False
        self._in_hand: RequestResponseCycle | None = None
        """The request that is being answered, or was last; of a pipeline, uvicorn's `cycle` is the last to come."""
        self._waiting: RequestResponseCycle | None = None
        """A request that may go by `express` once its body is here."""
        self._ride: Ride | None = None
        self._refusal: ApiError | None = None
        self._closed = False
        self._in_head = False
        self._in_body = False
        self._progressed = False
        """Whether the bytes just read ended a head, or held or ended a body."""
        self._idle_bytes = 0
        """Bytes since the last progress: of a head, of trailers, of a chunk's extension, or of blank lines."""
        self._fed_bytes = 0
        """An upper bound of the size of the head that is being parsed."""
        self._unsent_bytes = math.inf
        """What was left to send when the connection was last found to be past its deadline."""
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
        if self.flow.read_paused:
            self._forgive(now)
        elif self.deadline == math.inf and self.transport.is_closing():
            self.deadline = now + self._limits.keep_alive_s
        if now < self.deadline:
            return
        if self._closed:
            self.transport.abort()
        elif self.transport.is_closing() or (self.cycle is not None and not self._answering and not self._in_head):
            self._end(now)
        elif self._answering and (self._in_head or self._begun or self.pipeline):
            return  # the next request of a pipeline, or a body nobody waits for: the answer goes first
        else:
            self._refuse(ApiError(408, "the request came too slowly", code="request_timeout"))

    def give_up(self) -> None:
        """The service ends now: what has no answer yet gets one, what has part of one is cut."""
        if self._answering and not self._begun:
            self._refuse(ApiError(503, "the service is ending", code="service_ending", headers={"retry-after": "1"}))
        else:
            self.transport.abort()

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
            error = ApiError(503, "too many connections", code="too_many_connections", headers=headers)
            self._refuse(error, linger=False)

    def data_received(self, data: bytes) -> None:
        if self._closed:
            self._idle_bytes += len(data)
            if self._idle_bytes > self._limits.body_bytes_max:
                self.transport.abort()
            return
        self._fed_bytes = len(data) + (self._fed_bytes if self._in_head else 0)
        self._progressed = False
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or ApiError(400, "the request is not valid HTTP", code="invalid_http"))
            return
        if not self._progressed:  # what never ends is shown by the parser only when whole, if at all
            self._idle_bytes += len(data)
            if self._idle_bytes > self._limits.header_bytes_max or (self._in_head and not self._fits()):
                self._refuse(head_too_large())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._closed = True
        if self._in_hand is not None and not self._in_hand.response_complete:
            self._in_hand.disconnected = True
            self._in_hand.message_event.set()
        self._waiting = None
        if self._ride is not None:
            self._ride.left()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def shutdown(self) -> None:
        if self._closed:
            self.transport.abort()
        else:
            super().shutdown()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._ride is not None:
            self._ride.writable()

    def _feed(self, data: bytes | memoryview) -> None:
        """Parse. A wish to upgrade is not granted (RFC 9110, 7.8); the parser takes such a request for ended with
        its head, and its body for the next one, so it is parsed once more without the wish."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = memoryview(data)[upgrade.args[0] :]
                head = without_upgrade(self.parser.get_method(), self.parser.get_http_version(), self.url, self.headers)
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
                self.parser.feed_data(head)

    # --- parser callbacks ---

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]
        self._in_head = True
        self._idle_bytes = 0
        self.deadline = self.loop.time() + self._limits.header_timeout_s

    def on_headers_complete(self) -> None:
        self._progressed = True
        self._idle_bytes = 0
        surely_fits = self._fed_bytes <= self._limits.header_bytes_max and len(self.headers) <= self._limits.headers_max
        if not surely_fits and not self._fits():
            self._stop(head_too_large())
        problem, self.body_bytes = judge(
            self.parser.get_method(), self.parser.get_http_version(), self.url, self.headers
        )
        if problem:
            self._stop(ApiError(400, problem, code="invalid_http"))
        self._weigh(self.body_bytes or 0)
        if self.parser.should_upgrade():
            return  # it comes once more, see `_feed`
        try:
            self._parsing_head = True
            super().on_headers_complete()
            self._parsing_head = False
        except (httptools.HttpParserError, UnicodeDecodeError):
            self._stop(ApiError(400, "the request target is not valid", code="invalid_http"))
        self.scope["extensions"][CYCLE] = self.cycle  # type: ignore[assignment]
        self.headers = []  # trailers are none of the fields that were judged, and are dropped (RFC 9110, 6.5.1)
        self._in_head = False
        self._in_body = True
        self._body_bytes = 0
        self._body_began_at = self.loop.time()
        self.deadline = self._body_began_at + self._limits.body_timeout_s

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        self._idle_bytes = 0
        self._body_bytes += len(body)
        self._weigh(self._body_bytes)
        self.deadline = self._body_began_at + self._limits.body_timeout_s + self._earned_s()
        super().on_body(body)
        if self._waiting is not None and len(self.cycle.body) > EXPRESS_BYTES_MAX:
            waiting, self._waiting = self._waiting, None
            self.run_app(waiting)

    def on_message_complete(self) -> None:
        if self._in_head:
            return  # see `_feed`
        self._progressed = True
        self._in_body = False
        answered = self.cycle.response_complete
        self.deadline = self.loop.time() + self._limits.keep_alive_s if answered else math.inf
        super().on_message_complete()
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._ride = self._express.board(self, waiting) if self._express else None
            if self._ride is None:
                self.run_app(waiting)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """uvicorn starts the app with the head; what may go by express waits for its body first."""
        self._in_hand = cycle
        ahead = self._parsing_head and app is self.app and not cycle.waiting_for_100_continue
        small = self.body_bytes is not None and self.body_bytes <= EXPRESS_BYTES_MAX
        if self._express is not None and ahead and small and self._express.takes(cycle.scope):
            self._waiting = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def _fields(self, cycle: RequestResponseCycle) -> bytes:
        """The last fields of a head, and the blank line."""
        ours = b"".join([b"%b: %b\r\n" % field for field in cycle.default_headers])
        return ours + (b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")

    def ride_ended(self) -> None:
        """The request that went by express is done with this connection."""
        self._ride = None

    def _fits(self) -> bool:
        """Whether the fields that have come are within the limits."""
        limits = self._limits
        return len(self.headers) <= limits.headers_max and size(self.url, self.headers) <= limits.header_bytes_max

    def on_response_complete(self) -> None:
        """As uvicorn's, but an idle connection is left to the sweep instead of a timer of its own."""
        self.server_state.total_requests += 1
        self._unsent_bytes = math.inf
        if self._closed or self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._in_head:
            self.deadline = self.loop.time() + self._limits.header_timeout_s
        elif not self._in_body:
            self.deadline = self.loop.time() + self._limits.keep_alive_s

    # --- time ---

    def _earned_s(self) -> float:
        """What the bytes of the body that have come are worth."""
        return self._body_bytes / self._limits.body_bytes_per_s_min

    def _forgive(self, now: float) -> None:
        """We do not read, so the client's time stands still."""
        if self._in_head:
            self.deadline = now + self._limits.header_timeout_s
        elif self._in_body:
            self._body_began_at = now - self._earned_s()
            self.deadline = now + self._limits.body_timeout_s

    def _end(self, now: float) -> None:
        """Close what was kept alive for long enough; a client that still takes its answer keeps it."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes >= self._unsent_bytes:
            self.transport.abort()
            return
        if not unsent_bytes:
            self.transport.close()
        self._unsent_bytes = unsent_bytes
        self.deadline = now + self._limits.keep_alive_s

    # --- refusing ---

    @property
    def _answering(self) -> bool:
        """Whether a request waits for its answer, or for the end of it."""
        return self._in_hand is not None and not self._in_hand.response_complete

    @property
    def _begun(self) -> bool:
        """Whether a part of that answer has been sent."""
        return self._in_hand is not None and self._in_hand.response_started

    def _weigh(self, body_bytes: int) -> None:
        """Refuse a body that is beyond the limit of its path."""
        if body_bytes > self._limits.body_bytes_max and body_bytes > (bytes_max := self._body_limit(self.url)):
            self._stop(body_too_large(bytes_max))

    def _stop(self, refusal: ApiError) -> None:
        self._refusal = refusal
        raise _Refused

    def _refuse(self, error: ApiError, *, linger: bool = True) -> None:
        """Answer before any app sees the request, and close. One request never gets two answers."""
        self._closed = True
        if self.transport.is_closing():
            return
        answered = self._in_body and not self._answering
        if not answered and not (self._answering and self._begun):
            self.transport.write(early_answer(error, b"req-" + secrets.token_hex(10).encode()))
        if self._answering or answered or not linger:
            self.transport.close()
        else:
            self.deadline = self.loop.time() + LINGER_S
            self.transport.write_eof()
