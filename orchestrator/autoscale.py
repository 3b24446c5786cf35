"""How many replicas of a model its load asks for. Pure.

The algorithm is the Knative Pod Autoscaler's (knative/serving, pkg/autoscaler/scaling/autoscaler.go, `Scale`; the
defaults are those of config/core/configmaps/autoscaler.yaml): the mean concurrency over a stable window, and over a
panic window of a tenth of it when demand is twice what is ready; in panic never down; a limit to growth; a delay
before less is wanted. It differs where engines differ from web servers:

- A second without data is left out of the mean; Knative counts one as zero (pkg/autoscaler/aggregation).
- While there is no data nothing changes, from the first moment on; Knative's `ErrNoData` comes after a stable window.
- An engine whose KV cache is full takes no more than it runs, whatever its target is.
- It never wants so few that their KV caches could not hold what is in use now.
- Zero is not its business: the last replica leaves by `idle_timeout_s`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil, floor

from orchestrator.model import Demand, Deployment, Fleet, Load, Phase, Replica, Sighting, Traffic
from orchestrator.scaling import Bucket, Sample, Scaling

STABLE_S = 60
"""Knative's ``stable-window``."""
PANIC_S = 6
"""Its ``panic-window-percentage``: 10."""
PANIC_THRESHOLD = 2.0
"""Its ``panic-threshold-percentage``: 200."""
SCALE_UP_RATE_MAX = 4.0
"""At most so many times what is ready is wanted at once; Knative's ``max-scale-up-rate`` is 1000, but its pods start in
a second and hold no GPU. From nothing this is four at once."""
TARGET_UTILISATION = 0.7
"""Of what an engine takes at once, so that there is room while the next one starts; Knative's
``container-concurrency-target-percentage``."""
TARGET_DEFAULT = 32
"""Requests of one replica where nothing says how many its engine takes at once: about where the tokens per second of a
model that fills a GPU stop growing with the batch."""
KV_USE_MAX = 0.9
"""A KV cache that is fuller than this makes requests wait."""
LOAD_AGE_S_MAX = 10.0
"""What an engine said longer ago tells nothing of now."""
SEATS = ("--max-num-seqs", "--max-running-requests")
"""The arguments that say how many requests an engine takes at once: vLLM's and SGLang's."""


def default_target(args: Sequence[str], max_concurrent: int) -> float:
    """The requests that one replica should have, from the limit that is set on it or that its engine was given."""
    seats = max_concurrent or _seats(args)
    return TARGET_UTILISATION * seats if seats else TARGET_DEFAULT


def _seats(args: Sequence[str]) -> int:
    """The last word counts, as for the engines' own parsers; 0: not said."""
    said = [word for arg in args for word in arg.split("=", 1)]
    found = [value for name, value in pairwise(said) if name in SEATS and value.isdigit()]
    return int(found[-1]) if found else 0


def followed(fleet: Fleet, deployments: Mapping[str, Deployment], seen: Sighting, now: float) -> dict[str, Scaling]:
    """Each model's history with what was just seen; `fleet` holds the replicas of now. Models that may have only one
    replica have none."""
    return {
        name: _followed(fleet, deployment, seen, now)
        for name, deployment in deployments.items()
        if deployment.max_replicas > 1
    }


def _followed(fleet: Fleet, deployment: Deployment, seen: Sighting, now: float) -> Scaling:
    replicas, demand = fleet.of(deployment.name), seen.demand.get(deployment.name, Demand())
    sample = sampled(replicas, demand, seen.traffic, seen.loads, deployment.target_concurrency, now)
    ready = sum(replica.phase is Phase.READY for replica in replicas)
    old = fleet.scaling.get(deployment.name, Scaling())
    return scaled(old, sample, ready, now, delay_s=deployment.scale_down_delay_s)


def sampled(
    replicas: Iterable[Replica],
    demand: Demand,
    traffic: Mapping[str, Traffic],
    loads: Mapping[str, Load],
    target: float,
    now: float,
) -> Sample | None:
    """One look at a model's load; None when what is at one of its ready replicas is not known.

    `target`: requests that one replica should have. Replicas that leave don't count, nor does what they finish.
    """
    work, known, ready = demand.held / target, [], 0
    for replica in replicas:
        if replica.phase is not Phase.READY or replica.unknown:
            continue
        load = loads.get(replica.id)
        if load is not None and now - load.at > LOAD_AGE_S_MAX:
            load = None
        own = traffic.get(replica.id)
        if load is None and own is None:
            return None
        ready += 1
        work += _work(own.in_flight if own else 0, load, target)
        if load is not None and load.kv_use is not None:
            known.append(load.kv_use)
    # Who does not say is taken to be as full as the others.
    return Sample(at=now, work=work, memory=sum(known) / len(known) * ready / KV_USE_MAX if known else None)


