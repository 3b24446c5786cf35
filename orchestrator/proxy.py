"""The data plane: raw ASGI in, lean HTTP/1.1 out.

Every path of the contract's inference list is served from `TARGETS`, and nothing else of an engine can be
reached: the path that goes out is the table's, never the client's. Bytes pass as they are, but for what
`stream_usage` adds to the request for a stream and takes out of its answer; only a few fields are read of a request.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator import wire
from orchestrator.access.auth import Admission
from orchestrator.activator import Activator, Lane, Route
from orchestrator.errors import ApiError
from orchestrator.hold import Turn
from orchestrator.metering.gate import fields_of
from orchestrator.metering.meter import Bill, Meter, Outcome
from orchestrator.model import Scope as KeyScope
from orchestrator.patience import patience
from orchestrator.reader import ClientGone, Peek, peek, peek_multipart, read_body, with_stream_default
from orchestrator.refusal import describe, refusal
from orchestrator.settings import ActivatorSettings
from orchestrator.upstream import (
    Connection,
    Headers,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)

PROGRESS_S = 5.0
"""A stream that waits says so this often, so that no proxy between closes it."""
CONNECTION = "orchestrator.connection"
"""The ASGI extension by which `guard` tells that the client left; see `guard.GuardedProtocol`."""
CYCLE = "orchestrator.cycle"
"""The ASGI extension that names one request among those of a connection."""

_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/rerank",
    "/v1/score",
    "/v1/audio/transcriptions",
    "/tokenize",
    "/detokenize",
)
TARGETS: dict[str, bytes] = {path: path.encode() for path in _PATHS} | {"/api/chat": b"/v1/chat/completions"}
"""The path a client asks for, and the path that its engine is asked for."""


class RequestIds:
    """Makes ids: cheap, and different in every run."""

    def __init__(self) -> None:
        self._boot = secrets.token_hex(6).encode()
        self._serial = itertools.count(1)

    def __call__(self) -> bytes:
        return b"req-%b-%d" % (self._boot, next(self._serial))


class Call:
    """One request on its way."""

    __slots__ = ("bill", "body", "gone", "headers", "id", "model", "ours", "query", "scope", "send", "sent", "target")

    def __init__(self, scope: Scope, send: Send, request_id: bytes, target: bytes) -> None:
        self.id = request_id
        self.target = target
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        self.ours: Headers = [(b"x-request-id", request_id)]
        self.scope = scope
        self.send = send
        self.sent = False
        self.gone = False
        self.body = b""
        self.model = ""
        self.bill: Bill
        """There once it is admitted at its limits."""


class Proxy:
    """The outermost ASGI app: inference goes to engines, all else to `app`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        activator: Activator,
        keys: Admission,
        meter: Meter,
        limits: ActivatorSettings,
        body_bytes_max: int,
        request_id: Callable[[], bytes],
        monotonic: Callable[[], float],
        wake: Callable[[], None],
        request_head: wire.RequestHead = wire.request_head,
    ) -> None:
        self._app = app
        self._activator = activator
        self._keys = keys
        self._meter = meter
        self._limits = limits
        self._body_bytes_max = body_bytes_max
        self._now = monotonic
        self._wake = wake
        self._request_id = request_id
        self._request_head = request_head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = TARGETS.get(scope["path"]) if scope["type"] == "http" else None
        if target is None:
            await self._app(scope, receive, send)
            return
        call = Call(scope, send, self._request_id(), target)
        try:
            await self._serve(call, scope, receive)
        except ApiError as error:
            await wire.send_error(send, error, call.id)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            if not call.gone:
                raise

    async def _serve(self, call: Call, scope: Scope, receive: Receive) -> None:
        if scope["method"] != "POST":
            raise ApiError(405, "this path takes POST", code="method_not_allowed", headers={"allow": "POST"})
        key = self._keys.admit(call.headers, KeyScope.REALTIME)
        bytes_max = min(self._body_bytes_max, key.limits.request_bytes_max or self._body_bytes_max)
        call.body = await read_body(scope, receive, body_bytes_max=bytes_max)
        asked = _asked(call, scope["path"])
        call.model = asked.model
        route = self._activator.routes.get(asked.model)
        if route is None or not key.may_use(asked.model):
            raise ApiError(404, f"no model {asked.model[:200]!r}", code="model_not_found", param="model")
        connection, task = scope["extensions"][CONNECTION], asyncio.current_task()
        assert task is not None
        try:
            bill = call.bill = self._meter.open(key, route.deployment, asked, len(call.body))
        except ApiError:
            self._meter.refused(key, asked.model)
            raise
        call.body = bill.ask(call.target, call.body, asked)

        def leave() -> None:
            call.gone = True
            task.cancel()

        connection.on_close = leave
        try:
            await self._answer(call, asked, connection.abort)
        finally:
            connection.on_close = None
            bill.close(Outcome.CANCELLED)  # unless it has ended otherwise

    async def _answer(self, call: Call, asked: Peek, abort: Callable[[], None]) -> None:
        """Find a lane, wait for one if the request stands it, and forward. An answer that breaks off in
        the middle is cut, so that it can't be taken for whole."""
        bill = call.bill
        try:
            lane, turn = self._lane(call) or await self._admit(call, asked)
            try:
                good = await self._forward(call, lane, turn)
            except UpstreamUnreachable:  # it died just now: nothing was answered, so wait for the next as others do
                self._activator.drop(lane, self._now())
                lane, turn = await self._admit(call, asked)
                good = await self._forward(call, lane, turn)
            bill.close(Outcome.OK if good else Outcome.ERROR)
        except UpstreamError as error:
            bill.close(Outcome.ERROR)
            self._wake()
            if not call.sent:
                raise fault(error) from None
            abort()

    def _lane(self, call: Call) -> tuple[Lane, Turn | None] | None:
        """The lane of a request that need not wait."""
        route = self._activator.routes.get(call.model)
        return None if route is None else self._activator.lane(route, call.bill.key)

    async def _admit(self, call: Call, asked: Peek) -> tuple[Lane, Turn]:
        """A lane and leave to use it, within what the request stands. Raises the refusal."""
        stands = patience(call.headers, self._limits.hold_max_s)
        if stands.applied:
            call.ours.append((b"preference-applied", stands.applied))
        now, route = self._now(), self._activator.routes.get(call.model)
        if route is None or not route.lanes:
            call.bill.cold = True
            self._activator.ask(call.model, now)
        until = now + (stands.hold_s if call.bill.cold or stands.applied else self._limits.hold_max_s)
        try:
            admitted = await self._held(call, until, early=stands.progress and bool(asked.stream))
            call.bill.stood(self._now() - now)
            return admitted
        except ApiError as error:
            call.bill.refuse()
            if error.status == 503:
                self._activator.expect(call.model, self._now() + int(error.headers["retry-after"]))
            if stands.applied:
                error.headers["preference-applied"] = stands.applied.decode()
            if not call.sent:
                raise
            await call.send({"type": "http.response.body", "body": wire.sse_error(error), "more_body": False})
            raise ClientGone from None

    async def _held(self, call: Call, until: float, *, early: bool) -> tuple[Lane, Turn]:
        """Stand in line until `until`; with `early`, open the stream first and tell the progress there."""
        while True:
            now, route = self._now(), self._activator.routes.get(call.model)
            if route is None:
                raise ApiError(404, f"no model {call.model!r}", code="model_not_found", param="model")
            if now >= until or self._activator.closing or route.given_up(now):
                raise self._refusal(route, now)
            if early:
                await self._tell(call, route, now)
            stand_s = min(until - now, PROGRESS_S) if early else until - now
            admitted = await self._activator.stand(call.model, call.bill.key, stand_s)
            if admitted is not None:
                return admitted
            if self._now() < now + stand_s and (still := self._activator.routes.get(call.model)):
                raise self._refusal(still, self._now())  # dismissed before its time: nothing to wait for

    def _refusal(self, route: Route, now: float) -> ApiError:
        limit_s = self._limits.retry_after_max_s
        closing, stopped = self._activator.closing, self._activator.stopped(route.deployment.name)
        return refusal(route, now, retry_after_max_s=limit_s, closing=closing, stopped=stopped)

    async def _tell(self, call: Call, route: Route, now: float) -> None:
        """One SSE comment with the progress; opens the stream the first time."""
        if not call.sent:
            call.sent = True
            headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), *call.ours]
            await call.send({"type": "http.response.start", "status": 200, "headers": headers})
        eta_s = route.eta_s(now)
        text = describe(route) + ("" if eta_s is None else f", about {eta_s:.0f} s")
        await call.send({"type": "http.response.body", "body": f": {text}\n\n".encode(), "more_body": True})

    async def _forward(self, call: Call, lane: Lane, turn: Turn | None) -> bool:
        """Send the request and pass the answer back; whether it was a whole and good one."""
        bill = call.bill
        bill.enter(lane)
        try:
            head = self._request_head(
                call.target, call.query, lane.pool.authority, call.headers, call.id, len(call.body)
            )
            connection = await lane.pool.request(head, call.body)
            try:
                bill.head(connection.status, sized=_sized(connection))
                if turn is not None:
                    turn.begun()
                if connection.status >= 400:
                    return await _pass_error(call, connection)
                await _pass(call, connection)
                return True
            finally:
                lane.pool.release(connection)
        finally:
            bill.leave()
            if turn is not None:
                turn.over()


