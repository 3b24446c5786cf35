"""The loop over real sockets: names that stand for several addresses, servers that fail and come back, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import ParamSpec

import pytest

from orchestrator.activator import Route
from orchestrator.clock import SystemClock
from orchestrator.errors import UpstreamUnreachable
from orchestrator.model import Deployment, EngineKind, Phase
from orchestrator.servers.endpoint import Endpoint, HealthRules
from orchestrator.servers.resolve import Resolver, resolve
from orchestrator.servers.watch import Servers
from orchestrator.upstream import Timeouts
from tests.servers.peers import Peer, certificate, peer
from tests.values import deployment

RULES = HealthRules(interval_s=0.2, timeout_s=0.1, dns_refresh_s=0.05)
TIMEOUTS = Timeouts(connect_timeout_s=1, first_byte_timeout_s=1, stream_idle_timeout_s=1, request_timeout_s=1)
WAIT_S = 10.0


P = ParamSpec("P")


def in_a_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Names:
    """A resolver whose answers the test writes."""

    def __init__(self, **names: tuple[str, ...]) -> None:
        self.names = names

    async def __call__(self, host: str, port: int) -> tuple[str, ...]:
        if host not in self.names:
            raise UpstreamUnreachable("no such name")
        return self.names[host]


class Watch:
    """A running loop, and what it published last."""

    def __init__(self, resolver: Resolver) -> None:
        self.routes: Mapping[str, Route] = {}
        self.servers = Servers(resolver=resolver, timeouts=TIMEOUTS, clock=SystemClock(), publish=self._publish)
        self._news = asyncio.Event()

    def _publish(self, routes: Mapping[str, Route]) -> None:
        self.routes = routes
        self._news.set()

    async def until(self, condition: Callable[[Route], bool]) -> Route:
        async with asyncio.timeout(WAIT_S):
            while "m" not in self.routes or not condition(self.routes["m"]):
                self._news.clear()
                await self._news.wait()
        return self.routes["m"]


@contextlib.asynccontextmanager
async def watching(
    *endpoints: Endpoint, resolver: Resolver = resolve, rules: HealthRules = RULES
) -> AsyncIterator[Watch]:
    watch = Watch(resolver)
    watch.servers.configure({"m": model(*endpoints, rules=rules)})
    task = asyncio.create_task(watch.servers.run(asyncio.Event()))
    try:
        yield watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # as told
            await task
        watch.servers.close()


def model(*endpoints: Endpoint, rules: HealthRules = RULES) -> Deployment:
    return deployment("m", engine=EngineKind.STATIC, endpoints=endpoints, health=rules)


def at(state: Peer, host: str = "127.0.0.1", scheme: str = "http") -> Endpoint:
    return Endpoint(url=f"{scheme}://{host}:{state.port}{state.base}", key=state.key)


def addresses(route: Route) -> list[str]:
    return [replica.host for replica in route.replicas if replica.phase is Phase.READY]


def errors(route: Route) -> list[str]:
    return [replica.error for replica in route.replicas]


@in_a_loop
async def test_new_addresses_of_a_name_come_in_and_gone_ones_leave() -> None:
    names = Names(pool=("127.0.0.2", "127.0.0.3"))
    with peer("127.0.0.2") as two, peer("127.0.0.3", port=two.port), peer("127.0.0.4", port=two.port):
        async with watching(at(two, "pool"), resolver=names) as watch:
            route = await watch.until(lambda route: addresses(route) == ["127.0.0.2", "127.0.0.3"])
            busy = route.lanes[0]
            busy.enter(0.0)
            names.names["pool"] = ("127.0.0.3", "127.0.0.4")
            route = await watch.until(lambda route: addresses(route) == ["127.0.0.3", "127.0.0.4"])
            assert busy not in route.lanes
            assert Phase.DRAINING in {replica.phase for replica in route.replicas}
            busy.leave(0.0, 0.0)
            watch.servers.sweep()
            await watch.until(lambda route: len(route.replicas) == 2)
            del names.names["pool"]
            await asyncio.wait_for(watch.servers.settled(), WAIT_S)
            route = await watch.until(lambda _: bool((found := watch.servers.lookup(at(two, "pool"))) and found.error))
            assert addresses(route) == ["127.0.0.3", "127.0.0.4"]


@in_a_loop
async def test_a_name_that_nobody_knows() -> None:
    async with watching(Endpoint(url="http://nowhere"), resolver=Names()) as watch:
        route = await watch.until(lambda route: route.track.phase is Phase.FAILED)
        assert route.backoff is not None
        assert route.backoff.error == "it has no servers: no such name"


@in_a_loop
async def test_the_systems_resolver() -> None:
    assert await resolve("localhost", 80) == ("127.0.0.1",)
    with pytest.raises(UpstreamUnreachable, match="its name could not be looked up"):
        await resolve("nowhere.invalid", 80)
    with pytest.raises(UpstreamUnreachable, match="its name could not be looked up"):
        await resolve("a" * 64 + ".invalid", 80)
    with peer() as one:
        async with watching(at(one, "localhost")) as watch:
            assert addresses(await watch.until(lambda route: bool(route.lanes))) == ["127.0.0.1"]


@in_a_loop
async def test_where_health_is_unknown_the_models_are_asked_for() -> None:
    with peer(health=404) as one:
        async with watching(at(one)) as watch:
            await watch.until(lambda route: bool(route.lanes) and len(one.asked) >= 4)
            assert one.paths()[:4] == ["/health", "/v1/models", "/v1/models", "/v1/models"]


@in_a_loop
async def test_a_server_leaves_within_two_intervals_and_comes_back() -> None:
    with peer() as one:
        async with watching(at(one)) as watch:
            await watch.until(lambda route: bool(route.lanes))
            loop = asyncio.get_running_loop()
            one.health, failed_at = 500, loop.time()
            route = await watch.until(lambda route: not route.lanes)
            assert loop.time() - failed_at < 2 * RULES.interval_s + 0.3
            assert errors(route) == ["it answers 500 to /health"]
            one.health = 200
            await watch.until(lambda route: bool(route.lanes))


@in_a_loop
async def test_a_lane_stays_the_same_when_its_server_comes_back_or_gets_other_settings() -> None:
    with peer() as one:
        async with watching(at(one)) as watch:
            lane = (await watch.until(lambda route: bool(route.lanes))).lanes[0]
            one.health = 500
            await watch.until(lambda route: not route.lanes)
            one.health = 200
            assert (await watch.until(lambda route: bool(route.lanes))).lanes == (lane,)
            other = Endpoint(url=at(one).url, weight=3, max_concurrent_requests=7, model="there")
            watch.servers.configure({"m": model(other)})
            await watch.until(lambda route: lane.weight == 3)
            assert (lane.capacity, lane.disguise and lane.disguise.model) == (7, "there")


@in_a_loop
async def test_a_key_that_is_refused() -> None:
    with peer(health=404, key="right") as one:
        async with watching(Endpoint(url=at(one).url, key="wrong")) as watch:
            assert errors(await watch.until(lambda route: route.track.phase is Phase.FAILED)) == ["it refuses the key"]
        async with watching(at(one)) as watch:
            await watch.until(lambda route: bool(route.lanes))


@in_a_loop
async def test_what_answers_by_tls_must_prove_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, context = certificate(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with peer(tls=context, base="/llm") as one:
        async with watching(at(one, "localhost", "https")) as watch:
            await watch.until(lambda route: bool(route.lanes))
            assert one.paths()[0] == "/llm/health"
        async with watching(at(one, "127.0.0.1", "https")) as watch:
            (error,) = errors(await watch.until(lambda route: route.track.phase is Phase.FAILED))
            assert error.startswith("its certificate is not valid: IP address mismatch")
        monkeypatch.delenv("SSL_CERT_FILE")
        async with watching(at(one, "localhost", "https")) as watch:
            (error,) = errors(await watch.until(lambda route: route.track.phase is Phase.FAILED))
            assert error == "its certificate is not valid: self-signed certificate"
    with peer() as plain:
        async with watching(at(plain, "localhost", "https")) as watch:
            assert errors(await watch.until(lambda route: route.track.phase is Phase.FAILED)) == [
                "it does not speak TLS"
            ]
