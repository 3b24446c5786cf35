"""The slow way: requests that only the controller can answer go there as they came, and its answers come back so.

Nothing is buffered: bodies pass in both directions at the pace of who takes them, and whoever leaves ends it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import structlog
from starlette.types import Receive, Scope, Send

from orchestrator import wire
from orchestrator.answering import CONNECTION
from orchestrator.errors import ApiError
from orchestrator.reader import ClientGone
from orchestrator.upstream import Headers

CONNECT_S = 2.0
AWAY_MAX_S = 5.0
"""While the controller takes no connections, requests wait for so long: it may only be restarting."""
RETRY_S = 0.1
COME_BACK_S = 2
READ_S = 3600.0
"""The longest silence of an answer: held requests, uploads that are put away, logs that are followed."""
WRITE_S = 300.0
_ENDS_HERE = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
        b"date",
    }
)
"""RFC 9110, 7.6.1; `Expect`, which we have met ourselves, and `Date`, which whoever answers writes."""

log = structlog.get_logger()


class Forward:
    """ASGI: passes requests to the controller."""

    def __init__(self, controller: str, *, request_id: Callable[[], bytes]) -> None:
        """`controller`: its URL."""
        self._url = httpx.URL(controller)
        self._request_id = request_id
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30)
        self._transport = httpx.AsyncHTTPTransport(limits=limits)

    async def aclose(self) -> None:
        """Let go of idle connections."""
        await self._transport.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection, task = scope["extensions"][CONNECTION], asyncio.current_task()
        assert task is not None
        gone = False

        def leave() -> None:
            nonlocal gone
            gone = True
            task.cancel()

        connection.on_close = leave
        try:
            await self._pass(scope, receive, send)
        except ApiError as error:
            await wire.send_error(send, error, self._request_id())
        except _CutOff:
            connection.abort()
        except ClientGone:  # nobody is there to be told
            pass
        except asyncio.CancelledError:
            if not gone:
                raise
        finally:
            connection.on_close = None

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `ApiError` while nothing has been answered, then `_CutOff`."""
        answer = await self._ask(scope, receive)
        try:
            headers = _passed([(name.lower(), value) for name, value in answer.headers.raw])
            await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            assert isinstance(answer.stream, httpx.AsyncByteStream)
            async for data in answer.stream:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except httpx.HTTPError as error:
            log.info("answer_cut", error=str(error))
            raise _CutOff from None
        finally:
            await answer.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ask(self, scope: Scope, receive: Receive) -> httpx.Response:
        """Send it; returns with the head of the answer."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + AWAY_MAX_S
        body = _Body(receive)
        while True:
            try:
                return await self._transport.handle_async_request(self._request(scope, body))
            except (httpx.ConnectError, httpx.ConnectTimeout):  # nothing has reached it
                if loop.time() >= ends_at:
                    raise _away() from None
            except httpx.LocalProtocolError:
                raise ApiError(400, "the request is not valid HTTP", code="invalid_http") from None
            except httpx.TimeoutException:
                raise ApiError(504, "the service did not answer in time", code="controller_timeout") from None
            except httpx.HTTPError:
                if body.touched or scope["method"] not in ("GET", "HEAD") or loop.time() >= ends_at:
                    raise _lost() from None
            await asyncio.sleep(RETRY_S)

    def _request(self, scope: Scope, body: _Body) -> httpx.Request:
        sent: Headers = scope["headers"]
        headers = _passed(sent)
        chunked = any(name == b"transfer-encoding" for name, _ in sent)
        if chunked:
            headers = [(name, value) for name, value in headers if name != b"content-length"]
            headers.append((b"transfer-encoding", b"chunked"))
        has_body = chunked or any(name == b"content-length" and value != b"0" for name, value in headers)
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        timeout = {"connect": CONNECT_S, "read": READ_S, "write": WRITE_S, "pool": CONNECT_S}
        return httpx.Request(
            scope["method"],
            self._url,
            headers=headers,
            stream=body if has_body else httpx.ByteStream(b""),
            extensions={"timeout": timeout, "target": target},
        )


class _CutOff(Exception):
    """The answer broke off in the middle."""


class _Body(httpx.AsyncByteStream):
    """A request's body as it comes."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.touched = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            self.touched = True
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("the client left")
            if data := message.get("body", b""):
                yield data
            more = message.get("more_body", False)


def _passed(headers: Headers) -> Headers:
    """All but the fields that end here, those too that ``Connection`` names."""
    named = {word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")}
    return [field for field in headers if field[0] not in _ENDS_HERE and field[0] not in named]


def _away() -> ApiError:
    return ApiError(
        503,
        "the service is restarting; come back in a moment",
        code="controller_away",
        headers={"retry-after": str(COME_BACK_S)},
    )


def _lost() -> ApiError:
    return ApiError(
        502,
        "the service went away before it answered; whether it has done what was asked is unknown",
        code="controller_lost",
        headers={"retry-after": str(COME_BACK_S)},
    )