def _asked(call: Call, path: str) -> Peek:
    """What the request asks for; fills in `stream` where the path's default says so."""
    kind = wire.header(call.headers, b"content-type") or b""
    if path == "/v1/audio/transcriptions":
        return peek_multipart(kind, call.body)
    asked = peek(call.body)
    if path == "/api/chat" and asked.stream is None:
        call.body = with_stream_default(call.body, asked)
        return msgspec.structs.replace(asked, stream=True)
    return asked


async def _pass(call: Call, connection: Connection) -> None:
    """Pass a good answer as it comes; in one write if all of it is here already."""
    bill, sized = call.bill, _sized(connection)
    ours = call.ours + fields_of(bill.told())
    if connection.answered and not call.sent and sized:
        data = bill.through(await connection.chunk())
        extensions = call.scope["extensions"]
        extensions[CONNECTION].answer(extensions[CYCLE], wire.response_head(connection, ours), data)
        return
    if not call.sent:
        headers = wire.response_headers(connection.headers, ours)
        await call.send({"type": "http.response.start", "status": connection.status, "headers": headers})
        call.sent = True
    if not sized:
        await _relay(call, connection)
        return
    more = True
    while more:
        data = bill.through(await connection.chunk())
        more = not connection.answered
        await call.send({"type": "http.response.body", "body": data, "more_body": more})


