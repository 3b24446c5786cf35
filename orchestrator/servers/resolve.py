"""Which addresses a DNS name stands for."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from orchestrator.errors import UpstreamUnreachable

LOOKUP_TIMEOUT_S = 10.0
ADDRESSES_MAX = 256
"""Of one name; those beyond are left out, the highest first."""


class Resolver(Protocol):
    """Looks names up."""

    async def __call__(self, host: str, port: int) -> tuple[str, ...]:
        """All addresses of a name, in the same order each time, at least one. Raises `UpstreamUnreachable`."""


async def resolve(host: str, port: int) -> tuple[str, ...]:
    """The system's resolver, as `Resolver`. Of a name with addresses of both kinds those of IPv4 alone count: they
    lead to the same servers, which would get twice their part."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise UpstreamUnreachable("its name could not be looked up: no answer in time") from None
    except (OSError, UnicodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is not a name"
        raise UpstreamUnreachable(f"its name could not be looked up: {told}") from None
    addresses = {(family, str(address[0])) for family, _, _, _, address in found}
    first = min(family for family, _ in addresses)  # AF_INET is less than AF_INET6
    return tuple(sorted(address for family, address in addresses if family == first)[:ADDRESSES_MAX])
