"""The page of servers: what it makes of the API's views, and its forms over real servers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from orchestrator.access.key_file import new_key
from orchestrator.balance.breaker import Fault
from orchestrator.model import Scope
from tests.servers.machines import machines, static_table
from tests.stub import ask, model_table, service, until
from tests.tui.doubles import model, replica
from ui import lanes

QUICK = {"health_interval_s": 0.5, "health_timeout_s": 0.2}
LOAD = {
    "replica": "r1", "in_rotation": False, "load": 1.5, "capacity": 4, "utilisation": 0.5, "weight": 1.0,
    "running": 2, "waiting": 0, "cache_use": 0.25, "breaker": "open", "fault": "slow", "retry_s": 8.0, "failures": 3,
}  # fmt: skip


def row(**load: Any) -> dict[str, Any]:
    """The row of a server whose load is told."""
    ready = model("acme/a", replicas=[replica("r1", "acme/a")])
    (group,) = lanes.groups(lanes.found([ready], [LOAD | load], []), 1000.0)
    (found,) = group["servers"]
    return dict(found)


def test_a_server_out_of_rotation_says_why_and_for_how_long() -> None:
    found = row()
    assert (found["cause"], found["retry_unix"]) == ("much slower than the others", 1008.0)
    assert (found["bar"], found["cache_bar"]) == (50, 25)


def test_what_is_not_known_is_not_zero() -> None:
    found = row(utilisation=None, running=None, cache_use=None, breaker="closed", fault=None, retry_s=None)
    assert [found[name] for name in ("bar", "running", "cache_bar", "retry_unix")] == [None] * 4
    assert row(utilisation=1.7)["bar"] == 100


def test_every_fault_has_words() -> None:
    assert set(lanes.FAULTS) == {fault.value for fault in Fault}


def test_a_model_that_is_cold_has_no_part_but_a_static_one_has() -> None:
    found = lanes.found([model("a"), model("b", engine="static"), model("c", replicas=[replica("r2", "c")])], [], [])
    assert [one["model"] for one in found] == ["b", "c"]
    assert lanes.totals(found) == dict.fromkeys(("in_rotation", "failed", "in_flight", "running", "waiting"), 0) | {
        "servers": 1
    }


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, httpx.Client, str]]:
    """Somebody who may do everything, somebody who may look, and the address of a server that is not configured."""
    folder = tmp_path_factory.mktemp("servers")
    keys = folder / "auth.keys.json"
    boss = new_key(keys, "boss", list(Scope), models=[], expires=None)
    ada = new_key(keys, "ada", [Scope.MONITOR], models=[], expires=None)
    with machines((), ()) as (one, two), ExitStack() as open_:
        running = open_.enter_context(service(folder, static_table("acme/pool", one.url, **QUICK), model_table("mine")))
        visitors = []
        for secret in (boss, ada):
            headers = {"accept": "text/html"}
            client = open_.enter_context(httpx.Client(base_url=running.url, headers=headers, timeout=30))
            client.post("/dashboard/sign-in", data={"key": secret})
            visitors.append(client)
        until(lambda: "acme/pool" in str(seen(visitors[0])) and phases(visitors[0], "acme/pool") == ["ready"])
        yield (visitors[0], visitors[1], two.url)


def seen(browser: httpx.Client) -> dict[str, Any]:
    """The page's models as programs read them."""
    found = browser.get("/dashboard/servers?format=json").json()["models"]
    return {each["model"]: each for each in found}


def phases(browser: httpx.Client, name: str) -> list[str]:
    return sorted(server["phase"] for server in seen(browser)[name]["servers"])


def test_a_server_is_added_drained_taken_back_and_removed_by_forms(
    signed: tuple[httpx.Client, httpx.Client, str],
) -> None:
    boss, _, url = signed
    form = {"at": "acme/pool", "of_url": url, "of_key": "sk-theirs", "of_weight": "2", "of_model": ""}
    assert boss.post("/dashboard/servers", data=form).headers["location"] == "/dashboard/servers"
    until(lambda: phases(boss, "acme/pool") == ["ready", "ready"])
    page = boss.get("/dashboard/servers").text
    assert url in page and "sk-theirs" not in page and "closed" in page

    def act(what: str) -> None:
        path = f"/dashboard/models/acme/pool/endpoints/{endpoints()[url]['id']}/{what}"
        assert boss.post(path).headers["location"] == "/dashboard/servers"

    def endpoints() -> dict[str, Any]:
        return {each["url"]: each for each in seen(boss)["acme/pool"]["endpoints"]}

    act("drain")
    until(lambda: phases(boss, "acme/pool") == ["draining", "ready"])
    act("resume")
    until(lambda: phases(boss, "acme/pool") == ["ready", "ready"])
    assert (endpoints()[url]["has_key"], endpoints()[url]["weight"]) == (True, 2.0), "as it was"
    act("remove")
    assert url not in endpoints()


def test_who_may_only_look_has_no_buttons(signed: tuple[httpx.Client, httpx.Client, str]) -> None:
    boss, ada, url = signed
    page = ada.get("/dashboard/servers").text
    assert "acme/pool" in page and "Add an endpoint" not in page and "/drain" not in page
    id = seen(ada)["acme/pool"]["endpoints"][0]["id"]
    for path in ("/dashboard/servers", f"/dashboard/models/acme/pool/endpoints/{id}/drain"):
        assert ada.post(path, data={"at": "acme/pool", "of_url": url}).status_code == 403
        assert boss.post(path, headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_what_the_api_refuses_is_told_on_a_page(signed: tuple[httpx.Client, httpx.Client, str]) -> None:
    boss = signed[0]
    known = seen(boss)["acme/pool"]["endpoints"][0]["url"]
    for form, status in (
        ({"at": "acme/pool", "of_url": known}, 409),
        ({"at": "acme/pool", "of_url": "ftp://x"}, 400),
        ({"at": "acme/pool", "of_url": "http://x", "of_weight": "many"}, 400),
        ({"at": "acme/none", "of_url": "http://x"}, 404),
        ({"at": "mine", "of_url": "http://x"}, 409),
        ({}, 404),
    ):
        answer = boss.post("/dashboard/servers", data=form)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), form


def test_the_page_moves(signed: tuple[httpx.Client, httpx.Client, str]) -> None:
    boss = signed[0]
    found = re.search(r'sse-connect="([^"]+)"', boss.get("/dashboard/servers").text)
    assert found
    with boss.stream("GET", found[1].replace("&amp;", "&")) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: paint"
        assert any("Servers of acme/pool" in line for line in lines)
        boss.post("/v1/chat/completions", json=ask("mine"), headers={"prefer": "wait=60"})
        assert any(line == "event: stale" for line in lines), "another model has servers now"
