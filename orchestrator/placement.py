"""Which GPUs a model gets, and who has to leave for it. Pure.

Memory is what is leased. A replica's lease of a GPU is so many bytes; one that wants a GPU for itself leases all the
room there is. A sleeper's lease shrinks to `ASLEEP_BYTES`. What other programs use is not ours to give.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.gpu import Gpu, Need, Size
from orchestrator.model import Phase, Replica

RESERVE_BYTES = 512 * 2**20
"""Of each GPU, never leased: the driver's own, and what an engine takes beyond its word."""
ASLEEP_BYTES = 2 * 2**30
"""What a sleeping engine keeps of a GPU: its context and graphs (vLLM's sleep mode frees weights and KV cache:
https://docs.vllm.ai/en/latest/features/sleep_mode.html)."""
SHARE_MAX = 0.6
"""A model that wants more than this part of a GPU gets all of it: the rest would be too small for most others."""
ENGINE_DEFAULT_FRACTION = 0.9
"""vLLM's own; a lease of at least as much needs no word, unless the model needs more than this."""
UNKNOWN_FREE_MIN = 0.85
"""A model whose needs are unknown gets a GPU of which at least this part of what we may lease is free."""
PARTS = 1000
"""Engines are told their share in thousandths (``--gpu-memory-utilization 0.250``), so that is what is leased."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """GPUs for one replica."""

    host: str = ""
    gpus: tuple[str, ...] = ()
    gpu_bytes: int = 0
    memory_fraction: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """One GPU and the replicas that hold a part of it."""

    gpu: Gpu
    foreign_bytes: int = 0
    holders: tuple[Replica, ...] = ()

    @property
    def free_bytes(self) -> int:
        """What may still be leased."""
        leased = sum(lease_bytes(holder, self.gpu) for holder in self.holders)
        return max(self.gpu.memory_bytes - RESERVE_BYTES - self.foreign_bytes - leased, 0)

    def without(self, gone: Iterable[str], asleep: Iterable[str] = ()) -> Room:
        """As it will be when these have left, or sleep."""
        left = frozenset(gone)
        holders = tuple(h for h in self.holders if h.id not in left and h.id not in asleep)
        slept = sum(1 for h in self.holders if h.id in asleep and h.id not in left)
        return Room(gpu=self.gpu, foreign_bytes=self.foreign_bytes + slept * ASLEEP_BYTES, holders=holders)


def rooms(gpus: Sequence[Gpu], foreign: Mapping[str, int], replicas: Iterable[Replica]) -> tuple[Room, ...]:
    """Every GPU that is fit for use, with who is on it."""
    holders = [replica for replica in replicas if replica.gpus]
    return tuple(
        Room(
            gpu=gpu,
            foreign_bytes=foreign.get(gpu.uuid, 0),
            holders=tuple(replica for replica in holders if gpu.uuid in replica.gpus),
        )
        for gpu in gpus
        if gpu.healthy
    )


def lease_bytes(replica: Replica, gpu: Gpu) -> int:
    """What a replica holds of a GPU; all of it where nobody said how much."""
    if replica.phase is Phase.SLEEPING:
        return ASLEEP_BYTES
    return replica.gpu_bytes or gpu.memory_bytes


def place(need: Need, free: Sequence[Room]) -> Place | None:
    """The best fit into what is free: the smallest room that is large enough, so that large ones stay whole.

    Only the first size that these GPUs could hold at all, were they empty, is looked at: a model never takes more GPUs
    because fewer are busy.
    """
    if not need.sizes:
        return Place()
    size = feasible(need, [room.gpu for room in free])
    if size is None:
        return None
    fits = [(room, granted) for room in free if (granted := grant(size, room)) is not None]
    groups: list[list[tuple[Room, int]]] = []
    for host, memory in sorted({(room.gpu.host, room.gpu.memory_bytes) for room, _ in fits}):
        same = [fit for fit in fits if (fit[0].gpu.host, fit[0].gpu.memory_bytes) == (host, memory)]
        chosen = sorted(same, key=lambda fit: _tightness(size, [fit]))[: size.gpus]
        if len(chosen) == size.gpus:
            groups.append(chosen)
    if not groups:
        return None
    best = min(groups, key=lambda group: _tightness(size, group))
    share = min(granted for _, granted in best)
    gpu = best[0][0].gpu
    return Place(
        host=gpu.host,
        gpus=tuple(room.gpu.uuid for room, _ in best),
        gpu_bytes=share,
        memory_fraction=_fraction(share, size, gpu),
    )


def _tightness(size: Size, group: Sequence[tuple[Room, int]]) -> tuple[bool, int, str, int, str]:
    """Sort key: those that give all it makes good use of, then the smallest room; the rest is only to be the same each
    time."""
    squeezed = size.bytes_wanted is not None and any(granted < size.bytes_wanted for _, granted in group)
    gpu = group[0][0].gpu
    return squeezed, sum(room.free_bytes for room, _ in group), gpu.host, gpu.index, gpu.uuid


def grant(size: Size, room: Room) -> int | None:
    """How much of this GPU a replica of that size gets, in whole thousandths of it; None: it does not fit."""
    free, whole = room.free_bytes, room.gpu.memory_bytes
    parts_free = free * PARTS // whole
    if size.gpus > 1 and room.gpu.mig:
        return None
    if size.bytes_wanted is not None and size.gpus == 1 and size.bytes_wanted <= SHARE_MAX * whole:
        granted = min(_parts(size.bytes_wanted, whole), parts_free) * whole // PARTS
        return granted if granted >= max(size.bytes_min, 1) else None
    if any(holder.phase is not Phase.SLEEPING for holder in room.holders):
        return None
    enough = size.bytes_min if size.bytes_min else int(UNKNOWN_FREE_MIN * (whole - RESERVE_BYTES))
    return parts_free * whole // PARTS if free >= enough else None


def feasible(need: Need, gpus: Sequence[Gpu]) -> Size | None:
    """The first size that these GPUs could hold if they were empty; None: none ever will."""
    for size in need.sizes:
        for host, memory in {(gpu.host, gpu.memory_bytes) for gpu in gpus}:
            alike = [g for g in gpus if (g.host, g.memory_bytes) == (host, memory) and not (g.mig and size.gpus > 1)]
            if len(alike) >= size.gpus and size.bytes_min <= memory - RESERVE_BYTES:
                return size
    return None


def unfit(need: Need, gpus: Sequence[Gpu]) -> str:
    """Why a model can never run on these GPUs, with the arithmetic; empty: it can."""
    if not need.sizes or feasible(need, gpus) is not None:
        return ""
    told = f": {need.arithmetic}" if need.arithmetic else ""
    return f"it needs {' or '.join(_asked(size) for size in need.sizes[:4])}{told}; {_there_are(gpus)}"


def _asked(size: Size) -> str:
    if not size.bytes_min:
        return "1 GPU" if size.gpus == 1 else f"{size.gpus} GPUs of one size on one host"
    each = f"{size.bytes_min / 1e9:.1f} GB"
    return f"{each} on a GPU" if size.gpus == 1 else f"{each} on each of {size.gpus} GPUs of one size on one host"


def _there_are(gpus: Sequence[Gpu]) -> str:
    """``there are 3 GPUs: 2 of 80.0 GB, 1 of 24.0 GB``; less what is never leased."""
    if not gpus:
        return "there are no GPUs"
    kinds = Counter((gpu.host, gpu.memory_bytes, gpu.mig) for gpu in gpus)
    each = ", ".join(
        f"{count} of {(memory - RESERVE_BYTES) / 1e9:.1f} GB{' (MIG, for one-GPU models only)' if mig else ''}"
        + (f" on {host}" if host else "")
        for (host, memory, mig), count in sorted(kinds.items())
    )
    return f"there {'is 1 GPU' if len(gpus) == 1 else f'are {len(gpus)} GPUs'}: {each}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Who leaves or sleeps, and what is free then."""

    place: Place
    stop: tuple[Replica, ...] = ()
    sleep: tuple[Replica, ...] = ()


