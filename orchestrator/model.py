"""The values everything else speaks in. Frozen, standard library only, no behaviour beyond themselves.

Times named ``*_at`` are seconds of one monotonic clock (`ports.Clock.monotonic`), so a step of the wall
clock moves nothing. Durations are seconds and end in ``_s``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.balance.names import Balance
from orchestrator.gpu import Gpu, Lent, Need, Wait
from orchestrator.metering.limits import NONE, Limits
from orchestrator.scaling import Scaling
from orchestrator.servers.endpoint import Endpoint, HealthRules


class Phase(StrEnum):
    """Where a replica, or the model as its users see it, is in its life."""

    COLD = "cold"
    PULLING = "pulling"
    QUEUED = "queued"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    SLEEPING = "sleeping"
    DRAINING = "draining"
    FAILED = "failed"


class Scope(StrEnum):
    """What a key may do."""

    REALTIME = "realtime"
    BATCH = "batch"
    UPLOAD = "upload"
    EVAL = "eval"
    MONITOR = "monitor"
    ADMIN = "admin"


class EngineKind(StrEnum):
    """How a deployment's engine is started and read."""

    VLLM = "vllm"
    SGLANG = "sglang"
    COMMAND = "command"
    STATIC = "static"
    """Nothing is started: somebody else runs its servers."""


class IdleAction(StrEnum):
    """What becomes of an engine that nobody uses."""

    STOP = "stop"
    SLEEP = "sleep"


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """A model and its settings: what the operator wants."""

    name: str
    engine: EngineKind
    source: str
    """A hub id, or the absolute path of a local folder; empty when the engine brings its own weights."""
    revision: str | None = None
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    health_path: str = "/health"
    gpus: int | None = 0
    """How many GPUs a replica leases; None: as many as it needs."""
    image: str = ""
    """What it runs in, where engines are containers."""
    load_format: str = "auto"
    priority: int = 0
    share_gpus: bool = True
    """Whether it takes only what it needs of a GPU, so that others fit beside it."""
    kv_requests: int = 4
    """For how many requests of full length the KV cache has room, where the GPU is shared."""
    residency_min_s: float = 60.0
    """Once ready it is not evicted for this long, but by a higher priority."""
    turn_max_s: float = 120.0
    """However busy, it makes room for one of the same priority that has waited for this long."""
    idle_action: IdleAction = IdleAction.STOP
    sleep_level: int = 1
    """vLLM's: 1 keeps the weights in the machine's memory, 2 drops them."""
    sleep_timeout_s: float = 1800.0
    preload: bool = False
    keep_warm: tuple[str, ...] = ()
    """Cron expressions; warm in every minute that one of them matches."""
    pinned: bool = False
    """Its weights are never removed from the disk."""
    idle_timeout_s: float = 300.0
    start_timeout_s: float = 900.0
    drain_timeout_s: float = 30.0
    min_replicas: int = 0
    max_replicas: int = 1
    target_concurrency: float = 32.0
    """The requests that one replica should have at a time; with more of them another is started."""
    scale_down_delay_s: float = 300.0
    """A replica more than its load asks for stays for this long."""
    balance: Balance = Balance.LEAST_LOADED
    limits: Limits = NONE
    """Of all keys together. At `max_concurrent` requests wait for each other, fairly by key."""
    stream_usage: bool = True
    """Whether its engine may be asked for the usage of streams."""
    aliases: tuple[str, ...] = ()
    """Its other names."""
    fallback: tuple[str, ...] = ()
    """Models that answer for it when it can't be had, in order; theirs are among them."""
    endpoints: tuple[Endpoint, ...] = ()
    """Static: its servers."""
    health: HealthRules = field(default_factory=HealthRules)

    @property
    def spec(self) -> str:
        """Hash of what a replica is started with. A replica with another hash is replaced, not adopted."""
        launch = (self.name, self.engine, self.source, self.revision, self.args, self.env, self.command)
        rest = (self.health_path, self.gpus, self.image, self.load_format, self.share_gpus, self.kv_requests)
        sleep = (self.idle_action, self.sleep_level)
        text = json.dumps([*launch, *rest, *sleep])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class InstanceState(StrEnum):
    """What a runtime says about an engine; readiness is not among them, it is probed by us."""

    QUEUED = "queued"
    UNKNOWN = "unknown"
    """Its host does not answer: it runs on, as far as anybody knows."""
    RUNNING = "running"
    STOPPING = "stopping"
    EXITED = "exited"


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One engine as a runtime lists it."""

    id: str
    """The replica's id: what `launch` was called with."""
    model: str
    spec: str
    state: InstanceState
    endpoint: str | None = None
    """``http://host:port`` of the engine; None while the runtime does not know it."""
    host: str = ""
    """As `Gpu.host`."""
    gpus: tuple[str, ...] = ()
    gpu_bytes: int = 0
    """Its share of each of these; 0: all of it."""
    exit_code: int | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What an engine's log says about its start so far."""

    phase: Phase = Phase.STARTING
    fraction: float | None = None
    """0 … 1 within the phase, where the log tells."""
    note: str = ""


