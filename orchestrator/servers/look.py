"""The ways to servers, and one look at whether a server is well."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from functools import cached_property

from orchestrator.errors import UpstreamError
from orchestrator.servers.disguise import disguise
from orchestrator.servers.state import Check, Server
from orchestrator.upstream import Connection, Pool, Timeouts, Tls

MODELS_PATH = "/v1/models"
"""What every server that speaks OpenAI's API answers."""


def client_context() -> ssl.SSLContext:
    """Trusts whom the system does, or ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``. Reading that takes a moment."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class Ways:
    """Makes pools of connections to servers, and looks at servers by them."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic

    def pool(self, server: Server, timeouts: Timeouts) -> Pool:
        """Connections to a server; with TLS it must prove its name, not that of its address."""
        endpoint = server.endpoint
        tls = Tls(context=self._context, name=endpoint.host) if endpoint.secure else None
        return Pool(server.address, endpoint.port, timeouts, authority=endpoint.authority, tls=tls)

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return client_context()

    async def look(self, server: Server, timeout_s: float) -> Check:
        """Ask the path that it is known to answer, else its health path, and where that is unknown, `MODELS_PATH`.

        A server's faults are in the answer. Redirects are not followed: where a server is, the operator says.
        """
        began = self._monotonic()
        pool, path = self.pool(server, within(timeout_s)), server.path or server.health_path
        try:
            async with asyncio.timeout(timeout_s):
                status = (await asked(pool, server, path)).status
                if status == 404 and path != MODELS_PATH:
                    path = MODELS_PATH
                    status = (await asked(pool, server, path)).status
        except TimeoutError:
            return Check(ok=False, seconds=self._monotonic() - began, error=f"no answer within {timeout_s:g} s")
        except UpstreamError as error:
            return Check(ok=False, seconds=self._monotonic() - began, error=_plain(error))
        finally:
            pool.close()
        ok, seconds = 200 <= status < 300, self._monotonic() - began
        return Check(ok=ok, seconds=seconds, error="" if ok else _refused(status, path), path=path)


def within(seconds: float) -> Timeouts:
    """Each of them."""
    return Timeouts(
        connect_timeout_s=seconds,
        first_byte_timeout_s=seconds,
        stream_idle_timeout_s=seconds,
        request_timeout_s=seconds,
    )


async def asked(pool: Pool, server: Server, path: str) -> Connection:
    """GET a path of a server's; the head of the answer is there. Raises `UpstreamError`."""
    worn = disguise(server.endpoint, server.model)
    base, end = (b"", b"\r\n") if worn is None else (worn.base, worn.end)
    head = b"GET %b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n%b"
    return await pool.request(head % (base + path.encode(), pool.authority, end), b"")


def _refused(status: int, path: str) -> str:
    return "it refuses the key" if status in (401, 403) else f"it answers {status} to {path}"


def _plain(error: UpstreamError) -> str:
    """What went wrong, without the address that the system's messages hold."""
    cause = error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return "it does not speak TLS"
    if isinstance(cause, OSError) and cause.errno:
        return f"it takes no connections: {os.strerror(cause.errno)}"
    return str(error)