def _sized(connection: Connection) -> bool:
    return wire.header(connection.headers, b"content-length") is not None


async def _relay(call: Call, connection: Connection) -> None:
    """Pass a stream from socket to socket."""
    client, cycle = call.scope["extensions"][CONNECTION], call.scope["extensions"][CYCLE]
    through = call.bill.through

    def sink(data: bytes) -> bool:
        seen = through(data)
        return bool(client.write_chunk(cycle, seen)) if seen else True

    while not await connection.relay(sink):
        await client.flow.drain()
    await call.send({"type": "http.response.body", "body": call.bill.rest(), "more_body": False})


async def _pass_error(call: Call, connection: Connection) -> bool:
    """Pass an engine's error in OpenAI's shape."""
    body = bytearray()
    while len(body) < wire.ERROR_BYTES_MAX and (data := await connection.chunk()):
        body += data
    content = wire.normal_error(connection.status, bytes(body))
    if call.sent:
        event = wire.sse_event(content)
        await call.send({"type": "http.response.body", "body": event, "more_body": False})
        return False
    ours = [*call.ours, *wire.retry_after(connection.status, connection.headers)]
    await wire.send_json(call.send, connection.status, content, ours)
    return connection.status < 500


def fault(error: UpstreamError) -> ApiError:
    """An engine's fault as an answer."""
    if isinstance(error, UpstreamTimeout):
        return ApiError(504, str(error), code="engine_timeout")
    if isinstance(error, UpstreamUnreachable):
        return ApiError(502, str(error), code="engine_unreachable", headers={"retry-after": "1"})
    return ApiError(502, str(error), code="engine_error")
