"""``orchestrator gateway``: other front doors, which go on serving what is ready while the controller is away."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from orchestrator.access.key_file import new_key, revoke_key
from orchestrator.balance.names import Balance
from orchestrator.clock import SystemClock
from orchestrator.gateway.table import Model, Table, Way
from orchestrator.gateway.ways import Ways
from orchestrator.model import EngineKind, Scope
from orchestrator.servers.look import within
from tests.gateway.doors import Door, controller, current, door, known
from tests.stub import WAIT_S, Service, ask, model_table, until

MODEL, COLD = "acme/echo", "acme/cold"
CHAT = "/v1/chat/completions"
HOLD = {"prefer": "wait=20"}
LOAD_THREADS = 2


class Load:
    """Steady requests through some doors, each on a connection that stays."""

    def __init__(self, *doors: Door) -> None:
        self.statuses: list[int] = []
        self._done = threading.Event()
        self._threads = ThreadPoolExecutor(len(doors) * LOAD_THREADS)
        self._asked: list[Future[None]] = [self._threads.submit(self._run, each) for each in doors * LOAD_THREADS]

    def _run(self, through: Door) -> None:
        with through.client() as client:
            while not self._done.wait(0.002):
                self.statuses.append(client.post(CHAT, json=ask(MODEL)).status_code)

    def more(self, count: int) -> None:
        """Wait until so many more were answered."""
        goal = len(self.statuses) + count
        until(lambda: len(self.statuses) >= goal or any(one.done() for one in self._asked))

    def end(self) -> list[int]:
        """All statuses. Raises what went wrong."""
        self.stop()
        for one in self._asked:
            one.result()
        return self.statuses

    def stop(self) -> None:
        """No more requests."""
        self._done.set()
        self._threads.shutdown()


@contextlib.contextmanager
def load_on(*doors: Door) -> Iterator[Load]:
    load = Load(*doors)
    try:
        yield load
    finally:
        load.stop()


def warm(running: Service) -> None:
    """Its engine is ready, and the request for that is counted on the disk."""
    with running.client() as client:
        assert client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200
    assert usage(running) == 1


@pytest.mark.slow
def test_a_controller_that_is_killed_and_comes_back_is_not_missed(tmp_path: Path) -> None:
    """No request for the ready model fails; what only the controller can do is refused with the time to come back;
    afterwards nothing was counted twice or lost."""
    tables = (model_table(MODEL), model_table(COLD))
    with (
        controller(tmp_path, *tables) as running,
        door(tmp_path / "one", running.url) as one,
        door(tmp_path / "two", running.url) as two,
    ):
        warm(running)
        current(running, 2)
        engines = running.engines()
        with load_on(one, two) as load:
            load.more(100)
            running.process.kill()
            running.process.wait(WAIT_S)
            with one.client() as client:
                refused = client.post(CHAT, json=ask(COLD))
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "controller_away")
                assert refused.headers["retry-after"] and refused.headers["x-request-id"]
                assert client.get("/live").status_code == 200
            load.more(100)
            running.restart()
            with one.client() as client:
                assert client.get("/v1/models").status_code == 200
            current(running, 2)
            load.more(100)
            statuses = load.end()
            assert set(statuses) == {200}
        assert running.engines() == engines
        until(lambda: usage(running) == 1 + len(statuses))
        assert "controller_back" in one.log()


@pytest.mark.slow
def test_a_controller_that_ends_in_good_order_is_not_missed(tmp_path: Path) -> None:
    with controller(tmp_path, model_table(MODEL)) as running, door(tmp_path / "one", running.url) as one:
        warm(running)
        current(running, 1)
        with load_on(one) as load:
            load.more(50)
            assert running.end() == 0
            load.more(50)
            running.restart()
            load.more(50)
            assert set(load.end()) == {200}


def test_a_controller_that_is_killed_before_it_acknowledges_counts_nothing_twice(tmp_path: Path) -> None:
    """What is on its disk already comes again after that."""
    with (
        controller(tmp_path, model_table(MODEL), CRASH_AT="report.after_flush") as running,
        door(tmp_path / "one", running.url) as one,
    ):
        warm(running)
        current(running, 1)
        with one.client() as client:
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200
            assert running.process.wait(WAIT_S) == 137
            running.restart()
            current(running, 1)
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200
        assert one.end() == 0
        assert usage(running) == 3


def test_a_gateway_that_ends_has_told_all(tmp_path: Path) -> None:
    """What it was asked is answered, what it counted is told, and it is forgotten."""
    table = model_table(MODEL, "--token-delay-s", "1")
    with controller(tmp_path, table) as running, door(tmp_path / "one", running.url) as one:
        warm(running)
        current(running, 1)
        with ThreadPoolExecutor(5) as threads:
            asked = [threads.submit(httpx.post, one.url + CHAT, json=ask(MODEL), timeout=WAIT_S) for _ in range(5)]
            until(lambda: running.model(MODEL)["in_flight"] == 5)
            assert one.end() == 0
            assert [answer.result().status_code for answer in asked] == [200] * 5
        assert (known(running), usage(running), running.model(MODEL)["in_flight"]) == ([], 6, 0)


def test_a_revoked_key_is_refused_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "auth.keys.json"
    admin = new_key(path, "gateways", [Scope.ADMIN], models=[], expires=None)
    secret = new_key(path, "ci", [Scope.REALTIME], models=["acme/*"], expires=None)
    with controller(tmp_path, model_table(MODEL)) as running, door(tmp_path / "one", running.url, key=admin) as one:
        with running.client(authorization=f"Bearer {admin}") as client:
            assert client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200
        current(running, 1, authorization=f"Bearer {admin}")
        with one.client(authorization=f"Bearer {secret}") as client:
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200
            revoke_key(path, "ci")
            until(lambda: client.post(CHAT, json=ask(MODEL)).status_code == 401, 5)
        revoke_key(path, "gateways")
        until(lambda: "controller_refuses" in one.log())


def test_it_waits_for_its_controller_and_can_be_interrupted(tmp_path: Path) -> None:
    waiting = Door(tmp_path, "http://127.0.0.1:1")
    try:
        until(lambda: "waiting: the controller at http://127.0.0.1:1 does not answer" in waiting.log())
        waiting.process.send_signal(signal.SIGINT)
        assert waiting.process.wait(WAIT_S) == 130
    finally:
        waiting.close()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "--controller"),
        (("--controller", "gpu-1:8000"), "--controller is http://host:port"),
        (("--controller", "http://127.0.0.1:1", "--port", "70000"), "--port"),
    ],
)
def test_wrong_usage_is_told(tmp_path: Path, argv: tuple[str, ...], said: str) -> None:
    ended = run(tmp_path, *argv)
    assert (ended.returncode, said in ended.stderr) == (2, True), ended.stderr


def test_what_can_not_be_is_told(tmp_path: Path) -> None:
    """No key, and a door to the world for a controller that lets in everybody."""
    with controller(tmp_path, model_table(MODEL)) as running:
        opened = run(tmp_path, "--controller", running.url, "--host", "0.0.0.0", "--port", "0")
        assert (opened.returncode, "has no key file" in opened.stderr) == (2, True), opened.stderr
    new_key(tmp_path / "auth.keys.json", "admin", [Scope.ADMIN], models=[], expires=None)
    with controller(tmp_path, model_table(MODEL)) as running:
        refused = run(tmp_path, "--controller", running.url, "--port", "0")
        assert (refused.returncode, "refuses the key" in refused.stderr) == (1, True), refused.stderr


@pytest.mark.parametrize(("here", "lanes"), [(True, 2), (False, 1)])
def test_anothers_loopback_is_not_ours(here: bool, lanes: int) -> None:
    ways = Ways(timeouts=within(1), here=here, monotonic=SystemClock().monotonic, woken=lambda: None)
    routes = ways.lay(table(way("a", "127.0.0.1"), way("b", "10.0.0.7")))
    assert len(routes["m"].lanes) == lanes


def test_lanes_stay_as_long_as_the_table_has_them() -> None:
    ways = Ways(timeouts=within(1), here=True, monotonic=SystemClock().monotonic, woken=lambda: None)
    first = ways.lay(table(way("a", "10.0.0.1"), way("b", "10.0.0.2")))["m"].lanes
    first[1].enter(0.0)
    second = ways.lay(table(way("a", "10.0.0.1", capacity=4)))["m"].lanes
    assert (second[0] is first[0], second[0].capacity) == (True, 4)
    assert {replica: seen.in_flight for replica, seen in ways.traffic().items()} == {"b": 1}
    first[1].leave(1.0, 0.0)
    ways.sweep(0.0)
    assert ways.traffic() == {}


def table(*ways: Way) -> Table:
    model = Model(name="m", engine=EngineKind.COMMAND, balance=Balance.LEAST_LOADED, ways=ways)
    return Table(controller="c", version=1, models=(model,))


def way(replica: str, host: str, **more: int) -> Way:
    return Way(replica=replica, host=host, port=80, authority=host, **more)  # type: ignore[arg-type]  # as the tests give it


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    whole = (sys.executable, "-m", "orchestrator", "gateway", *argv)
    return subprocess.run(whole, cwd=folder, capture_output=True, text=True, timeout=WAIT_S, check=False)


def usage(running: Service) -> int:
    with running.client() as client:
        return int(client.get("/api/usage").json()["totals"]["requests"])
