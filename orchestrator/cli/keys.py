"""``orchestrator keys``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import typer

from orchestrator.access.key_file import LIMITS, list_keys, new_key, revoke_key
from orchestrator.config import load_auth
from orchestrator.errors import ConfigError
from orchestrator.model import Scope


def new(
    config: Path | None,
    name: str,
    scopes: list[str],
    *,
    tenant: str | None,
    models: list[str],
    expires: str | None,
    limits: Mapping[str, int],
    as_json: bool,
) -> None:
    """Make a key and show its secret."""
    unknown = [scope for scope in scopes if scope not in set(Scope)]
    if unknown:
        raise ConfigError(f"no scope {unknown[0]!r}; there are {', '.join(Scope)}")
    path = load_auth(config).keys_file
    known = [Scope(scope) for scope in scopes]
    secret = new_key(path, name, known, models=models, expires=expires, tenant=tenant, limits=limits)
    if as_json:
        typer.echo(json.dumps({"name": name, "key": secret, "scopes": scopes}))
        return
    typer.echo(secret)
    typer.echo(f"kept as a digest in {path}; the secret is not shown again", err=True)


def show(config: Path | None, *, as_json: bool) -> None:
    """List the keys."""
    keys = list_keys(load_auth(config).keys_file)
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": keys}))
        return
    for key in keys:
        columns = (
            key["name"],
            f"tenant {key.get('tenant', key['name'])}",
            _listed(key.get("scopes")),
            f"models {_listed(key.get('models', ['*']))}",
            f"{'expired' if _is_over(key.get('expires')) else 'expires'} {key.get('expires', 'never')}",
            *(f"{field} {key[field]}" for field in (*LIMITS, "priority") if field in key),
        )
        typer.echo("\t".join(columns))


def revoke(config: Path | None, name: str) -> None:
    """Remove a key."""
    revoke_key(load_auth(config).keys_file, name)
    typer.echo(f"revoked {name}")


def _is_over(expires: object) -> bool:
    try:
        when = datetime.fromisoformat(str(expires))
    except ValueError:  # never, or as wrong as `_listed` allows
        return False
    return (when if when.tzinfo else when.replace(tzinfo=UTC)) <= datetime.now(UTC)


def _listed(found: object) -> str:
    """What stands in the file may be anything; `doctor` says what is wrong with it."""
    return ",".join(map(str, found)) if isinstance(found, list) else repr(found)
