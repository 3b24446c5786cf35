"""Whose containers are touched: ours, and no others, whatever else runs on the daemon. PROMISES R4."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import fleet as step
from orchestrator.actions import Drain, Stop
from orchestrator.decide import ORPHAN_GRACE_S, decide
from orchestrator.model import Deployment, Fleet, Sighting
from runtimes.docker import container
from tests.docker.daemon import IMAGE, Daemon
from tests.docker.engines import CHAT, HOLD, MODEL, PYTHON, DockerService, container_table, docker_service
from tests.stub import WAIT_S, ask, until
from tests.values import deployment

GRACE_S = 3.0
MIXES = 1000
OURS, THEIRS = "00c0ffee00c0ffee", "00beef0000beef00"
STATES = (("running", "Up 2 minutes"), ("created", "Created"), ("exited", "Exited (1) 3 minutes ago"), ("paused", "Up"))
LABELS = {
    "none": {},
    "another's": {container.INSTANCE: THEIRS},
    "a prefix": {container.INSTANCE: OURS[:8]},
    "longer": {container.INSTANCE: f"{OURS}0"},
    "no instance": {container.INSTANCE: ""},
    "ours": {container.INSTANCE: OURS},
}


def some_container(dice: random.Random, number: int) -> dict[str, Any]:
    """As ``GET /containers/json`` shows one: of anybody, in any state."""
    labels = dict(LABELS[dice.choice(["ours", *LABELS])])
    if dice.random() < 0.8:
        labels[container.REPLICA] = dice.choice((f"r-{number}", f"r-{number}", "../../etc", "", "R_0"))
        labels[container.MODEL] = dice.choice(("m", "gone", ""))
        labels[container.SPEC] = dice.choice((deployment("m").spec, "other"))
    state, status = dice.choice(STATES)
    return {"Id": f"id-{number}", "Labels": labels or None, "State": state, "Status": status, "Ports": []}


def sighting(found: list[dict[str, Any]]) -> Sighting:
    ours = (each for each in found if container.is_ours(each, OURS))
    return Sighting(instances=tuple(container.instance_of(o, "", launching=False, stopping=False) for o in ours))


def leaving(known: Fleet, models: dict[str, Deployment], now: float) -> set[str]:
    return {a.replica for a in decide(models, known, now) if isinstance(a, Stop | Drain)}


@pytest.mark.parametrize("seed", range(10))
def test_of_a_thousand_mixes_only_our_orphans_leave(seed: int) -> None:
    """After a restart with another configuration: what is ours and dead, or has other settings, at once; what is ours,
    alive and of no configured model, after the grace and not before; nothing else, ever."""
    dice, models = random.Random(seed), {"m": deployment("m", start_timeout_s=1e6)}
    for _ in range(MIXES // 10):
        found = [some_container(dice, number) for number in range(dice.randint(0, 30))]
        ours, at_once, orphans = set(), set(), set()
        for each in found:
            labels = each["Labels"] or {}
            replica = labels.get(container.REPLICA, "")
            if labels.get(container.INSTANCE) != OURS or not replica.startswith("r-"):
                continue
            ours.add(replica)
            alive = each["State"] in ("running", "paused")
            if not alive or (labels[container.MODEL] == "m" and labels[container.SPEC] == "other"):
                at_once.add(replica)
            elif labels[container.MODEL] != "m":
                orphans.add(replica)
        known = step.advance(Fleet(), models, sighting(found), 100.0)
        assert known.replicas.keys() == ours
        extra = {r.id for r in known.of("m")[1:]} - at_once  # one more than max_replicas
        assert at_once <= leaving(known, models, 100.0) <= at_once | extra
        known = step.advance(known, models, sighting(found), 100.0 + ORPHAN_GRACE_S - 0.1)
        assert not orphans & leaving(known, models, 100.0 + ORPHAN_GRACE_S - 0.1)
        known = step.advance(known, models, sighting(found), 100.0 + ORPHAN_GRACE_S)
        assert at_once | orphans <= leaving(known, models, 100.0 + ORPHAN_GRACE_S) <= at_once | orphans | extra
        again = {"gone": deployment("gone"), "": deployment(""), **models}
        known = replace(known, replicas={k: replace(r, spec=again[r.model].spec) for k, r in known.replicas.items()})
        spared = orphans - {r.id for name in again for r in known.of(name)[1:]}
        assert not spared & leaving(known, again, 100.0 + ORPHAN_GRACE_S)


class Mix:
    """Twenty containers on a real daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.ids: dict[str, str] = {}

    def add(self, kind: str, labels: dict[str, str], *, name: str | None = None, start: bool = True) -> None:
        argv = [part.replace("{host}", "0.0.0.0").replace("{port}", str(container.PORT)) for part in PYTHON]
        with contextlib.closing(self._daemon.client()) as client:
            host = client.api.create_host_config(init=True)
            made = client.api.create_container(IMAGE, entrypoint=argv, labels=labels, name=name, host_config=host)
            if start:
                client.api.start(made["Id"])
        self.ids[f"{kind} {len(self.ids)}"] = made["Id"]

    def left(self) -> set[str]:
        """The names, as given here, of those that are there."""
        with contextlib.closing(self._daemon.client()) as client:
            there = {found["Id"] for found in client.api.containers(all=True)}
        return {kind for kind, id in self.ids.items() if id in there}

    def states(self) -> dict[str, tuple[str, str, int]]:
        there = self.left()
        with contextlib.closing(self._daemon.client()) as client:
            found = {kind: client.api.inspect_container(id)["State"] for kind, id in self.ids.items() if kind in there}
        return {kind: (state["Status"], state["StartedAt"], state["Pid"]) for kind, state in found.items()}

    def kinds(self, *wanted: str) -> set[str]:
        return {kind for kind in self.ids if kind.rpartition(" ")[0] in wanted}

    def clear(self) -> None:
        with contextlib.closing(self._daemon.client()) as client:
            for id in self.ids.values():
                with contextlib.suppress(Exception):
                    client.api.remove_container(id, force=True, v=True)