def plan(
    need: Need, all_rooms: Sequence[Room], victims: Sequence[Replica], can_sleep: Callable[[str], bool]
) -> Plan | None:
    """Evictions that make room, none of which could be spared; None when even all of them would not.

    `victims` in the order in which they should go. They are taken one by one until the model fits, then those that
    turn out not to be in the way are spared, the last first. Those that can sleep do, where that is enough.
    """
    enough = bisect_left(range(len(victims) + 1), True, key=lambda count: would_fit(need, all_rooms, victims[:count]))
    if enough > len(victims):
        return None
    taken = list(victims[:enough])
    for spared in reversed(list(taken)):
        fewer = [victim for victim in taken if victim is not spared]
        if _place_without(need, all_rooms, fewer, ()) is not None:
            taken = fewer
    asleep: list[Replica] = []
    for sleeper in [v for v in taken if can_sleep(v.model) and v.phase is Phase.READY]:
        stopped = [victim for victim in taken if victim not in (*asleep, sleeper)]
        if _place_without(need, all_rooms, stopped, [*asleep, sleeper]) is not None:
            asleep.append(sleeper)
    stop = [victim for victim in taken if victim not in asleep]
    found = _place_without(need, all_rooms, stop, asleep)
    return None if found is None else Plan(place=found, stop=tuple(stop), sleep=tuple(asleep))


def would_fit(need: Need, all_rooms: Sequence[Room], gone: Sequence[Replica]) -> bool:
    """Whether there is room once all of these have left."""
    return _place_without(need, all_rooms, gone, ()) is not None


def _place_without(
    need: Need, all_rooms: Sequence[Room], gone: Iterable[Replica], asleep: Iterable[Replica]
) -> Place | None:
    ids, sleepers = [replica.id for replica in gone], [replica.id for replica in asleep]
    going = {*ids, *sleepers}
    return place(
        need,
        [
            room.without(ids, sleepers) if any(holder.id in going for holder in room.holders) else room
            for room in all_rooms
        ],
    )


def _parts(count: int, whole: int) -> int:
    """Thousandths that hold so many bytes."""
    return -(-count * PARTS // whole)


def _fraction(share: int, size: Size, gpu: Gpu) -> float | None:
    """What the engine is told; of a GPU that is all its own, no more than the default unless it needs more."""
    default = int(ENGINE_DEFAULT_FRACTION * PARTS)
    parts, least = _parts(share, gpu.memory_bytes), _parts(size.bytes_min, gpu.memory_bytes)
    if parts < default:
        return parts / PARTS
    return min(least, parts) / PARTS if least > default else None
