"""Models' other names, and who answers for whom: checked and laid out once, when the configuration is read. Pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping

from orchestrator.errors import ConfigError


def check_aliases(aliases: Mapping[str, tuple[str, ...]]) -> None:
    """Each name stands for one model. `aliases`: every model's. Raises `ConfigError`."""
    owners: dict[str, str] = {}
    for model, names in aliases.items():
        for name in names:
            if name in aliases:
                raise ConfigError(f"{_key(model)}.aliases: {name!r} is a model itself")
            if name in owners:
                raise ConfigError(f"{_key(model)}.aliases: {name!r} stands for {owners[name]!r} already")
            owners[name] = model


def chains(fallback: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """All who answer for each model, in the order in which they are asked: one's own fallbacks follow it.

    `fallback`: every model's own. Raises `ConfigError` for a model that is none, or that answers for itself.
    """
    for model, names in fallback.items():
        for name in names:
            if name not in fallback:
                raise ConfigError(f"{_key(model)}.fallback: there is no {_key(name)}{_nearest(name, fallback)}")
    return {model: tuple(dict.fromkeys(_chain(model, fallback, (model,)))) for model in fallback}


def _chain(model: str, fallback: Mapping[str, tuple[str, ...]], path: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for name in fallback[model]:
        if name in path:
            circle = " → ".join((*path[path.index(name) :], name))
            raise ConfigError(f"{_key(model)}.fallback goes round in a circle: {circle}")
        found += [name, *_chain(name, fallback, (*path, name))]
    return found


def _key(model: str) -> str:
    return f"models.{json.dumps(model)}"


def _nearest(name: str, known: Mapping[str, object]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""
