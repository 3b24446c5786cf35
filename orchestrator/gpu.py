"""What is known of GPUs, and of what models need of them. Frozen values, standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU, or one MIG slice of one, as the runtime reports it now."""

    uuid: str
    """``GPU-…`` or ``MIG-…``: what CUDA_VISIBLE_DEVICES and Docker's device requests take."""
    memory_bytes: int
    free_bytes: int
    """What nobody uses now: neither we nor any other program."""
    healthy: bool = True
    fault: str = ""
    """Why it is not healthy."""
    name: str = ""
    """The product's name: ``NVIDIA H100 80GB HBM3``."""
    host: str = ""
    """The host that has it; empty on a runtime with only one."""
    index: int = 0
    """Its place among the host's GPUs, for people."""
    mig: bool = False
    """A slice: it can't work together with others on one model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What a model's folder says about the memory it needs: the whole model, before it is spread over GPUs."""

    weights_bytes: int
    """The tensors as the engine will hold them, converted where its arguments say so. Quantised ones as stored;
    ones that the engine quantises itself at load as they are before that."""
    parameters: int
    kv_bytes_per_token: int
    """K and V of all layers, in the cache's type. Sliding layers count as full ones: too much for long requests; for
    short ones vLLM may take a tenth more, as it fills up groups of layers and adds a block to each window."""
    attention_heads: int | None = None
    """Tensor parallelism must divide them."""
    kv_heads: int | None = None
    """1 where all heads share one vector (MLA). More ranks than these hold copies."""
    context: int | None = None
    """The longest context that the engine will take, in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """What a replica may use of the GPUs; an engine's arguments follow from it."""

    gpus: int = 0
    """How many it spreads over; 0: none, it runs on the CPU."""
    memory_fraction: float | None = None
    """Its share of each one's whole memory, 0 … 1; None: the engine's own default, as when nobody shares."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """One way to run a model: over so many GPUs, with so much of each."""

    gpus: int
    bytes_min: int = 0
    """Of each GPU: less and the engine refuses to start."""
    bytes_wanted: int | None = None
    """Of each GPU: what it makes good use of; None: unknown, so whole GPUs that nobody else uses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """The ways to run a model, the best first. None at all: it runs without GPUs."""

    sizes: tuple[Size, ...] = ()
    arithmetic: str = ""
    """How the bytes come about, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lent:
    """The use of one GPU."""

    leased_bytes: int = 0
    since: float = float("-inf")
    """When `leased_bytes` last changed."""
    foreign_bytes: int = 0
    """What other programs use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """The place of a model in the line for GPUs."""

    place: int
    """1: the next."""
    seconds: float
    """Until its GPUs should be free."""
