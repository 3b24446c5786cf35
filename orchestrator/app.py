"""Where the parts are wired. The wiring is `app`, `parts`, `library` and `embedder_choice`: they and the command line
alone name runtimes and stores."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route as HttpRoute
from starlette.types import ASGIApp

from orchestrator.access.auth import KeyRing
from orchestrator.access.browsers import Browsers
from orchestrator.access.sessions import LINK_S, Sessions
from orchestrator.activator import Activator, Route
from orchestrator.balance.poller import Poller
from orchestrator.clock import SystemClock
from orchestrator.config import Watched, deployments
from orchestrator.control import Control, LabelledAnswers, on_api_error, on_bug, on_http_exception
from orchestrator.documents.api_files import FILES
from orchestrator.engine_metrics import EngineMetrics
from orchestrator.errors import ApiError
from orchestrator.events import Broadcast
from orchestrator.express import ExpressLane
from orchestrator.gateway.api import GatewaysApi
from orchestrator.gateway.books import Ours
from orchestrator.gateway.registry import Gateways
from orchestrator.head import path_of
from orchestrator.host_metrics import HostGauges
from orchestrator.instance_lock import InstanceLock, instance_id
from orchestrator.library import Library
from orchestrator.loops import ended, kept
from orchestrator.metering.gate import Gate
from orchestrator.metering.limit_metrics import LimitCounters
from orchestrator.metering.meter import Meter
from orchestrator.metering.usage import Ledger
from orchestrator.metering.usage_api import UsageApi
from orchestrator.metering.usage_book import UsageBook
from orchestrator.metrics import Metrics
from orchestrator.model import Deployment
from orchestrator.parts import build
from orchestrator.pins import Pins, kept_warm
from orchestrator.proxy import Proxy, RequestIds
from orchestrator.reconcile import Reconciler
from orchestrator.routing import Routing, by_kind
from orchestrator.servers.added import Added, with_added
from orchestrator.servers.api import EndpointsApi
from orchestrator.servers.resolve import resolve
from orchestrator.servers.watch import Servers
from orchestrator.settings import Settings
from orchestrator.tracing.wiring import tracing
from orchestrator.upstream import Timeouts
from orchestrator.windows import warmed
from storage.catalog import Catalog
from storage.history import DuckHistory
from storage.hub import cache_folder
from storage.usage import DuckUsage, table_file
from ui.dashboard import Dashboard
from ui.documents import is_upload
from ui.ports import Doors

TICK_S = 1.0
RELOAD_S = 0.5
"""A changed file is in force within three of these: it is read once two looks have found it the same."""
FIRST_LOOK_S = 1.0
"""How long the start waits to hear from static servers."""
ROOM_S = 20.0
STOP_GRACE_S = 10.0
"""How long an engine may take to end when the service ends."""
LOOP_STALL_S = 30.0
"""A loop that has not passed for this long is reported as unhealthy."""
DISK_FREE_BYTES_MIN = 2**30

log = structlog.get_logger()


class Service:
    """One orchestrator: takes its data folder at once, and runs for as long as its lifespan does.

    Raises `errors.ConfigError` when the configuration can't be used or another orchestrator holds the folder.
    """

    def __init__(self, settings: Settings, watched: Watched) -> None:
        self.settings = settings
        data = settings.server.data_dir.resolve()
        self._data = data
        self._watched = watched
        self._clock = SystemClock()
        self._configured = deployments(settings, folder=watched.folder)
        self._lock = InstanceLock(data)
        self._sessions = Sessions(name=f"orchestrator-{instance_id(data)[:8]}", monotonic=self._clock.monotonic)
        self._keys = KeyRing(settings.auth.keys_file, self._sessions, counted=settings.usage.enabled)
        self._metrics = Metrics()
        self._events = Broadcast()
        self._request_ids = RequestIds()
        self._wakeup = asyncio.Event()
        self._pins = Pins(data / "pins.json", changed=self._apply)
        self._added = Added(data / "endpoints.json", changed=self._apply)
        self._activator = Activator(wake=self._wakeup.set, held_max=settings.activator.held_max)
        self._gate = Gate()
        self._ledger = Ledger()
        parts = self._parts = build(settings, data, instance_id(data))
        self._runtime = parts.runtime
        self._catalog = Catalog(data / "catalog.duckdb")
        self._history = DuckHistory(self._catalog)
        self._tracing = tracing(
            settings.tracing,
            keys=self._keys,
            history=self._history,
            routes=lambda: self._activator.routes,
            clock=self._clock,
            registry=self._metrics.registry,
            instance=instance_id(data),
        )
        self._meter = Meter(
            gate=self._gate,
            ledger=self._ledger if settings.usage.enabled else None,
            metrics=self._metrics,
            monotonic=self._clock.monotonic,
            unix=self._clock.unix,
            bill=self._tracing.bill,
        )
        store = DuckUsage(self._catalog)
        self._usage = UsageBook(ledger=self._ledger, gate=self._gate, store=store, clock=self._clock)
        self._usage_api = UsageApi(book=self._usage, store=store, keys=self._keys, table_file=table_file)
        self._library = Library(
            settings=settings,
            data=data,
            instance=instance_id(data),
            catalog=self._catalog,
            keys=self._keys,
            clock=self._clock,
        )
        timeouts = Timeouts(**settings.proxy.model_dump())
        self._routing = Routing(self._publish)
        self._routing.deployments = self._wanted()
        launched, static = by_kind(self._routing.deployments)
        self._servers = Servers(resolver=resolve, timeouts=timeouts, clock=self._clock, publish=self._routing.static)
        self._servers.configure(static)
        self._reconciler = Reconciler(
            deployments=launched,
            runtime=self._runtime,
            weights=parts.stock,
            engines=parts.engines,
            history=self._tracing.history,
            activator=self._activator,
            metrics=self._metrics,
            clock=self._clock,
            timeouts=timeouts,
            boot=secrets.token_hex(3),
            wakeup=self._wakeup,
            publish=self._routing.launched,
            prime=parts.prime,
            orphan_grace_s=settings.runtime.orphan_grace_s,
        )
        ours = Ours(ledger=self._ledger, gate=self._gate, metrics=self._metrics, unix=self._clock.unix)
        self.gateways = Gateways(keys=self._keys, books=ours, settings=settings, monotonic=self._clock.monotonic)
        self._loop_task: asyncio.Task[None] | None = None
        self._control = Control(
            activator=self._activator,
            keys=self._keys,
            history=self._history,
            runtime=self._runtime,
            metrics=self._metrics,
            events=self._events,
            health=self,
            clock=self._clock,
            forgive=self._reconciler.forgive,
            settled=self._reconciler.settled,
            fleet=lambda: self._reconciler.fleet,
            pins=self._pins,
            version=importlib.metadata.version("orchestrator"),
        )
        self._endpoints = EndpointsApi(
            servers=self._servers,
            added=self._added,
            activator=self._activator,
            keys=self._keys,
            clock=self._clock,
            deployments=lambda: self._routing.deployments,
        )
        self._dashboard = Dashboard(
            plane=self._control,
            doors=Doors(endpoints=self._endpoints.views, gateways=self.gateways.views),
            meters=self._metrics,
            keys=self._keys,
            sessions=self._sessions,
            clock=self._clock,
            version=importlib.metadata.version("orchestrator"),
        )
        self._metrics.watch(self._activator, lambda: self._reconciler.fleet)
        self._metrics.registry.register(self._library.gauges())
        self._metrics.registry.register(LimitCounters(self._gate.refusals))
        self._metrics.registry.register(HostGauges({"data": data, "weights": cache_folder(os.environ)}, self.checks))

    def routes(self) -> list[HttpRoute]:
        """All but the data plane's, which are `proxy.TARGETS`."""
        return [
            *self._endpoints.routes(),
            *self._control.routes(),
            *GatewaysApi(self.gateways, self._keys, self._usage.flush).routes(),
            *EngineMetrics(self._activator, self._keys).routes(),
            *self._usage_api.routes(),
            *self._library.routes(),
            *self._dashboard.routes(),
        ]

    def asgi(self) -> ASGIApp:
        """The outermost app."""
        control = Starlette(
            routes=self.routes(),
            lifespan=self._lifespan,
            exception_handlers={ApiError: on_api_error, HTTPException: on_http_exception, Exception: on_bug},
        )
        control.router.redirect_slashes = False  # a path is one of ours, or unknown
        proxy = Proxy(
            LabelledAnswers(control, self._request_ids),
            activator=self._activator,
            keys=self._tracing.keys,
            meter=self._meter,
            limits=self.settings.activator,
            body_bytes_max=self.settings.server.body_bytes_max,
            request_id=self._request_ids,
            monotonic=self._clock.monotonic,
            wake=self._wakeup.set,
            request_head=self._tracing.request_head,
        )
        return Browsers(
            proxy,
            everybody=lambda: self._keys.open,
            origins=self.settings.server.cors_origins,
            request_id=self._request_ids,
        )

    def express(self) -> ExpressLane:
        """The lane past ASGI for warm requests."""
        return ExpressLane(
            activator=self._activator,
            keys=self._tracing.keys,
            meter=self._meter,
            request_id=self._request_ids,
            monotonic=self._clock.monotonic,
            wake=self._wakeup.set,
            request_head=self._tracing.request_head,
        )

    def body_limit(self, target: bytes) -> int:
        """The most bytes of a request's body; see `head.BodyLimit`."""
        return self._library.body_limit(FILES.encode() if is_upload(path_of(target)) else target)

    def listening(self, url: str, public: str) -> None:
        """Requests are taken from now on: of this machine at `url`, of others at `public`."""
        self._library.listening(url)
        if sys.stderr.isatty():
            print(self._dashboard_line(public), file=sys.stderr)

    def _dashboard_line(self, url: str) -> str:
        """For the terminal alone, since whoever has the link is the operator."""
        if self._keys.open:
            return f"dashboard: {url}/dashboard"
        return f"dashboard: {url}/dashboard?token={self._sessions.make_link()} (signs in once, within {LINK_S:.0f} s)"

    def drain(self) -> None:
        """The service has been told to end: held requests are told to come back, streams of events end."""
        self._activator.close()
        self._events.close()
        self.gateways.close(stopping=self.settings.runtime.on_exit == "stop")
        self._dashboard.close()

    # --- health ---

    def ready(self, *, documents: bool = True) -> bool:
        """Whether requests should be sent here; without `documents`, those for inference."""
        alive = self._loop_task is not None and not self._loop_task.done()
        return alive and not self._activator.closing and (not documents or self._library.ready)

    def checks(self) -> dict[str, dict[str, Any]]:
        """The state of each part."""
        free_bytes = shutil.disk_usage(self._data).free
        known = self._reconciler.fleet.known
        stalled_s = self._clock.monotonic() - self._reconciler.passed_at
        return {
            "loop": _check(self.ready(documents=False) and stalled_s < LOOP_STALL_S, f"idle for {stalled_s:.0f} s"),
            "runtime": _check(known, "" if known else f"the runtime does not answer: {self._reconciler.silence}"),
            "keys": _check(not self._keys.error, self._keys.error),
            "servers": _check(*self._servers.state()),
            "gateways": _check(*self.gateways.state()),
            "configuration": _check(not self._watched.error, self._watched.error),
            "history": _check(not self._catalog.error, self._catalog.error),
            "usage": _check(not self._usage.error, self._usage.error),
            **{name: _check(ok, detail) for name, (ok, detail) in self._library.checks().items()},
            "disk": _check(free_bytes > DISK_FREE_BYTES_MIN, f"{free_bytes // 2**20} MiB free in the data folder"),
        }

    # --- running ---

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        started, looked = asyncio.Event(), asyncio.Event()
        self._runtime.watch(self._wakeup.set)
        if self._parts.images is not None:
            await self._parts.images.find({d.image for d in self._reconciler.deployments.values()})
        self._loop_task = kept(self._reconciler.run(started), "reconcile")
        servers = kept(self._servers.run(looked), "servers")
        loads = kept(Poller(self._activator, self._clock.monotonic).run(), "loads")
        documents = kept(self._library.run(), "documents")
        dashboard = kept(self._dashboard.run(), "dashboard")
        await self._usage.begin()
        usage = kept(self._usage.run(), "usage")
        scheduler = self._scheduler()
        try:
            await started.wait()
            with contextlib.suppress(TimeoutError):  # servers that are slow to answer come later
                await asyncio.wait_for(looked.wait(), FIRST_LOOK_S)
            await self._library.begun()
            yield
        finally:
            scheduler.shutdown(wait=False)
            self.drain()
            for task in (dashboard, documents, loads, servers, self._loop_task):
                await ended(task)
            self._servers.close()
            if self.settings.runtime.on_exit == "stop":
                await self._reconciler.stop_all(grace_s=STOP_GRACE_S)
            await self._parts.weights.aclose()
            if self._parts.images is not None:
                await self._parts.images.aclose()
            self._runtime.close()
            self._parts.gpu_reader.close()
            await self._library.aclose()
            await ended(usage)
            await self._usage.flush()
            await asyncio.to_thread(self._catalog.close)
            await self._tracing.aclose()
            self._lock.release()

    def _scheduler(self) -> AsyncIOScheduler:
        scheduler = AsyncIOScheduler(timezone="UTC")
        scheduler.add_job(self._tick, "interval", seconds=TICK_S, max_instances=1, coalesce=True)
        scheduler.add_job(self._reload, "interval", seconds=RELOAD_S, max_instances=1, coalesce=True)
        scheduler.add_job(self._make_room, "interval", seconds=ROOM_S, max_instances=1, coalesce=True)
        scheduler.start()
        return scheduler

    async def _tick(self) -> None:
        self._reconciler.sweep()
        self._servers.sweep()
        self.gateways.sweep()
        self._reconciler.wake()
        self._parts.room.keep = self._reconciler.weights_in_use()

    async def _reload(self) -> None:
        self._keys.refresh()
        fresh = self._watched.refresh()
        if fresh is not None:
            log.info("configuration_reloaded", models=len(fresh))
            self._configured = fresh
        self._apply()

    def _wanted(self) -> dict[str, Deployment]:
        """The deployments as they are to be now."""
        warm = kept_warm(warmed(self._configured, datetime.now(UTC)), self._pins.models)
        return with_added(warm, self._added.changes)

    def _apply(self) -> None:
        if (wanted := self._wanted()) != self._routing.deployments:
            self._routing.deployments = wanted
            launched, static = by_kind(wanted)
            self._reconciler.configure(launched)
            self._servers.configure(static)

    async def _make_room(self) -> None:
        """Remove weights that nobody uses when the disk runs full."""
        await asyncio.to_thread(self._parts.room.make)

    def _publish(self, routes: Mapping[str, Route]) -> None:
        before = self._activator.routes
        self.gateways.publish(routes)
        self._activator.publish(routes, self._clock.monotonic())
        for name, route in self._activator.routes.items():
            old = before.get(name)
            if old is None or old.track.phase is not route.track.phase or old.lanes != route.lanes:
                self._events.send("model", self._control.view(route))
                self._dashboard.changed()


def _check(ok: bool, detail: str) -> dict[str, Any]:
    return {"ok": ok, "detail": detail}
