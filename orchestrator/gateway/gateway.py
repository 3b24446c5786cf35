"""A gateway: serves ready models by the controller's table, and passes all else on to the controller."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.access.browsers import by_browser
from orchestrator.access.loopback import is_loopback
from orchestrator.activator import Activator
from orchestrator.balance.poller import Poller
from orchestrator.clock import SystemClock
from orchestrator.errors import ConfigError
from orchestrator.express import ExpressLane
from orchestrator.gateway.books import Outbox
from orchestrator.gateway.forward import Forward
from orchestrator.gateway.keys import TableKeys
from orchestrator.gateway.link import ControllerAway, ControllerRefuses, Link
from orchestrator.gateway.table import Table
from orchestrator.gateway.ways import Ways
from orchestrator.head import path_of
from orchestrator.json_response import Json
from orchestrator.loops import ended, kept
from orchestrator.metering.gate import Gate
from orchestrator.metering.meter import Meter
from orchestrator.metering.usage import Ledger
from orchestrator.metrics import Metrics
from orchestrator.proxy import TARGETS, Proxy, RequestIds
from orchestrator.settings import Settings
from orchestrator.upstream import Timeouts

TICK_S = 1.0
REPORT_S = 0.5
REPORT_GAP_S = 0.05
FAREWELLS_MAX = 10
AWAY_S = 0.3
"""Between two attempts to reach the controller."""
FORM_BYTES_MAX = 2**20
"""What stands around a file."""
_INFERENCE = frozenset(path.encode() for path in TARGETS)

log = structlog.get_logger()


class Gateway:
    """One front door. Implements `server.Drainable`; runs for as long as its lifespan does.

    Raises `ConfigError` where it would open a controller without keys to other machines.
    """

    def __init__(
        self, settings: Settings, table: Table, link: Link, *, name: str, address: str, here: bool, owned: bool
    ) -> None:
        """`settings`: the controller's, but for the address. `here`: it is on this machine; `owned`: standard input
        ends with the process that this one belongs to."""
        _check_exposure(settings.server.host, table)
        self.settings = settings
        self._link = link
        self._owned = owned
        self._clock = SystemClock()
        self._request_ids = RequestIds()
        self._news = asyncio.Event()
        self._activator = Activator(wake=_nobody, held_max=settings.activator.held_max)
        self._keys = TableKeys()
        ledger, metrics = Ledger(), Metrics()
        self._meter = Meter(
            gate=Gate(),
            ledger=ledger if settings.usage.enabled else None,
            metrics=metrics,
            monotonic=self._clock.monotonic,
            unix=self._clock.unix,
        )
        self._ways = Ways(
            timeouts=Timeouts(**settings.proxy.model_dump()),
            here=here,
            monotonic=self._clock.monotonic,
            woken=self._news.set,
        )
        self._outbox = Outbox(
            name=name, address=address, ledger=ledger, metrics=metrics, monotonic=self._clock.monotonic
        )
        self._forward = Forward(link.url, request_id=self._request_ids)
        self._take(table)

    def asgi(self) -> ASGIApp:
        """The outermost app."""
        routes = [HttpRoute("/live", self._live)]
        rest = Router(routes, lifespan=self._lifespan, redirect_slashes=False, default=self._forward)
        proxy = Proxy(
            rest,
            activator=self._activator,
            keys=self._keys,
            meter=self._meter,
            limits=self.settings.activator,
            body_bytes_max=self.settings.server.body_bytes_max,
            request_id=self._request_ids,
            monotonic=self._clock.monotonic,
            wake=_nobody,
            elsewhere=self._forward,
        )

        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            """What browsers may ask, the controller knows."""
            if scope["type"] != "http":
                await proxy(scope, receive, send)
                return
            past = scope["path"] in TARGETS and (scope["method"] != "POST" or by_browser(scope["headers"]))
            await (self._forward if past else proxy)(scope, receive, send)

        return door

    def express(self) -> ExpressLane:
        """The lane past ASGI for warm requests."""
        return ExpressLane(
            activator=self._activator,
            keys=self._keys,
            meter=self._meter,
            request_id=self._request_ids,
            monotonic=self._clock.monotonic,
            wake=_nobody,
        )

    async def _live(self, request: Request) -> Response:
        """Here, while the controller is away too."""
        return Json({"status": "ok"}, headers={"x-request-id": self._request_ids().decode()})

    def body_limit(self, target: bytes) -> int:
        """The most bytes of a request's body: the controller knows better what is not for an engine."""
        if path_of(target) in _INFERENCE:
            return self.settings.server.body_bytes_max
        return self.settings.storage.file_bytes_max + FORM_BYTES_MAX

    def listening(self, url: str, public: str) -> None:
        """Requests are taken from now on."""

    def drain(self) -> None:
        """It has been told to end: requests in flight go on."""
        self._activator.close()

    # --- running ---

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Router) -> AsyncIterator[None]:
        if self._owned:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), os._exit, 1)
        loops = [
            kept(self._watch(), "table"),
            kept(self._tell(), "reports"),
            kept(self._tick(), "sweep"),
            kept(Poller(self._activator, self._clock.monotonic).run(), "loads"),
        ]
        try:
            yield
        finally:
            for loop in loops:
                await ended(loop)
            self._ways.close()
            await self._farewell()
            await self._forward.aclose()
            await self._link.aclose()

    async def _watch(self) -> None:
        """Follow the controller's table. While it is away, the last one holds; with a key that it refuses, none."""
        said = ""
        while True:
            try:
                async for line in self._link.lines():
                    said = _say("controller_back", "") if said else ""
                    if line.table is not None:
                        self._take(line.table)
            except ControllerAway as error:
                said = said or _say("controller_away", str(error))
            except ControllerRefuses as error:
                said = said or _say("controller_refuses", str(error))
                self._take(Table(controller="", version=0))
            await asyncio.sleep(AWAY_S)

    def _take(self, table: Table) -> None:
        self._table = table
        self._keys.take(table)
        self._routes = self._ways.lay(table)
        self._activator.publish(self._routes, self._clock.monotonic())
        self._news.set()

    async def _tell(self) -> None:
        """Report every `REPORT_S`, and at once when there is news."""
        while True:
            with contextlib.suppress(TimeoutError):  # no news: a report is due
                async with asyncio.timeout(REPORT_S):
                    await self._news.wait()
            self._news.clear()
            with contextlib.suppress(ControllerRefuses):  # `_watch` says so
                await self._told()
            await asyncio.sleep(REPORT_GAP_S)

    async def _told(self, *, last: bool = False) -> bool:
        """Report; whether the controller has it."""
        table, traffic = self._table, self._ways.traffic()
        try:
            await self._link.report(self._outbox.report(table.controller, table.version, traffic, last=last))
        except ControllerAway:
            return False
        self._outbox.acknowledged()
        return True

    async def _farewell(self) -> None:
        """Tell what is left to tell, if the controller is there."""
        with contextlib.suppress(ControllerRefuses):  # it takes nothing from us any more
            for _ in range(FAREWELLS_MAX):
                if await self._told(last=True):
                    return
                await asyncio.sleep(AWAY_S)

    async def _tick(self) -> None:
        while True:
            self._keys.refresh()
            self._ways.sweep(asyncio.get_running_loop().time())
            self._activator.publish(self._routes, self._clock.monotonic())
            await asyncio.sleep(TICK_S)


def _check_exposure(host: str, table: Table) -> None:
    if table.open and not is_loopback(host):
        raise ConfigError(
            f"{host} is reachable from other machines, and the controller has no key file:"
            " make a key there with `orchestrator keys new NAME --scope realtime`, or listen on 127.0.0.1"
        )


def _nobody() -> None:
    """Whoever has to know of demand is the controller, which gets the request."""


def _say(event: str, error: str) -> str:
    log.warning(event, error=error) if error else log.info(event)
    return error
