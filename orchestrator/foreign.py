"""What other programs use of the GPUs: what is used, less what we lease. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orchestrator.gpu import Gpu, Lent
from orchestrator.model import Phase, Replica
from orchestrator.placement import lease_bytes

SETTLE_S = 4.0
"""After an engine has gone, or fallen asleep, what it used may still be counted: the driver gives it back late, and
what it says is half a second old (`runtimes.gpu_watch`). Taken for another program's, it would cost the next engine in
line its place, or a third one its life."""
STEADY = frozenset({Phase.READY, Phase.SLEEPING})


def lent(before: Mapping[str, Lent], gpus: Sequence[Gpu], replicas: Iterable[Replica], now: float) -> dict[str, Lent]:
    """Of each GPU: what we lease, since when, and what others use.

    While an engine of ours comes or goes, and for `SETTLE_S` after that, its use tells nothing of theirs: then what was
    known stands. It also does while a GPU is not healthy: one that was lost tells no memory as free.
    """
    holders = [replica for replica in replicas if replica.gpus]
    return {gpu.uuid: _lent(before.get(gpu.uuid), gpu, [r for r in holders if gpu.uuid in r.gpus], now) for gpu in gpus}


def _lent(old: Lent | None, gpu: Gpu, holders: Sequence[Replica], now: float) -> Lent:
    leased = sum(lease_bytes(holder, gpu) for holder in holders)
    others = max(gpu.memory_bytes - gpu.free_bytes - leased, 0)
    if old is None:
        return Lent(leased_bytes=leased, foreign_bytes=others if gpu.healthy else 0)
    since = old.since if old.leased_bytes == leased else now
    steady = gpu.healthy and now - since >= SETTLE_S and all(holder.phase in STEADY for holder in holders)
    return Lent(leased_bytes=leased, foreign_bytes=others if steady else old.foreign_bytes, since=since)
