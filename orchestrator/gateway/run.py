"""Runs one gateway."""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
from urllib.parse import urlsplit

from orchestrator import logs, server
from orchestrator.access.loopback import is_loopback
from orchestrator.errors import ConfigError
from orchestrator.gateway.gateway import Gateway
from orchestrator.gateway.link import ControllerAway, Link
from orchestrator.gateway.table import Table
from orchestrator.gateway.told import settings_of
from orchestrator.settings import Settings

WAIT_MIN_S = 0.1
WAIT_MAX_S = 5.0


def run_gateway(url: str, key: str | None, listener: socket.socket, *, owned: bool) -> None:
    """Serve until told to end. Blocks; waits for the controller, however long that takes.

    `owned`: it ends with the process at the other end of standard input. Raises `ConfigError`,
    `link.ControllerRefuses`.
    """
    controller = urlsplit(url)
    if controller.scheme not in ("http", "https") or not controller.hostname:
        raise ConfigError(f"--controller is http://host:port, not {url}")
    logs.configure()
    host, port = listener.getsockname()[:2]
    name = f"{socket.gethostname()}:{port}-{secrets.token_hex(4)}"
    settings, table = asyncio.run(_first(url, key, name, host, port))
    gateway = Gateway(
        settings,
        table,
        Link(url, key, name=name),
        name=name,
        address=server.address(listener),
        here=is_loopback(controller.hostname),
        owned=owned,
    )
    server.serve(gateway, settings, listener)


async def _first(url: str, key: str | None, name: str, host: str, port: int) -> tuple[Settings, Table]:
    """The controller's settings and table."""
    link, wait_s, said = Link(url, key, name=name), WAIT_MIN_S, False
    try:
        while True:
            try:
                async for line in link.lines():
                    if line.table is not None and line.settings is not None:
                        return settings_of(line.settings, host=host, port=port), line.table
            except ControllerAway as error:
                if not said:
                    print(f"waiting: {error}", file=sys.stderr, flush=True)
                said = True
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, WAIT_MAX_S)
    finally:
        await link.aclose()
