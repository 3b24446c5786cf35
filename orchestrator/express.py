"""The express lane: a warm request goes from socket to socket, without an ASGI task.

It takes only what needs no thought: a small JSON request of an admitted key, for a model that is ready, over an
idle connection. All else, and whatever goes wrong before the first byte came back, goes by the app, which decides
again from the start. What both do alike lives in `wire`, `reader` and `proxy`.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, cast

from uvicorn._types import HTTPScope

from orchestrator import wire
from orchestrator.activator import Activator, Lane
from orchestrator.auth import KeyRing
from orchestrator.browsers import by_browser
from orchestrator.errors import ApiError
from orchestrator.guard import GuardedProtocol
from orchestrator.metrics import Metrics, ModelMetrics
from orchestrator.model import Scope
from orchestrator.proxy import TAIL_BYTES, TARGETS, count_tokens, fault
from orchestrator.reader import peek
from orchestrator.upstream import Headers, UpstreamError, UpstreamUnreachable

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

PATHS = {path: target for path, target in TARGETS.items() if path.encode() == target and "audio" not in path}


class ExpressLane:
    """Implements `guard.Express`."""

    def __init__(
        self,
        *,
        activator: Activator,
        keys: KeyRing,
        metrics: Metrics,
        request_id: Callable[[], bytes],
        monotonic: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._activator = activator
        self._keys = keys
        self._metrics = metrics
        self._request_id = request_id
        self.monotonic = monotonic
        self.wake = wake

    def takes(self, scope: HTTPScope) -> bool:
        """See `guard.Express.takes`."""
        return scope["path"] in PATHS and scope["method"] == "POST" and not by_browser(cast(Headers, scope["headers"]))

    def board(self, client: GuardedProtocol, cycle: RequestResponseCycle) -> Ride | None:
        """See `guard.Express.board`."""
        headers, body = cast(Headers, cycle.scope["headers"]), bytes(cycle.body)
        try:
            key = self._keys.admit(headers, Scope.REALTIME)
            model = peek(body).model
        except ApiError:
            return None
        lane = self._activator.lane(model) if key.may_use(model) else None
        if lane is None:
            return None
        ride = Ride(self, client, cycle, lane, self._metrics.of(model), self._request_id())
        target, query = PATHS[cycle.scope["path"]], cycle.scope["query_string"]
        head = wire.request_head(target, query, lane.pool.authority, headers, ride.request_id, len(body))
        return ride if ride.depart(head, body) else None


class Ride:
    """One request on its way. Implements `guard.Ride` and `upstream.Listener`."""

    __slots__ = (
        "_began_at",
        "_chunked",
        "_client",
        "_connection",
        "_cycle",
        "_express",
        "_lane",
        "_metrics",
        "_streaming",
        "_tail",
        "request_id",
    )

    def __init__(
        self,
        express: ExpressLane,
        client: GuardedProtocol,
        cycle: RequestResponseCycle,
        lane: Lane,
        metrics: ModelMetrics,
        request_id: bytes,
    ) -> None:
        self._express, self._client, self._cycle = express, client, cycle
        self._lane, self._metrics = lane, metrics
        self.request_id = request_id
        self._began_at = perf_counter()
        self._streaming = self._chunked = False
        self._tail = b""

    def depart(self, head: bytes, body: bytes) -> bool:
        """Send the request; False when no connection is idle."""
        connection = self._lane.pool.begin(head, body, self)
        if connection is None:
            return False
        self._connection = connection
        self._lane.in_flight += 1
        return True

    # --- guard.Ride ---

    def left(self) -> None:
        """The client is gone: so is its request at the engine."""
        self._connection.listen(None)
        self._connection.abort()
        self._metrics.cancelled += 1
        self._arrive()

    def writable(self) -> None:
        """The client takes bytes again."""
        self._connection.resume()
        if self._streaming:
            self._pour()

    # --- upstream.Listener ---

    def progressed(self) -> None:
        """1. Before the head: wait. 2. An error: wait for all of it. 3. Whole: one write. 4. Else: stream."""
        connection = self._connection
        if not connection.status:
            return
        if self._streaming:
            self._pour()
        elif connection.status >= 400:
            if connection.answered or connection.buffered_bytes > wire.ERROR_BYTES_MAX:
                self._answer_error()
        elif connection.answered:
            self._answer_whole()
        else:
            self._begin_stream()

    def failed(self, error: UpstreamError) -> None:
        """1. Nothing came: the app tries again. 2. No answer was begun: an error. 3. Else: a cut."""
        express, client, cycle = self._express, self._client, self._cycle
        express.wake()
        if isinstance(error, UpstreamUnreachable) and not self._streaming:
            self._arrive()
            cycle.message_event.set()
            client.run_app(cycle)
            return
        self._count(good=False)
        self._arrive()
        if self._streaming:
            client.abort()
        else:
            told = fault(error)
            client.answer(cycle, *wire.json_answer(told.status, told.body(), self._ours()))

    # --- answering ---

    def _answer_whole(self) -> None:
        connection, client, cycle = self._connection, self._client, self._cycle
        body = connection.take()
        head = wire.response_head(connection, self._ours())
        if wire.header(connection.headers, b"content-length") is None:
            head += b"content-length: %d\r\n" % len(body)
        self._metrics.first_byte_seconds.observe(perf_counter() - self._began_at)
        self._count(good=count_tokens(body[-TAIL_BYTES:], self._metrics))
        self._arrive()
        client.answer(cycle, head, body)

    def _answer_error(self) -> None:
        connection, client, cycle = self._connection, self._client, self._cycle
        status = connection.status
        content = wire.normal_error(status, connection.take())
        ours = [*self._ours(), *wire.retry_after(status, connection.headers)]
        self._count(good=status < 500)
        self._arrive()
        client.answer(cycle, *wire.json_answer(status, content, ours))

    def _begin_stream(self) -> None:
        connection = self._connection
        self._streaming = True
        self._chunked = wire.header(connection.headers, b"content-length") is None
        self._metrics.first_byte_seconds.observe(perf_counter() - self._began_at)
        head = wire.response_head(connection, self._ours())
        self._pour(self._client.begin_answer(self._cycle, head, chunked=self._chunked))

    def _pour(self, before: bytes = b"") -> None:
        """Send what has come, and the end with it if that has come too."""
        connection, client, cycle = self._connection, self._client, self._cycle
        data = connection.take()
        self._tail = data if len(data) >= TAIL_BYTES else (self._tail + data)[-TAIL_BYTES:]
        if self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not connection.answered:
            if not client.send(cycle, before + data):
                connection.pause()
            return
        self._count(good=count_tokens(self._tail, self._metrics))
        self._arrive()
        client.send(cycle, before + data + (b"0\r\n\r\n" if self._chunked else b""))
        client.end_answer(cycle)

    def _ours(self) -> Headers:
        return [(b"x-request-id", self.request_id)]

    def _count(self, *, good: bool) -> None:
        metrics = self._metrics
        metrics.ok += good
        metrics.failed += not good
        metrics.seconds.observe(perf_counter() - self._began_at)

    def _arrive(self) -> None:
        """Done with the engine and the client, whatever came of it."""
        self._lane.in_flight -= 1
        self._lane.last_byte_at = self._express.monotonic()
        self._lane.pool.release(self._connection)
        self._client.ride_ended()
