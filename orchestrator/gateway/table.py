"""What a controller and its gateways tell each other: values, and JSON. Pure.

The table holds what a gateway needs to serve ready models alone, and nothing of what is limited: requests of keys and
models with limits go through the controller, so that limits stay exact. It holds servers' keys, so only admins see it.
Times are ages: clocks of two machines have nothing in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from orchestrator.access.key import Key
from orchestrator.activator import Route
from orchestrator.balance.lane import CAPACITY_DEFAULT, Lane
from orchestrator.balance.names import Balance
from orchestrator.metering.limits import NONE
from orchestrator.metering.usage import Counts
from orchestrator.model import EngineKind, Scope
from orchestrator.servers.disguise import Disguise

LINE_BYTES_MAX = 64 * 2**20
"""Of a table: 100,000 keys and as many lanes are some 30 MB."""


class Way(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The way to one engine; see `balance.lane.Lane`."""

    replica: str
    host: str
    port: int
    authority: str
    tls_name: str = ""
    """Who it must prove to be; empty: no TLS."""
    gpus: int = 0
    capacity: int = CAPACITY_DEFAULT
    weight: float = 1.0
    disguise: Disguise | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model without limits; see `model.Deployment`."""

    name: str
    engine: EngineKind
    balance: Balance
    stream_usage: bool = True
    aliases: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()
    """To those of its engines that are ready; none: ask the controller."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One key without limits."""

    sha256: str
    name: str
    scopes: frozenset[Scope]
    models: tuple[str, ...] = ("*",)
    expires_unix: float | None = None


class Table(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that a gateway goes by. A later `version` of one `controller` is newer."""

    controller: str
    """Random for each run of it."""
    version: int
    open: bool = False
    """Whether everybody may do everything."""
    models: tuple[Model, ...] = ()
    keys: tuple[Entry, ...] = ()

    @property
    def replicas(self) -> frozenset[str]:
        """Those that requests may be sent to."""
        return frozenset(way.replica for model in self.models for way in model.ways)


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of the stream; an empty one shows that the controller is there."""

    table: Table | None = None
    settings: dict[str, dict[str, Any]] | None = None
    """With the first table: how gateways take requests; see `settings.Settings`."""


class Seen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A gateway's requests at one replica."""

    in_flight: int = 0
    idle_s: float | None = None
    """Since its last answer there ended; None: there was none."""


class Row(msgspec.Struct, frozen=True, array_like=True):
    """Usage of a key and a model in an hour."""

    key: str
    model: str
    hour: int
    counts: Counts


class Sums(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a gateway has counted since its last sums."""

    usage: tuple[Row, ...] = ()
    metrics: dict[str, list[float]] = {}
    """By model; see `metrics.ModelMetrics.numbers`."""


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a gateway tells every half second. Sums with a `serial` that has been taken are not taken again."""

    gateway: str
    """Its name, different in every run."""
    address: str
    controller: str
    version: int
    """Of the table that it goes by."""
    traffic: dict[str, Seen] = {}
    serial: int = 0
    sums: Sums | None = None
    last: bool = False
    """It ends now."""


encode_line = msgspec.json.Encoder().encode
decode_line = msgspec.json.Decoder(Line).decode
encode_report = msgspec.json.Encoder().encode
decode_report = msgspec.json.Decoder(Report).decode


def models_of(routes: Mapping[str, Route]) -> tuple[Model, ...]:
    """Those without limits, with the ways to their ready engines."""
    unlimited = (route for route in routes.values() if route.deployment.limits == NONE)
    return tuple(
        Model(
            name=route.deployment.name,
            engine=route.deployment.engine,
            balance=route.deployment.balance,
            stream_usage=route.deployment.stream_usage,
            aliases=route.deployment.aliases,
            ways=tuple(map(_way, route.lanes)),
        )
        for route in unlimited
    )


def entries_of(keys: Mapping[str, Key]) -> tuple[Entry, ...]:
    """Those without limits. `keys`: by the SHA-256 of their secrets."""
    return tuple(
        Entry(sha256=digest, name=key.name, scopes=key.scopes, models=key.models, expires_unix=key.expires_unix)
        for digest, key in keys.items()
        if key.limits == NONE
    )


def keys_of(entries: Iterable[Entry]) -> dict[str, Key]:
    """The other way round."""
    return {
        entry.sha256: Key(name=entry.name, scopes=entry.scopes, models=entry.models, expires_unix=entry.expires_unix)
        for entry in entries
    }


def _way(lane: Lane) -> Way:
    host, port = lane.pool.address
    return Way(
        replica=lane.replica,
        host=host,
        port=port,
        authority=lane.pool.authority.decode("latin-1"),
        tls_name=lane.pool.tls_name,
        gpus=lane.gpus,
        capacity=lane.capacity,
        weight=lane.weight,
        disguise=lane.disguise,
    )
