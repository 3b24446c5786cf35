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
from functools import partial

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator import wire
from orchestrator.access.auth import Admission
from orchestrator.access.key import Key
from orchestrator.activator import Activator, Route
from orchestrator.answering import CONNECTION, FAILED, Call, fault, is_sized, pass_error, pass_on, refused
from orchestrator.balance.lane import Lane
from orchestrator.balance.retry import RESPONSES, RETRIED, may_repeat
from orchestrator.errors import (
    ApiError,
    Elsewhere,
    UpstreamDeclined,
    UpstreamError,
    UpstreamUnreachable,
)
from orchestrator.hold import Turn
from orchestrator.metering.meter import Meter, Outcome
from orchestrator.model import Scope as KeyScope
from orchestrator.patience import patience
from orchestrator.reader import (
    ClientGone,
    Peek,
    again,
    peek,
    peek_multipart,
    read_body,
    with_model,
    with_stream_default,
)
from orchestrator.refusal import describe, refusal
from orchestrator.settings import ActivatorSettings

PROGRESS_S = 5.0
"""A stream that waits says so this often, so that no proxy between closes it."""
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
        elsewhere: ASGIApp | None = None,
    ) -> None:
        """`elsewhere` takes what has no lane here, and what `keys` says is `Elsewhere`, as it came."""
        self._app = app
        self._elsewhere = elsewhere
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
        except Elsewhere:
            assert self._elsewhere is not None
            await self._elsewhere(scope, again(call.whole, receive), send)
        except ApiError as error:
            await wire.send_error(send, error, call.id)
        except ClientGone:  # nobody is there to be told
            pass
        except asyncio.CancelledError:
            if not call.gone:
                raise

    async def _serve(self, call: Call, scope: Scope, receive: Receive) -> None:
        if scope["method"] != "POST":
            raise ApiError(405, "this path takes POST", code="method_not_allowed", headers={"allow": "POST"})
        key = self._keys.admit(call.headers, KeyScope.REALTIME)
        bytes_max = min(self._body_bytes_max, key.limits.request_bytes_max or self._body_bytes_max)
        call.body = call.whole = await read_body(scope, receive, body_bytes_max=bytes_max)
        asked = _asked(call, scope["path"])
        route = self._route(call, asked, key)
        connection, task = scope["extensions"][CONNECTION], asyncio.current_task()
        assert task is not None
        try:
            bill = call.bill = self._meter.open(key, route.deployment, asked, len(call.body))
        except ApiError:
            self._meter.refused(key, call.model)
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

    def _route(self, call: Call, asked: Peek, key: Key) -> Route:
        """The model that is asked for, by whatever name, or one that answers for it; the body then names it."""
        route = self._activator.find(asked.model, key)
        if self._elsewhere is not None and (route is None or not route.lanes):
            raise Elsewhere
        if route is None:
            raise ApiError(404, f"no model {asked.model[:200]!r}", code="model_not_found", param="model")
        if route.deployment.fallback and (other := self._activator.stand_in(route, key, self._now())) is not None:
            call.ours.append((b"x-orchestrator-fallback", other.deployment.name.encode()))
            route = other
        call.model = route.deployment.name
        if call.model != asked.model:
            call.body = with_model(call.body, call.model, wire.form_type(call.target, call.headers))
        return route

    async def _answer(self, call: Call, asked: Peek, abort: Callable[[], None]) -> None:
        """Find a lane, wait for one if the request stands it, and forward. An answer that breaks off in
        the middle is cut, so that it can't be taken for whole."""
        bill = call.bill
        try:
            lane, turn = self._lane(call) or await self._admit(call, asked)
            try:
                good = await self._attempt(call, lane, turn)
            except UpstreamUnreachable as error:
                if not self._may_wait(call, error):
                    raise
                lane, turn = await self._admit(call, asked)
                good = await self._attempt(call, lane, turn)
            bill.close(Outcome.OK if good else Outcome.ERROR)
            if call.streamed_from is not None:
                lane, seconds = call.streamed_from
                if good and lane.breaker is not None:
                    lane.breaker.paced(seconds, bill.completion_tokens)
        except UpstreamError as error:
            bill.close(Outcome.ERROR)
            self._wake()
            if not call.sent:
                raise fault(error) from None
            abort()

    def _lane(self, call: Call) -> tuple[Lane, Turn | None] | None:
        """The lane of a request that need not wait."""
        route = self._activator.routes.get(call.model)
        return None if route is None else self._activator.lane(route, call.bill.key, call.body)

    async def _admit(self, call: Call, asked: Peek) -> tuple[Lane, Turn]:
        """A lane and leave to use it, within what the request stands. Raises the refusal."""
        if self._elsewhere is not None:
            call.bill.withdraw()
            raise Elsewhere
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
            admitted = await self._activator.stand(call.model, call.bill.key, stand_s, call.body)
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

    async def _attempt(self, call: Call, lane: Lane, turn: Turn | None) -> bool:
        """Send the request to one engine after the other until one answers, and pass the answer back; whether it was
        a whole and good one. See `retry` for what may be sent twice."""
        try:
            failed = call.scope["extensions"].pop(FAILED, None)
            if failed is not None:
                lane = self._another(call, *failed)
            while True:
                try:
                    return await self._forward(call, lane, turn)
                except UpstreamError as error:
                    self._missed(call, lane, error)
                    lane = self._another(call, lane, error)
        finally:
            if turn is not None:
                turn.over()

    async def _forward(self, call: Call, lane: Lane, turn: Turn | None) -> bool:
        bill = call.bill
        bill.enter(lane)
        try:
            body, authority = call.body, lane.pool.authority
            if lane.disguise is None:
                head = self._request_head(call.target, call.query, authority, call.headers, call.id, len(body))
            else:
                head, body = wire.disguised(
                    lane.disguise, self._request_head, call.target, call.query, authority, call.headers, call.id, body
                )
            movable = lane.breaker is not None and self._movable(call, lane)
            connection = await lane.pool.request(head, body, movable=movable, streamed=bill.streamed)
            try:
                status = connection.status
                if lane.breaker is not None:
                    self._activator.answered(lane, status, connection.age_s, self._now(), streamed=bill.streamed)
                    if movable and status in RETRIED and self._movable(call, lane):
                        raise UpstreamDeclined(f"the engine answered {status}")
                bill.head(status, sized=is_sized(connection))
                if turn is not None:
                    turn.begun()
                if status >= 400:
                    return await pass_error(call, connection)
                if call.target == RESPONSES and lane.breaker is not None:
                    call.learn = partial(self._activator.learn, call.model, lane)
                call.answering = True
                await pass_on(call, connection)
                if lane.breaker is not None and bill.streamed:
                    call.streamed_from = lane, connection.age_s
                return True
            finally:
                lane.pool.release(connection)
        finally:
            bill.leave()

    def _movable(self, call: Call, lane: Lane) -> bool:
        """Whether the request may go on to another lane."""
        return may_repeat(call.target) and self._activator.spare(call.model, (*call.tried, lane), self._now())

    def _missed(self, call: Call, lane: Lane, error: UpstreamError) -> None:
        if lane.breaker is not None and not (call.answering or isinstance(error, UpstreamDeclined)):
            self._activator.missed(lane, self._now(), refused=refused(error))

    def _another(self, call: Call, lane: Lane, error: UpstreamError) -> Lane:
        """The next lane to try. Raises the error where there is none, or the request may have had its effect."""
        call.tried = (*call.tried, lane)
        if call.answering or not may_repeat(call.target, error):
            raise error
        other = self._activator.another(call.model, call.tried, self._now())
        if other is None:
            raise error
        return other

    def _may_wait(self, call: Call, error: UpstreamUnreachable) -> bool:
        """Whether a request whose engine died just now waits for the next one, as others do: nothing was answered."""
        if not may_repeat(call.target, error):
            return False
        lane, route = call.tried[-1], self._activator.routes.get(call.model)
        if lane.breaker is None:
            self._activator.drop(lane, self._now())
            return True
        return route is None or not route.lanes


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
