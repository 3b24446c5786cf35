"""What the controller makes of its gateways: who may still use a replica, and what they counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orchestrator.access.auth import KeyRing
from orchestrator.activator import Route
from orchestrator.balance.lane import Lane
from orchestrator.gateway.registry import GONE_S, Gateways
from orchestrator.gateway.table import Line, Report, Row, Seen, Sums, Table, decode_line
from orchestrator.metering.usage import Counts
from orchestrator.model import Traffic
from orchestrator.settings import Settings
from tests.gateway.test_table import route

SUMS = Sums(usage=(Row("k", "m", 1, Counts(requests=1)),))


class Shop:
    """A registry with a clock and books of its own."""

    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self.taken: list[tuple[str, int, Sums]] = []
        self.gateways = Gateways(
            keys=KeyRing(folder / "none.json"), books=self, settings=Settings(), monotonic=lambda: self.now
        )
        self.route = route("m")

    @property
    def lane(self) -> Lane:
        return self.route.lanes[0]

    def add(self, gateway: str, serial: int, sums: Sums) -> bool:
        """See `registry.Books`."""
        self.taken.append((gateway, serial, sums))
        return serial > 1

    def publish(self, **routes: Route) -> None:
        self.gateways.publish(routes)

    def report(self, table: Table, name: str = "g", **more: object) -> bool:
        fields = {"gateway": name, "address": "http://g", "controller": table.controller, "version": table.version}
        return self.gateways.report(Report(**{**fields, **more}))  # type: ignore[arg-type]  # as the tests give it


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


async def heard(shop: Shop, name: str = "g") -> Table:
    """The first table of a new stream."""
    stream = shop.gateways.stream(name)
    line: Line = decode_line(await anext(stream))
    assert line.table is not None and line.settings is not None
    return line.table


def test_a_replica_that_leaves_is_in_use_until_every_gateway_knows(shop: Shop) -> None:
    async def run() -> None:
        shop.publish(m=shop.route)
        first = await heard(shop)
        shop.report(first)
        assert shop.lane.traffic() == Traffic()
        shop.publish(m=route("other"))
        assert shop.lane.traffic().in_flight == 1
        second = await heard(shop)
        shop.report(first)
        assert shop.lane.traffic().in_flight == 1
        shop.report(second, traffic={"m-0": Seen(in_flight=3)})
        assert shop.lane.traffic().in_flight == 3
        shop.report(second, traffic={"m-0": Seen(idle_s=2.0)})
        assert shop.lane.traffic() == Traffic(in_flight=0, last_byte_at=98.0)

    asyncio.run(run())


def test_one_that_knew_another_controller_may_use_anything(shop: Shop) -> None:
    async def run() -> None:
        shop.publish(m=shop.route)
        table = await heard(shop)
        shop.report(Table(controller="before", version=7))
        shop.publish()
        assert shop.lane.traffic().in_flight == 1
        shop.report(shop.gateways.table)
        assert shop.lane.traffic().in_flight == 0
        assert table.version < shop.gateways.table.version

    asyncio.run(run())


def test_who_is_silent_is_forgotten_with_his_requests(shop: Shop) -> None:
    async def run() -> None:
        shop.publish(m=shop.route)
        shop.report(await heard(shop), traffic={"m-0": Seen(in_flight=2)})
        assert shop.lane.taken == 2
        shop.now += GONE_S - 1
        shop.gateways.sweep()
        assert shop.gateways.state() == (False, "1 of 1 were not heard for 3 s")
        shop.now += 2
        shop.gateways.sweep()
        assert shop.lane.taken == 0
        assert shop.gateways.views() == []

    asyncio.run(run())


def test_one_that_ends_is_forgotten_at_once(shop: Shop) -> None:
    async def run() -> None:
        shop.publish(m=shop.route)
        shop.report(await heard(shop), traffic={"m-0": Seen(in_flight=2)}, last=True)
        assert (shop.lane.taken, shop.gateways.views()) == (0, [])

    asyncio.run(run())


def test_sums_go_to_the_books(shop: Shop) -> None:
    """Which say whether they are new."""
    assert [shop.report(shop.gateways.table, serial=serial, sums=SUMS) for serial in (1, 2)] == [False, True]
    assert not shop.report(shop.gateways.table, serial=2)
    assert shop.taken == [("g", 1, SUMS), ("g", 2, SUMS)]


def test_the_stream_tells_changes_and_beats(shop: Shop) -> None:
    async def run() -> None:
        stream = shop.gateways.stream("g")
        await anext(stream)
        following = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        shop.publish(m=shop.route)
        table = decode_line(await following).table
        assert table is not None and table.replicas == {"m-0"}
        shop.publish(m=shop.route)
        assert decode_line(await anext(stream)) == Line()
        shop.gateways.close(stopping=True)
        last = decode_line(await anext(stream)).table
        assert last is not None and last.replicas == frozenset()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(run())