def _work(in_flight: int, load: Load | None, target: float) -> float:
    """For how many replicas the requests at one are work. Its engine may have more than we sent, or not count yet what
    we have just sent: the larger figure holds."""
    if load is None:
        return in_flight / target
    requests = max(in_flight, load.running + load.waiting)
    full = load.waiting > 0 and load.kv_use is not None and load.kv_use >= KV_USE_MAX
    return requests / min(target, max(load.running, 1)) if full else requests / target


def scaled(old: Scaling, sample: Sample | None, ready: int, now: float, *, delay_s: float) -> Scaling:
    """The history with one more sample, and how many replicas it asks for. `ready`: how many serve.

    1. No sample: as it was; what is too old is forgotten.
    2. The first data, or the first after a stable window without, with more than one ready: no fewer than these until
       there is a stable window of it (autoscaler.go, `newAutoscaler`).
    3. Else the mean of the stable window, or in panic the larger of the two, and never less than in this panic so far.
    4. Less than within the last `delay_s`: not yet.
    """
    since = floor(now) - STABLE_S
    kept = tuple(bucket for bucket in old.buckets if bucket.second > since)
    if sample is None:
        return replace(old, buckets=kept)
    new = replace(old, buckets=_with(kept, sample))
    if not kept and ready > 1:
        new = replace(new, panic_at=now, panic_replicas=ready)
    base = max(ready, 1)
    most = ceil(SCALE_UP_RATE_MAX * base)
    stable, stable_memory = _means(new.buckets)
    panic, _ = _means([bucket for bucket in new.buckets if bucket.second > floor(now) - PANIC_S])
    new = _panicked(new, over=ceil(panic) / base >= PANIC_THRESHOLD, now=now)
    wish = min(max(ceil(stable), min(ceil(stable_memory), ready)), most)
    if new.panic_at is not None:
        wish = max(wish, min(ceil(panic), most), new.panic_replicas)
        new = replace(new, panic_replicas=wish)
    wishes = _delayed(new.wishes, wish, now, delay_s)
    return replace(new, wishes=wishes, desired=wishes[0][1])


def _with(buckets: tuple[Bucket, ...], sample: Sample) -> tuple[Bucket, ...]:
    second = floor(sample.at)
    if not buckets or buckets[-1].second != second:
        return (*buckets, Bucket(second=second, work=sample.work, memory=sample.memory))
    last = buckets[-1]
    count = last.samples + 1
    work = last.work + (sample.work - last.work) / count
    memory = last.memory if sample.memory is None else sample.memory
    return (*buckets[:-1], Bucket(second=second, work=work, memory=memory, samples=count))


def _means(buckets: Sequence[Bucket]) -> tuple[float, float]:
    """Work and memory; no memory where nobody says."""
    memory = [bucket.memory for bucket in buckets if bucket.memory is not None]
    work = sum(bucket.work for bucket in buckets) / len(buckets)
    # A sum of floats must not ask for a replica more: Knative rounds to six digits too.
    return floor(work * 1e6) / 1e6, floor(sum(memory) / len(memory) * 1e6) / 1e6 if memory else 0.0


def _panicked(state: Scaling, *, over: bool, now: float) -> Scaling:
    """Panic begins or goes on while demand is `over` the threshold, and ends a stable window later."""
    if over:
        return replace(state, panic_at=now)
    if state.panic_at is not None and now - state.panic_at > STABLE_S:
        return replace(state, panic_at=None, panic_replicas=0)
    return state


def _delayed(
    wishes: tuple[tuple[float, int], ...], wish: int, now: float, delay_s: float
) -> tuple[tuple[float, int], ...]:
    """The most of the last `delay_s`, in front (as pkg/autoscaler/aggregation/max); no longer than `wish` was high."""
    return (*((at, count) for at, count in wishes if count > wish and now - at < delay_s), (now, wish))
