"""The settings table: every key once, with type, default and help; read at start, passed down frozen.

Precedence: flag > environment > ``.env`` > file > default. pydantic-settings does the layering, this
module adds the file's shape, messages that name the nearest key, and the way to `model.Deployment`.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from orchestrator.errors import ConfigError
from orchestrator.model import Deployment, EngineKind

ENV_PREFIX = "ORCHESTRATOR_"
CONFIG_FILE = "orchestrator.toml"
DOTENV_FILE = ".env"
MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,3}")
MODEL_ID_CHARS_MAX = 200
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")

Seconds = Annotated[float, Field(ge=0, le=30 * 86400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""What a process can be given."""
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


def _model_id(name: str) -> str:
    """Refuse what could be a path, a flag or a trick; see `MODEL_ID`."""
    if len(name) > MODEL_ID_CHARS_MAX or not MODEL_ID.fullmatch(name) or ".." in name:
        raise ValueError("a model id is letters, digits, '.', '_', '-', in up to four parts joined by '/'")
    return name


class Table(BaseModel):
    """One table of the file: unknown keys are errors, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Table):
    host: str = Field("127.0.0.1", description="address to listen on; beyond loopback only with a key file")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    data_dir: Path = Field(Path("data"), description="state, history and logs; one orchestrator at a time")
    body_bytes_max: Count = Field(32 * 2**20, description="largest request body; beyond it 413")
    header_bytes_max: Count = Field(32 * 2**10, description="largest request head; beyond it 431")
    headers_max: Count = Field(100, description="most request headers; beyond it 431")
    connections_max: Count = Field(4096, description="most client connections; beyond it 503")
    header_timeout_s: Seconds = Field(10, description="a request head must be complete within this")
    body_timeout_s: Seconds = Field(20, description="a request body may fall this far behind its rate")
    body_bytes_per_s_min: Count = Field(1024, description="the rate a request body must keep up")
    keep_alive_s: Seconds = Field(75, description="idle client connections are closed after this")


class AuthSettings(Table):
    keys_file: Path = Field(
        Path("auth.keys.json"), description="hashed keys; absent: everything allowed, on loopback only"
    )


class RuntimeSettings(Table):
    kind: Literal["process"] = Field("process", description="where engines run")
    log_bytes_max: Count = Field(16 * 2**20, description="an engine's log is cut to its end beyond this")
    on_exit: Literal["stop", "keep"] = Field(
        "stop", description="engines when the service ends in good order; keep: the next one adopts them"
    )
    pulls_max: Count = Field(2, description="models pulled at the same time")


class StorageSettings(Table):
    url: str = Field("file://data/objects", description="where files live; nothing is kept there yet")


class Lifecycle(Table):
    """The keys of ``[defaults]``; each may stand under a model too."""

    idle_timeout_s: Seconds = Field(300, description="an engine unused for this long is stopped")
    start_timeout_s: Seconds = Field(900, description="a start that takes longer has failed")
    drain_timeout_s: Seconds = Field(30, description="requests in flight get this long when an engine leaves")
    min_replicas: int = Field(0, ge=0, le=1, description="1 keeps the model warm")
    max_replicas: int = Field(1, ge=1, le=1, description="most engines of the model")


class ActivatorSettings(Table):
    hold_max_s: Seconds = Field(300, description="the longest a request is held while its model starts")
    retry_after_max_s: int = Field(60, ge=1, le=120, description="the most that Retry-After says")
    held_max: Count = Field(1000, description="most requests held at once; beyond it 503")


class ProxySettings(Table):
    connect_timeout_s: Seconds = Field(5, description="an engine must accept a connection within this")
    first_byte_timeout_s: Seconds = Field(600, description="an engine must begin its answer within this")
    stream_idle_timeout_s: Seconds = Field(300, description="the longest silence within an answer")
    request_timeout_s: Seconds = Field(3600, description="the longest an answer may take in all")


class ModelSettings(Table):
    """One ``[models."id"]`` table."""

    engine: EngineKind = Field(EngineKind.VLLM, description="vllm, sglang, or command: any program")
    source: str | None = Field(None, description="hub id[@revision] or local folder; default: the model's id")
    args: tuple[Text, ...] = Field((), description="more arguments for the engine")
    env: dict[EnvName, Text] = Field({}, description="more environment for the engine")
    command: tuple[Text, ...] = Field(
        (), description="the argv of a command engine; {host} {port} {weights} {model} are filled in"
    )
    health_path: str = Field("/health", pattern=r"^/[\x21-\x7e]*$", description="answers 200 when ready")
    gpus: int | Literal["auto"] = Field("auto", description="auto, 0 or N")
    priority: int = Field(0, description="higher may evict lower when GPUs are short")
    idle_timeout_s: Seconds | None = None
    start_timeout_s: Seconds | None = None
    drain_timeout_s: Seconds | None = None
    min_replicas: int | None = Field(None, ge=0, le=1)
    max_replicas: int | None = Field(None, ge=1, le=1)

    @field_validator("gpus")
    @classmethod
    def _gpus_are_counted(cls, gpus: int | str) -> int | str:
        if isinstance(gpus, int) and gpus < 0:
            raise ValueError("auto, 0 or more")
        return gpus


class Settings(BaseSettings):
    """All of it. Made by `load`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    storage: StorageSettings = StorageSettings()
    defaults: Lifecycle = Lifecycle()
    activator: ActivatorSettings = ActivatorSettings()
    proxy: ProxySettings = ProxySettings()
    models: dict[Annotated[str, AfterValidator(_model_id)], ModelSettings] = {}

    @field_validator("models")
    @classmethod
    def _commands_are_given(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        for name, model in models.items():
            if (model.engine is EngineKind.COMMAND) != bool(model.command):
                raise ValueError(f'models."{name}".command goes with engine = "command", and only with it')
        return models

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`load` hands in all layers already in order."""
        return (init_settings,)


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
    folder = folder or Path.cwd()
    environ = os.environ if environ is None else environ
    layers = [
        _read_file(file, folder),
        _from_environ(_read_dotenv(folder)),
        _from_environ(environ),
        flags or {},
    ]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def deployments(settings: Settings, *, folder: Path | None = None) -> dict[str, Deployment]:
    """The configured models as values, defaults filled in. `folder` is what relative sources start from."""
    return {name: _deployment(name, m, settings.defaults, folder or Path.cwd()) for name, m in settings.models.items()}


def _deployment(name: str, model: ModelSettings, defaults: Lifecycle, folder: Path) -> Deployment:
    source, revision = _source(name, model, folder)
    lifecycle = {
        key: getattr(defaults, key) if getattr(model, key) is None else getattr(model, key)
        for key in Lifecycle.model_fields
    }
    return Deployment(
        name=name,
        engine=model.engine,
        source=source,
        revision=revision,
        args=model.args,
        env=tuple(sorted(model.env.items())),
        command=model.command,
        health_path=model.health_path,
        gpus=None if model.gpus == "auto" else model.gpus,
        priority=model.priority,
        **lifecycle,
    )


def _source(name: str, model: ModelSettings, folder: Path) -> tuple[str, str | None]:
    """(hub id, revision), or (absolute folder, None), or ("", None) for a command that needs no weights."""
    if model.source is None and model.engine is EngineKind.COMMAND:
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
        if loc[0] == "models" and len(loc) > 1:
            loc[1] = f'"{loc[1]}"'
        if fault["type"] == "extra_forbidden":
            lines.append(f"{'.'.join(loc)}: unknown key{_nearest(loc[-1], _siblings(loc))}")
        else:
            # An engine's environment and arguments may hold secrets, and /health shows this.
            secret = loc[-1:] == ["[key]"] or (loc[0] == "models" and {"env", "args", "command"} & set(loc[2:3]))
            shown = "" if secret else f", not {str(fault['input'])[:80]!r}"
            lines.append(f"{'.'.join(loc)}: {fault['msg'].removeprefix('Value error, ')}{shown}")
    return "\n".join(lines)


def _siblings(loc: list[str]) -> list[str]:
    if len(loc) == 1:
        return list(Settings.model_fields)
    if loc[0] == "models":
        return list(ModelSettings.model_fields)
    return [key for section, key in known_keys() if section == loc[0]]


def _nearest(key: str, known: list[str]) -> str:
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else f"; known: {', '.join(sorted(known)[:40])}"


class Watched:
    """The configuration as it is re-read while running: models, endpoints and their defaults.

    A file that can't be used keeps the old models in force; `error` says why until it is mended.
    """

    def __init__(self, file: Path | None, *, flags: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.folder = (file.parent if file else Path.cwd()).resolve()
        self.error = ""
        self._file = file
        self._flags = flags
        self._stamp = self._look()

    def load(self) -> Settings:
        """All settings, as at start. Raises `ConfigError`."""
        return load(self._file, flags=self._flags)

    def refresh(self) -> dict[str, Deployment] | None:
        """The deployments if the file has changed and can be used, else None. Cheap when unchanged."""
        stamp = self._look()
        if stamp == self._stamp:
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
