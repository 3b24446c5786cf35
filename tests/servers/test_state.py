"""What makes a server well, and which servers there should be: tables, and what holds whatever is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.balance.lane import Lane
from orchestrator.metering.limits import Limits
from orchestrator.model import Deployment, EngineKind, Phase
from orchestrator.servers.endpoint import Endpoint, HealthRules
from orchestrator.servers.routes import capacity, route
from orchestrator.servers.state import Check, Lookup, Server, drained, judged, looked_up, placed
from orchestrator.upstream import Pool, Timeouts
from tests.values import deployment

RULES = HealthRules(interval_s=5, timeout_s=2, window=4, success_min=0.5, slow_s=1)
OK, SLOW, BAD = Check(ok=True, seconds=0.1), Check(ok=True, seconds=1.5), Check(ok=False, seconds=0.1, error="bad")
ONE = Endpoint(url="http://10.0.0.1")
NAME = Endpoint(url="http://pool:8000")
TIMEOUTS = Timeouts(connect_timeout_s=1, first_byte_timeout_s=1, stream_idle_timeout_s=1, request_timeout_s=1)


def server(phase: Phase = Phase.STARTING, endpoint: Endpoint = ONE, id: str = "s", **more: object) -> Server:
    base: dict[str, object] = {"phase_at": 0.0, "created_at": 0.0, "due_at": 0.0, "address": endpoint.host}
    return Server(id=id, model="m", endpoint=endpoint, phase=phase, **{**base, **more})  # type: ignore[arg-type]  # the same


@pytest.mark.parametrize(
    ("checks", "phase"),
    [
        ([OK], Phase.READY),
        ([BAD], Phase.FAILED),
        ([SLOW], Phase.FAILED),
        ([OK, BAD], Phase.READY),
        ([OK, BAD, BAD], Phase.FAILED),
        ([OK, BAD, BAD, OK], Phase.READY),
        ([OK, BAD, OK, BAD], Phase.READY),
        ([BAD, OK, BAD, OK, BAD], Phase.READY),
        ([OK, SLOW, SLOW], Phase.READY),
        ([OK, SLOW, SLOW, SLOW], Phase.FAILED),
        ([OK, SLOW, SLOW, SLOW, SLOW], Phase.FAILED),
        ([OK, SLOW, SLOW, SLOW, OK], Phase.READY),
    ],
)
def test_phases(checks: list[Check], phase: Phase) -> None:
    found = server()
    for at, check in enumerate(checks):
        found = judged(found, check, RULES, float(at))
    assert found.phase is phase
    assert bool(found.error) is (phase is Phase.FAILED or not checks[-1].ok)


def test_too_few_went_well() -> None:
    found = server()
    for check in (OK, BAD, OK, BAD):
        found = judged(found, check, replace(RULES, success_min=0.8), 0.0)
    assert found.phase is Phase.FAILED
    assert found.error == "only 2 of its last 4 checks went well"


def test_after_a_first_failure_the_next_check_comes_at_once() -> None:
    ready = judged(server(), OK, RULES, 10.0)
    assert ready.due_at == 15.0
    doubted = judged(ready, BAD, RULES, 15.0)
    assert (doubted.phase, doubted.due_at) == (Phase.READY, 15.0)
    failed = judged(doubted, BAD, RULES, 15.1)
    assert (failed.phase, failed.due_at) == (Phase.FAILED, 20.1)


@given(st.lists(st.sampled_from([OK, SLOW, BAD]), max_size=20))
def test_two_failures_in_a_row_are_out_and_a_good_check_is_in(checks: list[Check]) -> None:
    found = server()
    for check in checks:
        found = judged(found, check, RULES, 0.0)
    assert len(found.checks) <= RULES.window
    assert judged(judged(found, BAD, RULES, 0.0), BAD, RULES, 0.0).phase is Phase.FAILED
    out = judged(judged(found, BAD, RULES, 0.0), BAD, RULES, 0.0)
    assert judged(out, OK, RULES, 0.0).phase is Phase.READY
    assert judged(drained(found, 0.0), OK, RULES, 0.0).phase is Phase.DRAINING


def pool(*endpoints: Endpoint) -> dict[str, Deployment]:
    return {"m": deployment("m", engine=EngineKind.STATIC, endpoints=endpoints)}


def test_a_name_stands_for_all_its_addresses() -> None:
    models = pool(ONE, NAME)
    lookups = {("pool", 8000): Lookup(addresses=("10.0.0.2", "10.0.0.3"))}
    here, leaving = placed({}, models, lookups, 1.0)
    assert [each.address for each in here.values()] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert not leaving
    ready = {id: judged(each, OK, RULES, 2.0) for id, each in here.items()}
    moved = {("pool", 8000): looked_up(lookups["pool", 8000], ("10.0.0.3", "10.0.0.4"), "", 9.0)}
    after, leaving = placed(ready, models, moved, 3.0)
    assert [(each.address, each.phase) for each in after.values()] == [
        ("10.0.0.1", Phase.READY),
        ("10.0.0.3", Phase.READY),
        ("10.0.0.4", Phase.STARTING),
    ]
    assert [(each.address, each.phase) for each in leaving.values()] == [("10.0.0.2", Phase.DRAINING)]
    back, leaving = placed(after | leaving, models, lookups, 4.0)
    assert next(each for each in back.values() if each.address == "10.0.0.2").phase is Phase.STARTING


def test_a_look_up_that_fails_takes_no_server_away() -> None:
    known = Lookup(addresses=("10.0.0.2",))
    after = looked_up(known, (), "no such name", 9.0)
    assert (after.addresses, after.error, after.pending) == (("10.0.0.2",), "no such name", False)


def test_other_settings_are_checked_at_once_and_draining_is_kept() -> None:
    here, _ = placed({}, pool(ONE), {}, 0.0)
    ready = {id: judged(each, OK, RULES, 1.0) for id, each in here.items()}
    (keyed,) = placed(ready, pool(replace(ONE, key="k")), {}, 2.0)[0].values()
    assert (keyed.phase, keyed.due_at) == (Phase.READY, 2.0)
    (gone,) = placed(ready, pool(replace(ONE, draining=True)), {}, 2.0)[0].values()
    assert gone.phase is Phase.DRAINING


def lanes(*servers: Server) -> dict[str, Lane]:
    return {each.id: Lane(each.id, Pool("h", 1, TIMEOUTS)) for each in servers}


def test_a_route_is_ready_while_one_server_is() -> None:
    model = deployment("m", engine=EngineKind.STATIC, endpoints=(ONE,))
    ready, failed = server(Phase.READY, id="a"), server(Phase.FAILED, id="b", error="bad", due_at=7.0)
    found = route(model, [ready, failed], lanes(ready, failed), [], None, 5.0)
    assert (found.track.phase, [lane.replica for lane in found.lanes], found.backoff) == (Phase.READY, ["a"], None)
    assert [replica.phase for replica in found.replicas] == [Phase.READY, Phase.FAILED]
    assert route(model, [ready], lanes(ready), [], found.track, 9.0).track is found.track
    none = route(model, [failed], lanes(failed), [], found.track, 6.0)
    assert none.given_up(6.0)
    assert none.backoff is not None
    assert none.backoff.error == "its server is not well: bad"
    assert none.backoff.retry_at > failed.due_at


@pytest.mark.parametrize(
    ("servers", "lookups", "phase", "error"),
    [
        ([], [], Phase.FAILED, "it has no servers"),
        ([], [Lookup()], Phase.STARTING, ""),
        ([], [Lookup(error="no such name")], Phase.FAILED, "it has no servers: no such name"),
        ([server(Phase.DRAINING)], [], Phase.FAILED, "its servers are drained"),
        ([server(Phase.STARTING)], [], Phase.STARTING, ""),
    ],
)
def test_models_without_a_server(servers: list[Server], lookups: list[Lookup], phase: Phase, error: str) -> None:
    found = route(deployment("m", engine=EngineKind.STATIC), servers, {}, lookups, None, 1.0)
    assert found.track.phase is phase
    assert (found.backoff.error if found.backoff else "") == error


def test_as_many_requests_as_its_servers_take_together() -> None:
    three, five = replace(ONE, max_concurrent_requests=3), Endpoint(url="http://h", max_concurrent_requests=5)
    model = deployment("m", engine=EngineKind.STATIC)
    servers = [server(Phase.READY, three, "a"), server(Phase.READY, five, "b"), server(Phase.FAILED, ONE, "c")]
    assert route(model, servers, lanes(*servers), [], None, 0.0).places == 8
    tight = replace(model, limits=Limits(max_concurrent=4))
    assert route(tight, servers, lanes(*servers), [], None, 0.0).places == 7  # 3 and 4
    free = [*servers, server(Phase.READY, ONE, "d")]
    assert route(model, free, lanes(*free), [], None, 0.0).places == 0
    assert route(tight, free, lanes(*free), [], None, 0.0).places == 12
    assert [capacity(each, free) for each in free] == [3, 5, 5, 5]
