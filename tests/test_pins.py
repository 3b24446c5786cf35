"""Models kept warm by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.model import Deployment, EngineKind
from orchestrator.pins import Pins, kept_warm
from tests.stub import model_table, service, until


def test_pins_outlive_the_service(tmp_path: Path) -> None:
    changes: list[None] = []
    pins = Pins(tmp_path / "pins.json", changed=lambda: changes.append(None))
    pins.set("a/b", True)
    pins.set("a/b", True)
    pins.set("c", True)
    pins.set("c", False)
    assert Pins(tmp_path / "pins.json", changed=lambda: None).models == {"a/b"}
    assert len(changes) == 3


@pytest.mark.parametrize("content", ["", "{}", '{"a": 1}', "[1, null]", "\x00", "[" * 100_000])
def test_what_can_not_be_read_pins_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "pins.json").write_text(content)
    assert Pins(tmp_path / "pins.json", changed=lambda: None).models == frozenset()


def test_a_pin_that_can_not_be_kept_is_none(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "gone" / "pins.json", changed=lambda: None)
    with pytest.raises(OSError):
        pins.set("a", True)
    assert pins.models == frozenset()


def test_a_pinned_model_keeps_a_replica() -> None:
    models = {name: Deployment(name=name, engine=EngineKind.COMMAND, source="") for name in ("a", "b")}
    kept = kept_warm(models, frozenset({"a", "unknown"}))
    assert {name: deployment.min_replicas for name, deployment in kept.items()} == {"a": 1, "b": 0}


def test_pin_starts_and_keeps_a_model_and_unpin_lets_it_go(tmp_path: Path) -> None:
    with service(tmp_path, model_table("acme/a", idle_timeout_s=0.2)) as running, running.client() as client:
        assert client.post("/api/models/acme/a/pin").json()["pinned"]
        until(lambda: running.phase("acme/a") == "ready")
        view = running.model("acme/a")
        assert (view["pinned"], view["min_replicas"], view["stops_in_s"]) == (True, 1, None)
        assert not client.post("/api/models/acme/a/unpin").json()["pinned"]
        until(lambda: running.phase("acme/a") == "cold")
        assert client.post("/api/models/unknown/pin").status_code == 404