@pytest.fixture
def mix(daemon: Daemon) -> Iterator[Mix]:
    made = Mix(daemon)
    yield made
    made.clear()


def marks(instance: str, replica: str) -> dict[str, str]:
    return {container.INSTANCE: instance, container.MODEL: "acme/gone", container.REPLICA: replica, container.SPEC: "s"}


def first_life(running: DockerService) -> None:
    with running.client() as client:
        assert client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200
    running.process.kill()
    running.process.wait(WAIT_S)


@pytest.mark.slow
def test_of_twenty_containers_only_our_orphans_are_removed(tmp_path: Path, daemon: Daemon, mix: Mix) -> None:
    """Ours that run stay for the grace, then go, under whatever name; dead ones go at once; all others stay."""
    head = f'[runtime]\nkind = "docker"\norphan_grace_s = {GRACE_S}'
    with docker_service(tmp_path, daemon, container_table(), head=head) as running:
        first_life(running)
        kept = running.ids()
        for number in range(4):
            mix.add("orphan", marks(running.instance, f"gone-{number}"), name=f"orchestrator-gone-{number}")
            mix.add("another's", marks("f00dcafe", f"theirs-{number}"), name=f"orchestrator-theirs-{number}")
            mix.add("stranger", {"com.docker.compose.project": "shop"} if number % 2 else {})
        mix.add("renamed", marks(running.instance, "gone-7"), name="renamed-by-hand")
        mix.add("dead", marks(running.instance, "gone-8"), name="orchestrator-gone-8", start=False)
        mix.add("another's", marks("f00dcafe", "theirs-8"), name="orchestrator-theirs-8", start=False)
        mix.add("another's", marks(running.instance[:-1], "theirs-9"))
        mix.add("another's", marks(running.instance + "0", "theirs-10"))
        mix.add("stranger", {}, name="orchestrator-of-somebody", start=False)
        mix.add("stranger", {container.MODEL: MODEL, container.REPLICA: "gone-0"})
        mix.add("stranger", {container.INSTANCE: ""})
        assert len(mix.ids) == 20
        before = mix.states()
        others = mix.kinds("another's", "stranger")
        running.restart()
        until(lambda: not mix.left() & mix.kinds("dead"), GRACE_S - 1)
        assert mix.left() == others | mix.kinds("orphan", "renamed")
        until(lambda: mix.left() == others, GRACE_S + 15)
        assert mix.states() == {kind: before[kind] for kind in others}
        assert running.ids() == kept
        with running.client() as client:
            assert client.post(CHAT, json=ask(MODEL)).status_code == 200
        assert running.end() == 0
        assert mix.left() == others


@pytest.mark.slow
def test_an_orphan_whose_model_comes_back_is_kept(tmp_path: Path, daemon: Daemon) -> None:
    """The file was wrong for a moment."""
    with docker_service(tmp_path, daemon, container_table()) as running:
        first_life(running)
        before = running.ids()
        right, file = container_table(), tmp_path / "orchestrator.toml"
        file.write_text('[runtime]\nkind = "docker"\n' + container_table("acme/typo"))
        running.restart()
        with running.client() as client:
            assert client.post(CHAT, json=ask(MODEL)).status_code == 404
            file.write_text('[runtime]\nkind = "docker"\n' + right)
            until(lambda: client.post(CHAT, json=ask(MODEL), headers=HOLD).status_code == 200)
        assert running.ids() == before
