"""Reads the settings, at start and while running. Precedence: flag > environment > ``.env`` > file > default.

pydantic does the checking; this module adds the layering, messages that name the nearest key, and the way to
`model.Deployment`.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.autoscale import default_target
from orchestrator.errors import ConfigError
from orchestrator.metering.limits import NONE, Limits
from orchestrator.model import Deployment, EngineKind, IdleAction
from orchestrator.servers.endpoint import Endpoint, HealthRules
from orchestrator.servers.names import chains, check_aliases
from orchestrator.settings import (
    ENV_PREFIX,
    IMAGES,
    MODEL_ID,
    AuthSettings,
    EndpointSettings,
    Lifecycle,
    ModelSettings,
    RuntimeSettings,
    Settings,
)

CONFIG_FILE = "orchestrator.toml"
DOTENV_FILE = ".env"
SECRETIVE = frozenset({"env", "args", "command", "endpoints"})
"""The keys of a model whose values are not repeated."""
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")


def load(
    file: Path | None = None,
    *,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Read the configuration; blocks on small files.

    `file` must exist when given; without it ``orchestrator.toml`` in `folder` (default: the current
    one) is read when there. `flags` are ``{section: {key: value}}``. Raises `ConfigError`.
    """
    merged = _merged(file, folder or Path.cwd(), os.environ if environ is None else environ, flags or {})
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def load_auth(file: Path | None = None) -> AuthSettings:
    """As `load`, of ``[auth]`` alone: a key can be revoked whatever is wrong elsewhere."""
    try:
        return AuthSettings(**_merged(file, Path.cwd(), os.environ, {}).get("auth", {}))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _merged(
    file: Path | None, folder: Path, environ: Mapping[str, str], flags: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    layers = [_read_file(file, folder), _from_environ(_read_dotenv(folder)), _from_environ(environ), flags]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    return merged


def deployments(
    settings: Settings, *, folder: Path | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, Deployment]:
    """The configured models as values, defaults filled in. `folder` is what relative sources start from, `environ`
    what holds the keys of servers. Raises `ConfigError`.
    """
    folder, environ = folder or Path.cwd(), os.environ if environ is None else environ
    check_aliases({name: model.aliases for name, model in settings.models.items()})
    fallback = chains({name: model.fallback for name, model in settings.models.items()})
    return {
        name: replace(
            _deployment(name, model, settings, folder),
            aliases=model.aliases,
            fallback=fallback[name],
            endpoints=_endpoints(name, model, environ),
        )
        for name, model in settings.models.items()
    }


def _deployment(name: str, model: ModelSettings, settings: Settings, folder: Path) -> Deployment:
    source, revision = _source(name, model, folder)
    lifecycle = {
        key: getattr(settings.defaults, key) if getattr(model, key) is None else getattr(model, key)
        for key in Lifecycle.model_fields
    }
    lifecycle["image"] = _image(name, model.engine, lifecycle["image"], settings.runtime)
    if lifecycle["idle_action"] is IdleAction.SLEEP and model.engine is not EngineKind.VLLM:
        if model.idle_action is IdleAction.SLEEP:
            raise ConfigError(f'models."{name}".idle_action: only vLLM can sleep')
        lifecycle["idle_action"] = IdleAction.STOP
    if lifecycle["min_replicas"] > lifecycle["max_replicas"]:
        raise ConfigError(f'models."{name}".min_replicas: {lifecycle["min_replicas"]} are more than max_replicas')
    lifecycle["target_concurrency"] = lifecycle["target_concurrency"] or default_target(
        model.args, lifecycle["max_concurrent"]
    )
    limits = {key: lifecycle.pop(key) for key in ("requests_per_minute", "tokens_per_minute", "max_concurrent")}
    rules = {
        key: lifecycle.pop(f"health_{key}") for key in ("interval_s", "timeout_s", "window", "success_min", "slow_s")
    }
    return Deployment(
        name=name,
        health=HealthRules(**rules, dns_refresh_s=lifecycle.pop("dns_refresh_s")),
        limits=Limits(**limits) if any(limits.values()) else NONE,
        engine=model.engine,
        source=source,
        revision=revision,
        args=model.args,
        env=tuple(sorted(model.env.items())),
        command=model.command,
        gpus=None if model.gpus == "auto" else model.gpus,
        priority=model.priority,
        load_format=model.load_format,
        preload=model.preload,
        keep_warm=model.keep_warm,
        pinned=model.pinned,
        **lifecycle,
    )


def _endpoints(name: str, model: ModelSettings, environ: Mapping[str, str]) -> tuple[Endpoint, ...]:
    found: dict[str, Endpoint] = {}
    for number, given in enumerate(model.endpoints):
        key, where = given.key, f'models."{name}".endpoints.{number}'
        if given.key_env is not None:
            key = environ.get(given.key_env, "")
            if not (key.isascii() and key.isprintable() and key):
                raise ConfigError(f"{where}.key_env: the environment has no usable {given.key_env}")
        if given.url in found:
            raise ConfigError(f"{where}.url: it stands there twice")
        found[given.url] = Endpoint(
            url=given.url,
            max_concurrent_requests=given.max_concurrent_requests,
            key=key,
            model=given.model,
            weight=given.weight,
        )
    return tuple(found.values())


def _image(name: str, engine: EngineKind, image: str, runtime: RuntimeSettings) -> str:
    if runtime.kind != "docker" or engine is EngineKind.STATIC:
        return ""
    if not (image or engine in IMAGES):
        raise ConfigError(f'models."{name}".image: a command engine in a container needs one')
    return image or IMAGES[engine]


def _source(name: str, model: ModelSettings, folder: Path) -> tuple[str, str | None]:
    """(hub id, revision), or (absolute folder, None), or ("", None) for a command that needs no weights."""
    if model.source is None and model.engine in (EngineKind.COMMAND, EngineKind.STATIC):
        return "", None
    source = model.source or name
    if source.startswith(("/", "./", "../", "~")):
        try:
            return str((folder / Path(source).expanduser()).resolve()), None
        except (OSError, RuntimeError, ValueError) as error:  # a NUL, a user without a home, a ring of links
            raise ConfigError(f'models."{name}".source: {source!r} is no folder: {error}') from None
    hub_id, _, revision = source.partition("@")
    if not MODEL_ID.fullmatch(hub_id) or ".." in source or (revision and not REVISION.fullmatch(revision)):
        raise ConfigError(f'models."{name}".source: {source!r} is neither a hub id nor a folder (./…, /…)')
    return hub_id, revision or None


def _read_file(file: Path | None, folder: Path) -> dict[str, Any]:
    path = file or folder / CONFIG_FILE
    if file is None and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _read_dotenv(folder: Path) -> dict[str, str]:
    from dotenv import dotenv_values  # comes with pydantic-settings

    path = folder / DOTENV_FILE
    try:
        if not path.is_file():
            return {}
        return {key: value for key, value in dotenv_values(path).items() if value is not None}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    """``ORCHESTRATOR_SERVER__PORT=1`` to ``{"server": {"port": "1"}}``. Models live in the file only."""
    layer: dict[str, Any] = {}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        section, separator, key = variable.removeprefix(ENV_PREFIX).lower().partition("__")
        if not separator or section not in Settings.model_fields or section == "models":
            known = [f"{ENV_PREFIX}{s}__{k}".upper() for s, k in known_keys()]
            raise ConfigError(f"environment: unknown variable {variable}{_nearest(variable, known)}")
        layer.setdefault(section, {})[key] = value
    return layer


# The command line reads these; they are no settings of the service.
_OTHER_VARIABLES = {"ORCHESTRATOR_URL", "ORCHESTRATOR_API_KEY", "ORCHESTRATOR_CACHE"}


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where `orchestrator demo` keeps what it prepares: ``ORCHESTRATOR_CACHE``, else the user's cache folder."""
    if found := environ.get("ORCHESTRATOR_CACHE"):
        return Path(found).expanduser()
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "orchestrator"


def known_keys() -> list[tuple[str, str]]:
    """Every (section, key) outside ``[models]``: the settings table's index."""
    keys = []
    for section, field in Settings.model_fields.items():
        if section != "models" and isinstance(field.annotation, type):
            keys += [(section, key) for key in field.annotation.model_fields]
    return keys


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: ValidationError) -> str:
    """One line a fault: the key as it is written in the file, what is wrong, the nearest valid key."""
    lines = []
    for fault in error.errors(include_url=False):
        loc = [str(part) for part in fault["loc"]]
        if not loc:  # of several tables together: the message names the key
            lines.append(fault["msg"].removeprefix("Value error, "))
            continue
        if loc[0] == "models" and len(loc) > 1:
            loc[1] = f'"{loc[1]}"'
        if fault["type"] == "extra_forbidden":
            lines.append(f"{'.'.join(loc)}: unknown key{_nearest(loc[-1], _siblings(loc))}")
        else:
            # An engine's environment and arguments, and a server's address, may hold secrets, and /health shows this.
            secret = loc[-1:] == ["[key]"] or (loc[0] == "models" and SECRETIVE & set(loc[2:3]))
            shown = "" if secret else f", not {str(fault['input'])[:80]!r}"
            lines.append(f"{'.'.join(loc)}: {fault['msg'].removeprefix('Value error, ')}{shown}")
    return "\n".join(lines)


