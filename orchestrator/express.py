"""The express lane: a warm request goes from socket to socket, without an ASGI task.

It takes only what needs no thought: a small JSON request of an admitted key, for a model that is ready, over an
idle connection. All else, and whatever goes wrong before the first byte came back, goes by the app, which decides
again from the start. What both do alike lives in `wire`, `reader` and `proxy`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from uvicorn._types import HTTPScope

from orchestrator import wire
from orchestrator.access.auth import Admission
from orchestrator.access.browsers import by_browser
from orchestrator.activator import Activator
from orchestrator.answering import FAILED, fault, refused
from orchestrator.balance.lane import Lane
from orchestrator.balance.retry import RESPONSES, RETRIED, may_repeat
from orchestrator.errors import ApiError, UpstreamDeclined, UpstreamError, UpstreamUnreachable
from orchestrator.guard import GuardedProtocol
from orchestrator.hold import Turn
from orchestrator.metering.meter import Bill, Meter, Outcome
from orchestrator.model import Scope
from orchestrator.proxy import TARGETS
from orchestrator.reader import peek
from orchestrator.upstream import KEPT_CLOSES_S, Headers

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

PATHS = {path: target for path, target in TARGETS.items() if path.encode() == target and "audio" not in path}


class ExpressLane:
    """Implements `guard.Express`."""

    def __init__(
        self,
        *,
        activator: Activator,
        keys: Admission,
        meter: Meter,
        request_id: Callable[[], bytes],
        monotonic: Callable[[], float],
        wake: Callable[[], None],
        request_head: wire.RequestHead = wire.request_head,
    ) -> None:
        self.activator = activator
        self._keys = keys
        self._meter = meter
        self._request_id = request_id
        self.monotonic = monotonic
        self.wake = wake
        self._request_head = request_head

    def takes(self, scope: HTTPScope) -> bool:
        """See `guard.Express.takes`."""
        return scope["path"] in PATHS and scope["method"] == "POST" and not by_browser(cast(Headers, scope["headers"]))

    def board(self, client: GuardedProtocol, cycle: RequestResponseCycle) -> Ride | None:
        """See `guard.Express.board`."""
        headers, body = cast(Headers, cycle.scope["headers"]), bytes(cycle.body)
        try:
            key = self._keys.admit(headers, Scope.REALTIME)
            asked = peek(body)
            route = self.activator.routes.get(asked.model)
            if route is None or not key.may_use(asked.model):
                return None
            bill = self._meter.open(key, route.deployment, asked, len(body))
        except ApiError:
            return None
        found = self.activator.lane(route, key, body)
        if found is None:
            bill.withdraw()
            return None
        target, query = PATHS[cycle.scope["path"]], cycle.scope["query_string"]
        if found[0].breaker is not None and target == RESPONSES:  # the app looks at what comes back
            bill.withdraw()
            if found[1] is not None:
                found[1].over()
            return None
        body = bill.ask(target, body, asked)
        ride = Ride(self, client, cycle, *found, bill, self._request_id())
        lane = found[0]
        if lane.disguise is None:
            head = self._request_head(target, query, ride.authority, headers, ride.request_id, len(body))
        else:
            head, body = wire.disguised(
                lane.disguise, self._request_head, target, query, ride.authority, headers, ride.request_id, body
            )
        return ride if ride.depart(head, body) else None


class Ride:
    """One request on its way. Implements `guard.Ride` and `listener.Listener`."""

    __slots__ = (
        "_bill",
        "_chunked",
        "_client",
        "_connection",
        "_cycle",
        "_express",
        "_lane",
        "_streaming",
        "_turn",
        "request_id",
    )

    def __init__(
        self,
        express: ExpressLane,
        client: GuardedProtocol,
        cycle: RequestResponseCycle,
        lane: Lane,
        turn: Turn | None,
        bill: Bill,
        request_id: bytes,
    ) -> None:
        self._express, self._client, self._cycle = express, client, cycle
        self._lane, self._turn, self._bill = lane, turn, bill
        self.request_id = request_id
        self._streaming = self._chunked = False

    @property
    def authority(self) -> bytes:
        """The engine's."""
        return self._lane.pool.authority

    def depart(self, head: bytes, body: bytes) -> bool:
        """Send the request; False when no connection is idle."""
        lane = self._lane
        if lane.breaker is None:
            connection = lane.pool.begin(head, body, self)
        else:
            hasty = self._bill.streamed and self._movable()
            connection = lane.pool.begin(head, body, self, movable=may_repeat(self._target), streamed=hasty)
        if connection is None:
            self._go_back()
            return False
        self._connection = connection
        self._bill.enter(self._lane)
        return True

    # --- guard.Ride ---

    def left(self) -> None:
        """The client is gone: so is its request at the engine."""
        self._connection.listen(None)
        self._connection.abort()
        self._arrive(Outcome.CANCELLED)

    def writable(self) -> None:
        """The client takes bytes again."""
        self._connection.resume()
        if self._streaming:
            self._pour()

    # --- listener.Listener ---

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
        """1. The answer was begun: a cut. 2. The connection had closed already: the app tries again. 3. So it does
        where there is another lane, or nobody knows whether one comes. 4. Else: an error."""
        self._express.wake()
        if self._streaming:
            self._arrive(Outcome.ERROR)
            self._client.abort()
        elif isinstance(error, UpstreamUnreachable) and self._connection.age_s < KEPT_CLOSES_S:
            self._take_app()
        elif self._lane.breaker is not None:
            movable = self._movable()
            self._express.activator.missed(self._lane, self._express.monotonic(), refused=refused(error))
            self._take_app(error) if movable else self._answer_fault(error)
        elif isinstance(error, UpstreamUnreachable) and may_repeat(self._target):
            self._take_app()
        else:
            self._answer_fault(error)

    # --- answering ---

    def _answer_whole(self) -> None:
        connection, client, cycle, bill = self._connection, self._client, self._cycle, self._bill
        sized = self._head_came()
        body = bill.through(connection.take()) + bill.rest()
        head = wire.response_head(connection, self._ours()) + bill.told()
        if not sized:
            head += b"content-length: %d\r\n" % len(body)
        self._arrive(Outcome.OK)
        client.answer(cycle, head, body)

    def _answer_fault(self, error: UpstreamError) -> None:
        told = fault(error)
        self._arrive(Outcome.ERROR)
        self._client.answer(self._cycle, *wire.json_answer(told.status, told.body(), self._ours()))

    def _answer_error(self) -> None:
        connection, client, cycle = self._connection, self._client, self._cycle
        status = connection.status
        if self._lane.breaker is not None:
            self._told(status)
            if status in RETRIED and self._movable():
                self._take_app(UpstreamDeclined(f"the engine answered {status}"))
                return
        status, content = wire.passed_error(status, connection.take())
        ours = [*self._ours(), *wire.retry_after(status, connection.headers)]
        self._arrive(Outcome.OK if status < 500 else Outcome.ERROR)
        client.answer(cycle, *wire.json_answer(status, content, ours))

    def _begin_stream(self) -> None:
        connection = self._connection
        self._streaming = True
        self._chunked = not self._head_came()
        head = wire.response_head(connection, self._ours()) + self._bill.told()
        self._pour(self._client.begin_answer(self._cycle, head, chunked=self._chunked))

    def _head_came(self) -> bool:
        """A good answer begins; whether it has a length."""
        if self._lane.breaker is not None:
            self._told(self._connection.status)
        sized = wire.header(self._connection.headers, b"content-length") is not None
        self._bill.head(self._connection.status, sized=sized)
        return sized

    def _pour(self, before: bytes = b"") -> None:
        """Send what has come, and the end with it if that has come too."""
        connection, client, cycle, bill = self._connection, self._client, self._cycle, self._bill
        data = bill.through(connection.take())
        if not connection.answered:
            if not client.send(cycle, before + self._framed(data)):
                connection.pause()
            return
        data += bill.rest()
        self._arrive(Outcome.OK)
        client.send(cycle, before + self._framed(data) + (b"0\r\n\r\n" if self._chunked else b""))
        client.end_answer(cycle)

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data

    def _ours(self) -> Headers:
        return [(b"x-request-id", self.request_id)]

    @property
    def _target(self) -> bytes:
        return PATHS[self._cycle.scope["path"]]

    def _movable(self) -> bool:
        """Whether it may go on to another lane."""
        express, model = self._express, self._bill.deployment.name
        return may_repeat(self._target) and express.activator.spare(model, (self._lane,), express.monotonic())

    def _told(self, status: int) -> None:
        """One of several lanes has answered."""
        express, streamed = self._express, self._bill.streamed
        express.activator.answered(self._lane, status, self._connection.age_s, express.monotonic(), streamed=streamed)

    def _take_app(self, error: UpstreamError | None = None) -> None:
        """Go by the app, from the start; with `error`: past this lane."""
        if error is not None:
            self._cycle.scope["extensions"][FAILED] = (self._lane, error)  # type: ignore[assignment]  # ours, beside ASGI's
        self._go_back()
        self._let_go()
        self._cycle.message_event.set()
        self._client.run_app(self._cycle)

    def _arrive(self, outcome: Outcome) -> None:
        """Done with the engine and the client, whatever came of it."""
        lane, bill = self._lane, self._bill
        bill.close(outcome)
        if lane.breaker is not None and outcome is Outcome.OK and bill.streamed:
            lane.breaker.paced(self._connection.age_s, bill.completion_tokens)
        self._end_turn()
        self._let_go()

    def _go_back(self) -> None:
        """The app takes it, from the start."""
        self._bill.withdraw()
        self._end_turn()

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.over()

    def _let_go(self) -> None:
        self._lane.pool.release(self._connection)
        self._client.ride_ended()