class WeightsState(StrEnum):
    """What is on the disk of a deployment's weights."""

    ABSENT = "absent"
    PULLING = "pulling"
    PRESENT = "present"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The weights of one deployment, as the weights store sees them now."""

    state: WeightsState
    what: str = "weights"
    """What of it is meant, where an image to run in is needed too."""
    path: str | None = None
    """The local folder; set when PRESENT."""
    done_bytes: int = 0
    total_bytes: int | None = None
    bytes_per_s: float | None = None
    """Rate over the last seconds of a running pull."""
    error: str = ""
    permanent: bool = False
    """True where trying again can't help before somebody acts: gated, missing, does not fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What users want of one model, read from the activator's ledger."""

    asked_at: float | None = None
    """When a request (or `start`) last asked for it."""
    expected_at: float | None = None
    """When a refused client was told to come back: until then its model is not idle."""
    held: int = 0
    stop_at: float | None = None
    """When `stop` was last called: replicas older than this leave, and nothing starts until asked again."""
    pull_at: float | None = None
    """When `pull` was last called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """The requests of one replica."""

    in_flight: int = 0
    last_byte_at: float | None = None
    """When the last answer ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What one engine says of its own load. A replica without one is unknown, never idle."""

    running: int
    """Requests that it works on."""
    waiting: int
    """Requests that it has taken and not begun."""
    kv_use: float | None
    """The part of its KV cache in use, 0 … 1; None: it does not say."""
    at: float
    """When it said so, on the clock of `ports.Clock.monotonic`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """One engine as we follow it. `fleet.advance` makes each next one from the last and a sighting."""

    id: str
    model: str
    spec: str
    phase: Phase
    created_at: float
    phase_at: float
    """When `phase` began."""
    seen: bool = False
    """Whether the runtime has listed it yet."""
    landed_at: float | None = None
    """When its launch returned; None while that is under way, which may be long before any listing shows it."""
    endpoint: str | None = None
    gpus: tuple[str, ...] = ()
    ready_at: float | None = None
    idle_at: float | None = None
    """Since when nobody has used it; None while requests are in flight."""
    in_flight: int = 0
    stale_at: float | None = None
    """Since when its model's settings are others than it was started with."""
    host: str = ""
    unknown: bool = False
    """Its host does not answer: it is left as it is."""
    gpu_bytes: int = 0
    """Its lease of each of its GPUs; 0: all of it."""
    then: IdleAction = IdleAction.STOP
    """What follows when it has drained."""
    patient: bool = False
    """It may take its time to drain."""
    woken_at: float | None = None
    """When it was last told to wake."""
    gpu_fixed_bytes: int = 0
    """As `StartRecord.gpu_fixed_bytes`."""
    progress: Progress = field(default_factory=Progress)
    sick_probes: int = 0
    leaving: str = ""
    """Why it drains."""
    error: str = ""
    adopted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """The failures in a row of one model."""

    failures: int = 0
    failed_at: float = 0.0
    retry_at: float = 0.0
    error: str = ""
    permanent: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """The phase of a model as its users see it, and the cold start that it is part of."""

    phase: Phase = Phase.COLD
    phase_at: float = 0.0
    start_at: float | None = None
    """When the running (or just ended) start began; None: none since the model was last cold."""
    seconds: tuple[tuple[Phase, float], ...] = ()
    """Seconds in each phase of this start already left, in order."""
    wake: bool = False
    """Whether it is, or its next start would be, the waking of an engine that sleeps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """One look at the world. Whatever could not be seen is absent, which never means gone."""

    instances: tuple[Instance, ...] | None = None
    """None: the runtime did not answer; nothing may be removed or started on the strength of it."""
    healthy: Mapping[str, bool] = field(default_factory=dict)
    """Replica id to what its health probe said; absent: not probed this time."""
    progress: Mapping[str, Progress] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    """Replica id to the one-sentence cause that its log gives; filled for exited instances."""
    weights: Mapping[str, Weights] = field(default_factory=dict)
    demand: Mapping[str, Demand] = field(default_factory=dict)
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    loads: Mapping[str, Load] = field(default_factory=dict)
    """Replica id to its engine's load; absent: unknown, which is never zero."""
    gpus: tuple[Gpu, ...] | None = ()
    """None: not known yet."""
    places: tuple[str, ...] = ()
    """The hosts that answer; none on a runtime with only one."""
    needs: Mapping[str, Need] = field(default_factory=dict)
    asleep: Mapping[str, bool] = field(default_factory=dict)
    """Replica id to whether it says that it sleeps; absent: not asked, or it can't."""
    fixed_bytes: Mapping[str, int] = field(default_factory=dict)
    """Replica id to what its log says that it took of each GPU, but for the KV cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """All we know, after the last sighting. The reconcile loop owns the only current one."""

    replicas: Mapping[str, Replica] = field(default_factory=dict)
    backoff: Mapping[str, Backoff] = field(default_factory=dict)
    weights: Mapping[str, Weights] = field(default_factory=dict)
    weights_at: Mapping[str, float] = field(default_factory=dict)
    """Since when each model's weights are in the state they are in."""
    demand: Mapping[str, Demand] = field(default_factory=dict)
    served_at: Mapping[str, float] = field(default_factory=dict)
    """When each model was last seen ready: older demand has been met."""
    tracks: Mapping[str, Track] = field(default_factory=dict)
    scaling: Mapping[str, Scaling] = field(default_factory=dict)
    """Of the models that may have several replicas."""
    gpus: tuple[Gpu, ...] = ()
    lent: Mapping[str, Lent] = field(default_factory=dict)
    """The use of each GPU, by its uuid."""
    places: tuple[str, ...] = ()
    needs: Mapping[str, Need] = field(default_factory=dict)
    unfit: Mapping[str, str] = field(default_factory=dict)
    """Models that can never run on these GPUs, and why."""
    waits: Mapping[str, Wait] = field(default_factory=dict)
    serial: int = 0
    """Greater than any that a launch had; with `boot` it names the next."""
    boot: str = "boot"
    """Random for each run of the orchestrator, so that names never repeat."""
    known: bool = False
    """Whether the runtime answered in the last sighting."""

    @property
    def foreign(self) -> Mapping[str, int]:
        """Bytes of each GPU that other programs use."""
        return {uuid: lent.foreign_bytes for uuid, lent in self.lent.items()}

    def of(self, model: str) -> tuple[Replica, ...]:
        """The replicas of one model, oldest first."""
        found = (r for r in self.replicas.values() if r.model == model)
        return tuple(sorted(found, key=lambda r: (r.created_at, r.id)))


@dataclass(frozen=True, kw_only=True, slots=True)
class StartRecord:
    """One start, cold or from sleep, as history keeps it."""

    model: str
    replica: str
    spec: str
    engine: str
    started_at_unix: float
    """Wall clock, for people; never used in a calculation."""
    seconds: Mapping[Phase, float]
    """Seconds in each phase: pulling, queued, starting, loading."""
    outcome: str
    """``ready`` or ``failed``."""
    error: str = ""
    pulled_bytes: int = 0
    weights_bytes: int = 0
    gpu_fixed_bytes: int = 0
    """What the engine took of all its GPUs but for the KV cache; 0: it did not say."""
    wake: bool = False
    """An engine was woken; no cold start, and no measure of one."""