def _siblings(loc: list[str]) -> list[str]:
    if len(loc) == 1:
        return list(Settings.model_fields)
    if loc[0] == "models":
        return list((EndpointSettings if "endpoints" in loc[2:-1] else ModelSettings).model_fields)
    return [key for section, key in known_keys() if section == loc[0]]


def _nearest(key: str, known: list[str]) -> str:
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else f"; known: {', '.join(sorted(known)[:40])}"


class Watched:
    """The configuration as it is re-read while running: models, endpoints and their defaults.

    A file that can't be used keeps the old models in force; `error` says why until it is mended. A change is read
    once two looks have found it the same: in the middle of being rewritten, a file is empty, or ends too early.
    """

    def __init__(self, file: Path | None, *, flags: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.folder = (file.parent if file else Path.cwd()).resolve()
        self.error = ""
        self._file = file
        self._flags = flags
        self._stamp = self._found = self._look()

    def load(self) -> Settings:
        """All settings, as at start. Raises `ConfigError`."""
        return load(self._file, flags=self._flags)

    def refresh(self) -> dict[str, Deployment] | None:
        """The deployments if the file has changed and can be used, else None. Cheap when unchanged."""
        stamp, before = self._look(), self._found
        self._found = stamp
        if stamp == self._stamp or stamp != before:
            return None
        self._stamp = stamp
        if stamp is None:
            self.error = "the configuration file is gone; the models of the last one stay in force"
            return None
        try:
            fresh = deployments(self.load(), folder=self.folder)
        except ConfigError as error:
            self.error = f"the changed configuration is not used: {error}"
            return None
        self.error = ""
        return fresh

    def _look(self) -> tuple[int, int, int] | None:
        try:
            facts = (self._file or Path(CONFIG_FILE)).stat()
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_size, facts.st_ino
