"""``orchestrator gateway``."""

from __future__ import annotations

import os
import socket


def gateway(controller: str, host: str, port: int, descriptor: int | None) -> None:
    """Serve until told to end. Blocks. `descriptor`: of a socket that is bound already.

    Raises `ConfigError`, `server.AddressInUse`, `link.ControllerRefuses`.
    """
    from orchestrator import server
    from orchestrator.gateway.run import run_gateway

    listener = server.listen(host, port) if descriptor is None else socket.socket(fileno=descriptor)
    url = controller.rstrip("/").removesuffix("/v1")
    run_gateway(url, os.environ.get("ORCHESTRATOR_API_KEY"), listener, owned=descriptor is not None)
