"""GPUs as bars of memory: what is leased beside what is used. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ui.ports import Json
from ui.values import dom_id

WIDTH = 1000.0
GAP_BYTES_MIN = 768 * 2**20
"""Less is the driver's own, and what engines take beyond their word."""


def gpu_card(gpu: Json) -> Json:
    """One GPU: its leases, its use, and the gap between them.

    What is used and leased by nobody is another program's, or a leak: an engine that is gone and whose memory is not.
    What is leased and not used yet is an engine that loads, or one that takes less than it was given.
    """
    total = max(gpu["memory_bytes"], 1)
    used = gpu["memory_bytes"] - gpu["free_bytes"] if gpu["healthy"] else 0
    stranger = min(gpu["foreign_bytes"], used)
    leases, at = [], 0
    for holder in gpu["holders"]:
        leases.append({**holder, "x": _x(at, total), "width": _x(min(holder["bytes"], total - at), total)})
        at = min(at + holder["bytes"], total)
    return {
        "dom": dom_id("g", gpu["uuid"]),
        "uuid": gpu["uuid"],
        "index": gpu["index"],
        "host": gpu["host"],
        "name": gpu["name"],
        "mig": gpu["mig"],
        "healthy": gpu["healthy"],
        "fault": gpu["fault"],
        "total_bytes": gpu["memory_bytes"],
        "leased_bytes": at,
        "used_bytes": used,
        "stranger_bytes": stranger,
        "gap": stranger >= GAP_BYTES_MIN,
        "leases": leases,
        "used_width": _x(used - stranger, total),
        "stranger_x": _x(used - stranger, total),
        "stranger_width": _x(stranger, total),
    }


def totals(gpus: Sequence[Json]) -> Json:
    """All GPUs in four numbers."""
    cards = [gpu_card(gpu) for gpu in gpus]
    return {
        "gpus": len(cards),
        "total_bytes": sum(card["total_bytes"] for card in cards),
        "leased_bytes": sum(card["leased_bytes"] for card in cards),
        "used_bytes": sum(card["used_bytes"] for card in cards),
        "gaps": sum(card["gap"] for card in cards),
        "faults": sum(not card["healthy"] for card in cards),
    }


def _x(count: int, total: int) -> float:
    return round(WIDTH * max(count, 0) / total, 1)
