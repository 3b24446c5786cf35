"""What doctor finds of the servers of static models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping

import msgspec

from orchestrator.cli.finding import Finding, Level
from orchestrator.cli.text import printable
from orchestrator.errors import UpstreamError, UpstreamUnreachable
from orchestrator.model import Deployment
from orchestrator.servers.endpoint import Endpoint
from orchestrator.servers.look import MODELS_PATH, Ways, asked, within
from orchestrator.servers.resolve import resolve
from orchestrator.servers.state import Server, is_address

LOOK_TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 2**20
NAMES_SHOWN = 5


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def check_endpoints(deployments: Mapping[str, Deployment]) -> Iterator[Finding]:
    """A line for each server: whether it answers, and whether it knows the model. All are asked at the same time."""
    yield from asyncio.run(_found([(d, e) for d in deployments.values() for e in d.endpoints]))


async def _found(endpoints: list[tuple[Deployment, Endpoint]]) -> list[Finding]:
    ways = Ways(time.monotonic)
    return [f for each in await asyncio.gather(*(_of(ways, *pair) for pair in endpoints)) for f in each]


async def _of(ways: Ways, deployment: Deployment, endpoint: Endpoint) -> list[Finding]:
    try:
        addresses = (endpoint.host,) if is_address(endpoint.host) else await resolve(endpoint.host, endpoint.port)
    except UpstreamUnreachable as error:
        what = f"{deployment.name}: {endpoint.url}: {error}"
        return [Finding(level=Level.FAIL, what=what, remedy="check its address, and the name server")]
    return [await _at(ways, deployment, endpoint, address) for address in addresses]


async def _at(ways: Ways, deployment: Deployment, endpoint: Endpoint, address: str) -> Finding:
    server = Server(
        id="",
        model=deployment.name,
        endpoint=endpoint,
        address=address,
        health_path=deployment.health_path,
        phase_at=0,
        created_at=0,
        due_at=0,
    )
    where = endpoint.url if address == endpoint.host else f"{endpoint.url} at {address}"
    check = await ways.look(server, LOOK_TIMEOUT_S)
    if not check.ok:
        remedy = f'start it, or mend models."{deployment.name}".endpoints'
        return Finding(level=Level.FAIL, what=f"{deployment.name}: {where}: {check.error}", remedy=remedy)
    wanted, known = endpoint.model or deployment.name, await _models(ways, server)
    if known is None:
        return Finding(level=Level.OK, what=f"{deployment.name}: {where} answers, and does not say which models it has")
    if wanted not in known:
        has = ", ".join(printable(name) for name in known[:NAMES_SHOWN]) or "none"
        remedy = f"set the endpoint's model to one of those it has: {has}"
        return Finding(level=Level.WARN, what=f"{deployment.name}: {where} knows no model {wanted}", remedy=remedy)
    return Finding(level=Level.OK, what=f"{deployment.name}: {where} answers and knows {wanted}")


async def _models(ways: Ways, server: Server) -> list[str] | None:
    """The names of its models; None: it does not say."""
    pool = ways.pool(server, within(LOOK_TIMEOUT_S))
    answer = bytearray()
    try:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            connection = await asked(pool, server, MODELS_PATH)
            while connection.status == 200 and len(answer) < ANSWER_BYTES_MAX and (data := await connection.chunk()):
                answer += data
        return [model.id for model in msgspec.json.decode(bytes(answer), type=_Models).data]
    except (UpstreamError, TimeoutError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    finally:
        pool.close()
