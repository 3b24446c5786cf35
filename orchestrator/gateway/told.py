"""The controller's settings, as far as gateways go by them: so they need no file of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import ConfigError
from orchestrator.settings import Settings

_TOLD: Mapping[str, set[str]] = {
    "server": {
        "body_bytes_max",
        "header_bytes_max",
        "headers_max",
        "connections_max",
        "header_timeout_s",
        "body_timeout_s",
        "body_bytes_per_s_min",
        "keep_alive_s",
    },
    "storage": {"file_bytes_max"},
    "defaults": {"drain_timeout_s"},
    "usage": {"enabled"},
}
_WHOLE = ("proxy", "activator")


def told(settings: Settings) -> dict[str, dict[str, Any]]:
    """What the controller says of them."""
    parts = {name: getattr(settings, name).model_dump(mode="json", include=keys) for name, keys in _TOLD.items()}
    return parts | {name: getattr(settings, name).model_dump(mode="json") for name in _WHOLE}


def settings_of(said: Mapping[str, Mapping[str, Any]], *, host: str, port: int) -> Settings:
    """A gateway's settings. Raises `ConfigError` where the controller is of another version."""
    server = {**said.get("server", {}), "host": host, "port": port}
    try:
        return Settings(**{**said, "server": server})  # type: ignore[arg-type]  # it is checked here
    except ValidationError as error:
        raise ConfigError(f"the controller is of another version: {error}") from None
