"""The service's own gateways: processes on its own port, one for each core that it is given.

Each has a socket of its own on the port (SO_REUSEPORT), among which the system spreads connections. The sockets are
made here and stay open here: when a worker dies, connections that nobody has accepted wait for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping

import structlog

from orchestrator import server
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.loops import ended, kept

START_MAX_S = 60.0
RESTART_MIN_S = 0.25
RESTART_MAX_S = 15.0
LIVED_S = 60.0
"""A worker that lived for so long died of something new: the next one begins at once."""
KILL_S = 3.0
"""Beyond the drain's time."""

log = structlog.get_logger()


class WorkersFailed(OrchestratorError):
    """They did not begin to answer; see the log."""


class Workers:
    """All of them. Implements `server.Front`."""

    def __init__(self, host: str, port: int, count: int, *, secret: str, drain_timeout_s: float) -> None:
        """`secret`: of a key with scope `admin`. Raises `ConfigError`, `server.AddressInUse`."""
        if not sys.platform.startswith("linux"):
            raise ConfigError("server.workers: more than one only on Linux, which spreads connections among them")
        self._listeners = _listeners(host, port, count)
        self._secret = secret
        self._drain_timeout_s = drain_timeout_s
        self._processes: dict[int, Process] = {}
        self._ready = [asyncio.Event() for _ in range(count)]
        self._keepers: list[asyncio.Task[None]] = []
        self._closing = False

    async def open(self, url: str) -> str:
        """Start them for the controller at `url`; returns their address once all answer. Raises `WorkersFailed`."""
        self._keepers = [kept(self._keep(place, url), f"worker {place}") for place in range(len(self._listeners))]
        try:
            async with asyncio.timeout(START_MAX_S):
                for ready in self._ready:
                    await ready.wait()
        except TimeoutError:
            raise WorkersFailed(f"the workers did not answer within {START_MAX_S:.0f} s") from None
        return server.address(self._listeners[0])

    async def close(self) -> None:
        """Take no more connections, and wait for what was accepted."""
        self._closing = True
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                process.send_signal(signal.SIGTERM)
        for listener in self._listeners:
            listener.close()
        try:
            async with asyncio.timeout(self._drain_timeout_s + server.GIVE_UP_S + KILL_S):
                await asyncio.gather(*(process.wait() for process in self._processes.values()))
        except TimeoutError:
            log.warning("workers_killed")
        for keeper in self._keepers:
            await ended(keeper)

    async def _keep(self, place: int, url: str) -> None:
        """One worker after the other."""
        wait_s = RESTART_MIN_S
        while True:
            began = time.monotonic()
            await self._run(place, url)
            if self._closing:
                return
            wait_s = RESTART_MIN_S if time.monotonic() - began > LIVED_S else min(wait_s * 2, RESTART_MAX_S)
            log.error("worker_died", worker=place, next_in_s=wait_s)
            await asyncio.sleep(wait_s)

    async def _run(self, place: int, url: str) -> None:
        """From its start to its end."""
        descriptor = self._listeners[place].fileno()
        argv = ("-m", "orchestrator", "gateway", "--controller", url, "--descriptor", str(descriptor))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *argv,
            env=self._environ(),
            stdin=PIPE,  # which ends with us, whatever ends us
            stdout=PIPE,
            pass_fds=(descriptor,),
            start_new_session=True,  # Ctrl-C is for us, who then tell them
        )
        self._processes[place] = process
        assert process.stdout is not None
        try:
            if await process.stdout.readline():
                self._ready[place].set()
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _environ(self) -> Mapping[str, str]:
        return {**os.environ, "ORCHESTRATOR_API_KEY": self._secret}


def _listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """So many sockets on one address. That nobody else has it, a first one shows, which does not share."""
    alone = server.listen(host, port)
    port = alone.getsockname()[1]
    alone.close()
    return [server.listen(host, port, shared=True) for _ in range(count)]
