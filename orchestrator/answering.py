"""One request of the app's way, and how an engine's answer is passed back to its client."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Scope, Send

from orchestrator import wire
from orchestrator.balance.lane import Lane
from orchestrator.errors import ApiError, UpstreamError, UpstreamLost, UpstreamTimeout, UpstreamUnreachable
from orchestrator.metering.gate import fields_of
from orchestrator.metering.meter import Bill
from orchestrator.upstream import Connection, Headers

CONNECTION = "orchestrator.connection"
"""The ASGI extension by which `guard` tells that the client left; see `guard.GuardedProtocol`."""
CYCLE = "orchestrator.cycle"
"""The ASGI extension that names one request among those of a connection."""
FAILED = "orchestrator.failed"
"""The ASGI extension of a request that failed at a lane already: the lane, and the error."""


class Call:
    """One request on its way."""

    __slots__ = (
        "answering",
        "bill",
        "body",
        "gone",
        "headers",
        "id",
        "learn",
        "model",
        "ours",
        "query",
        "scope",
        "send",
        "sent",
        "streamed_from",
        "target",
        "tried",
        "whole",
    )

    def __init__(self, scope: Scope, send: Send, request_id: bytes, target: bytes) -> None:
        self.id = request_id
        self.target = target
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        self.ours: Headers = [(b"x-request-id", request_id)]
        self.scope = scope
        self.send = send
        self.sent = False
        self.answering = False
        """Whether some of an engine's answer has been passed on."""
        self.gone = False
        self.whole: bytes | None = None
        """The body as it came, once it has been read."""
        self.body = b""
        self.learn: Callable[[bytes], None] | None = None
        """Wants to see the first bytes of the answer."""
        self.model = ""
        self.tried: tuple[Lane, ...] = ()
        self.streamed_from: tuple[Lane, float] | None = None
        """The one of several lanes that a stream came by, and the seconds that it took."""
        self.bill: Bill
        """There once it is admitted at its limits."""


async def pass_on(call: Call, connection: Connection) -> None:
    """Pass a good answer as it comes; in one write if all of it is here already."""
    bill, sized = call.bill, is_sized(connection)
    ours = call.ours + fields_of(bill.told())
    if connection.answered and not call.sent and sized:
        data = bill.through(_learned(call, await connection.chunk()))
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
        data = bill.through(_learned(call, await connection.chunk()))
        more = not connection.answered
        await call.send({"type": "http.response.body", "body": data, "more_body": more})


def _learned(call: Call, data: bytes) -> bytes:
    learn, call.learn = call.learn, None
    if learn is not None:
        learn(data)
    return data


def is_sized(connection: Connection) -> bool:
    """Whether the answer says how long it is."""
    return wire.header(connection.headers, b"content-length") is not None


async def _relay(call: Call, connection: Connection) -> None:
    """Pass a stream from socket to socket."""
    client, cycle = call.scope["extensions"][CONNECTION], call.scope["extensions"][CYCLE]
    through = call.bill.through

    def sink(data: bytes) -> bool:
        seen = through(_learned(call, data) if call.learn is not None else data)
        return bool(client.write_chunk(cycle, seen)) if seen else True

    while not await connection.relay(sink):
        await client.flow.drain()
    await call.send({"type": "http.response.body", "body": call.bill.rest(), "more_body": False})


async def pass_error(call: Call, connection: Connection) -> bool:
    """Pass an engine's error in OpenAI's shape."""
    body = bytearray()
    while len(body) < wire.ERROR_BYTES_MAX and (data := await connection.chunk()):
        body += data
    status, content = wire.passed_error(connection.status, bytes(body))
    if call.sent:
        event = wire.sse_event(content)
        await call.send({"type": "http.response.body", "body": event, "more_body": False})
        return False
    ours = [*call.ours, *wire.retry_after(connection.status, connection.headers)]
    await wire.send_json(call.send, status, content, ours)
    return status < 500


def refused(error: UpstreamError) -> bool:
    """Whether nothing takes connections there."""
    return isinstance(error, UpstreamUnreachable) and not isinstance(error, UpstreamLost)


def fault(error: UpstreamError) -> ApiError:
    """An engine's fault as an answer."""
    if isinstance(error, UpstreamTimeout):
        return ApiError(504, str(error), code="engine_timeout")
    if isinstance(error, UpstreamUnreachable):
        return ApiError(502, str(error), code="engine_unreachable", headers={"retry-after": "1"})
    return ApiError(502, str(error), code="engine_error")
