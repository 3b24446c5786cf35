"""What is remembered of one model's load, so that `autoscale` can tell how many replicas it needs. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One look at a model's load."""

    at: float
    work: float
    """For how many replicas there is work: requests over what one replica should have, held ones included."""
    memory: float | None = None
    """How many replicas the KV caches in use would fill; None: no engine says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """The mean of the samples of one second. A second without a sample has none: unknown, which is not zero."""

    second: int
    work: float
    memory: float | None
    samples: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """One model's history, and what follows from it. Lives in memory only: a restart begins anew."""

    buckets: tuple[Bucket, ...] = ()
    """Of the stable window, oldest first."""
    panic_at: float | None = None
    """When demand was last far above what is ready; None: it is calm."""
    panic_replicas: int = 0
    """The most that was wanted since the panic began: until it ends there are not fewer."""
    wishes: tuple[tuple[float, int], ...] = ()
    """When how many replicas were wanted, within the delay of scaling down; falling, so the first is the most."""
    desired: int | None = None
    """How many replicas its load asks for; None: no data yet, so as many as there are."""
