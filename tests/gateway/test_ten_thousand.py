"""10,000 requests through all that may happen to a service while it serves: none fails."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.gateway.doors import Controller, controller, current, door
from tests.gateway.steady import CHAT, Answer, Steady, figures, steady
from tests.servers.machines import machines, servers_of, static_table
from tests.stub import WAIT_S, Service, ask, model_table, until

MODEL, POOL, OTHER, ADDED = "acme/echo", "acme/pool", "acme/other", "acme/added"
REPLICAS = 3
RELOADS, ROLLING, RESTARTS, AFTER = "reloads", "rolling", "restarts", "after"
REQUESTS = {RELOADS: 3_400, ROLLING: 3_400, RESTARTS: 3_400}
"""At least, in each part."""
STEP = 300
"""At least, after each change."""


class Shop:
    """A controller with its configuration, and what changes in it."""

    def __init__(self, running: Controller, first: str, second: str) -> None:
        self.running = running
        self._head = (running.folder / "orchestrator.toml").read_text().partition("[models")[0]
        self._first, self._second = first, second

    def write(self, *, limit: int = 0, endpoints: int = 1, added: bool = False, round_: int = 0) -> None:
        """`orchestrator.toml` anew."""
        urls = (self._first, self._second)[:endpoints]
        more = [static_table(ADDED, self._second)] if added else []
        whole = (*tables(*urls, limit=limit, round_=round_), *more)
        (self.running.folder / "orchestrator.toml").write_text(self._head + "\n".join(whole))

    def servers(self) -> list[str]:
        """The phases of the pool's."""
        with self.running.client() as client:
            return list(servers_of(client, POOL).values())

    def usage(self) -> int:
        """How many requests for both models were counted; those of the controller's own are on the disk after this."""
        with self.running.client() as client:
            asked = [client.get("/api/usage", params={"model": model}).json() for model in (MODEL, POOL)]
        return sum(int(answer["totals"]["requests"]) for answer in asked)

    def status(self, model: str) -> int:
        """What a request for it gets."""
        with self.running.client() as client:
            return client.post(CHAT, json=ask(model)).status_code

    def replicas(self) -> dict[str, str]:
        """The phase of each of the model's."""
        return {replica["id"]: replica["phase"] for replica in self.running.model(MODEL)["replicas"]}

    def ready(self) -> bool:
        """Whether the model has all its replicas."""
        return list(self.replicas().values()) == ["ready"] * REPLICAS


def tables(*urls: str, limit: int = 0, round_: int = 0) -> tuple[str, ...]:
    echo = model_table(MODEL, "--token-delay-s", "0.001", min_replicas=REPLICAS, max_replicas=REPLICAS)
    return (
        echo + f'env = {{ ROUND = "{round_}" }}\n',
        static_table(POOL, *urls),
        static_table(OTHER, urls[0], requests_per_minute=limit),
    )


@pytest.mark.slow
def test_nothing_fails_while_everything_changes(tmp_path: Path) -> None:
    with (
        machines((), ()) as (first, second),
        controller(tmp_path, *tables(first.url)) as running,
        door(tmp_path / "one", running.url) as one,
        door(tmp_path / "two", running.url) as two,
    ):
        shop = Shop(running, first.url, second.url)
        until(shop.ready)
        current(running, 2)
        with steady((one.url, two.url), (MODEL, POOL), RELOADS) as load:
            with steady((running.url,), (MODEL, POOL), RELOADS) as beside:
                reloads(shop, load, one.url)
                load.begin(ROLLING, REQUESTS[RELOADS])
                beside.part = ROLLING
                rolling(shop, load)
            load.begin(RESTARTS, REQUESTS[ROLLING] - beside.answered(ROLLING))
            after = restarts(shop, load)
            load.begin("", REQUESTS[RESTARTS])
        answers = load.answers + beside.answers
        until(lambda: shop.usage() == len(answers + after))
        print(json.dumps(summary(answers)))
        assert faults(answers + after) == []
        assert len(answers) >= 10_000


def reloads(shop: Shop, load: Steady, gateway: str) -> None:
    """Another model's limits, an endpoint more and one less, a model more and one less."""
    shop.write(limit=1)
    until(lambda: shop.status(OTHER) == 429)
    load.more(STEP)
    shop.write(endpoints=2)
    until(lambda: shop.servers() == ["ready", "ready"])
    load.more(STEP)
    shop.write(endpoints=1)
    until(lambda: shop.servers() == ["ready"])
    load.more(STEP)
    shop.write(added=True)
    until(lambda: shop.status(ADDED) == 200)
    load.more(STEP)
    shop.write()
    until(lambda: shop.status(ADDED) == 404)
    load.more(STEP)


def rolling(shop: Shop, load: Steady) -> None:
    """Every replica is followed by another one."""
    before = shop.replicas().keys()
    shop.write(round_=1)
    until(lambda: shop.ready() and not before & shop.replicas().keys(), 4 * WAIT_S)
    load.more(STEP)


def restarts(shop: Shop, load: Steady) -> list[Answer]:
    """The controller is killed, and ends in good order, and is there again each time. Its own answers after that."""
    running, engines, after = shop.running, shop.running.engines(), list[Answer]()
    for how in (kill, end):
        shop.usage()
        how(running)
        load.more(STEP)
        running.restart()
        current(running, 2)
        with steady((running.url,), (MODEL, POOL), AFTER) as beside:
            beside.more(STEP)
        after += beside.answers
    assert running.engines() == engines
    return after


def kill(running: Service) -> None:
    """With SIGKILL."""
    running.process.kill()
    running.process.wait(WAIT_S)


def end(running: Service) -> None:
    """With SIGTERM."""
    assert running.end() == 0


def faults(answers: Iterable[Answer]) -> list[Answer]:
    """Those that failed, a few of them."""
    return [answer for answer in answers if answer.fault][:10]


def summary(answers: list[Answer]) -> dict[str, object]:
    """In all, and by part."""
    parts = {part: figures([answer for answer in answers if answer.part == part]) for part in REQUESTS}
    failed = sum(bool(answer.fault) for answer in answers)
    return {"requests": len(answers), "failed": failed, "parts": parts}
