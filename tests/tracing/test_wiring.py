"""What is made where traces are wanted, and where they are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from orchestrator import wire
from orchestrator.errors import ConfigError
from orchestrator.metering.meter import Bill
from orchestrator.settings import TracingSettings
from orchestrator.tracing.wiring import Tracing, tracing

PARTS = cast(Any, SimpleNamespace(unix=lambda: 0.0, monotonic=lambda: 0.0))


def made(*, enabled: bool) -> Tracing:
    return tracing(
        TracingSettings(enabled=enabled),
        keys=PARTS,
        history=PARTS,
        routes=dict,
        clock=PARTS,
        registry=CollectorRegistry(),
        instance="i",
    )


def test_off_the_plain_parts_are_used() -> None:
    found = made(enabled=False)
    assert (found.keys, found.history, found.bill) == (PARTS, PARTS, Bill)
    assert found.request_head is wire.request_head


def test_the_sdk_can_be_disabled_as_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert made(enabled=True).bill is Bill


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
    ],
)
def test_what_the_environment_asks_for_in_vain_is_said(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="OTEL_"):
        made(enabled=True)
