"""From what the API shows to what a page says: words, times and shares. Pure.

Times that end in ``_unix`` are moments: the page counts down to them by itself, so what does not change need not be
sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ui.ports import Json

START_PHASES = ("pulling", "queued", "starting", "loading")
WORDS = {
    "cold": "Cold",
    "pulling": "Pulling",
    "queued": "Queued",
    "starting": "Starting",
    "loading": "Loading",
    "ready": "Ready",
    "sleeping": "Asleep",
    "draining": "Draining",
    "failed": "Failed",
}
"""What a phase is called on a page."""
STEADY_S = 1.5
"""A moment that moved less is the same one, computed anew."""


def model_card(model: Json, gpus: Mapping[str, str], now_unix: float) -> Json:
    """One model at a glance. `gpus`: what each is called, by its uuid."""
    phase = str(model["phase"])
    starting = phase in START_PHASES
    verb, leaves_s = _leaves(model)
    return {
        "model_id": model["id"],
        "phase": phase,
        "engine": str(model["engine"]),
        "note": model["note"],
        "error": model["error"],
        "retry_unix": _at(now_unix, model["retry_s"]),
        "starting": starting,
        "since_unix": _at(now_unix, -(model["elapsed_s"] or 0.0)),
        "ready_unix": _at(now_unix, model["eta_s"]) if starting else None,
        "expected_s": model["expected_s"],
        "percent": None if model["progress"] is None else round(100 * model["progress"]),
        "in_flight": model["in_flight"],
        "held": model["held"],
        "leaves": verb,
        "leaves_unix": _at(now_unix, leaves_s),
        "gpus": ", ".join(gpus.get(uuid, uuid) for replica in model["replicas"] for uuid in replica["gpus"]),
        "host": ", ".join(sorted({replica["host"] for replica in model["replicas"] if replica["host"]})),
        "pinned": model["pinned"],
        "kept_warm": bool(model["min_replicas"]) and not model["pinned"],
        "can_stop": bool(model["replicas"]) or starting,
        "log": model["last_replica"],
    }


def summary(models: Sequence[Json]) -> Json:
    """All models in four numbers."""
    phases = [str(model["phase"]) for model in models]
    return {
        "models": len(models),
        "ready": phases.count("ready"),
        "starting": sum(phase in START_PHASES for phase in phases),
        "failed": phases.count("failed"),
        "in_flight": sum(model["in_flight"] for model in models),
        "held": sum(model["held"] for model in models),
    }


def gpu_names(gpus: Sequence[Json]) -> dict[str, str]:
    """By uuid: ``0``, or ``node-1:0`` where there are several hosts."""
    return {gpu["uuid"]: f"{gpu['host']}:{gpu['index']}" if gpu["host"] else str(gpu["index"]) for gpu in gpus}


def steady(old: Any, new: Any) -> Any:
    """`new`, but with the moments of `old` that are the same: so that equal things compare equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {k: _moment(old.get(k), v) if k.endswith("_unix") else steady(old.get(k), v) for k, v in new.items()}
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [steady(before, now) for before, now in zip(old, new, strict=True)]
    return new


def dom_id(kind: str, name: str) -> str:
    """An element's id that is safe whatever the name is."""
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def seconds(value: float | None) -> str:
    """A duration for people: ``0.4 s``, ``12 s``, ``4 min 05 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if value is None:
        return "–"
    if value < 0.95:
        return f"{value:.1f} s" if value >= 0.05 else "0 s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def brief(value: float) -> str:
    """A short duration: ``42 ms``, ``0.84 s``, ``12 s``."""
    if value < 0.1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.2f} s" if value < 10 else seconds(value)


def share(begin: float | None, end: float | None, now: float) -> int:
    """How much of the time between has passed, in percent; what overruns stays at 99."""
    if begin is None or end is None or end <= begin:
        return 0
    return max(0, min(round(100 * (now - begin) / (end - begin)), 99))


def size(count: float | None) -> str:
    """Bytes for people, as memory is sold: ``79.6 GiB``."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def number(count: float | None) -> str:
    """A count for people: ``1 234``, with narrow spaces; beyond a million ``1.2 M``."""
    if count is None:
        return "–"
    if count >= 10_000_000:
        return f"{count / 1e6:.1f} M"
    return f"{count:,.0f}".replace(",", "\u202f")


def day(moment: float) -> str:
    """The time of day, with the day: ``21 Nov 14:03:55`` (UTC)."""
    return datetime.fromtimestamp(moment, UTC).strftime("%d %b %H:%M:%S")


def _leaves(model: Json) -> tuple[str, float | None]:
    """What happens to an idle engine next, and in how many seconds."""
    if model["sleeps_in_s"] is not None:
        return "sleeps", model["sleeps_in_s"]
    if model["stops_in_s"] is not None:
        return "stops", model["stops_in_s"]
    return "", None


def _at(now_unix: float, seconds: float | None) -> float | None:
    return None if seconds is None else round(now_unix + seconds, 1)


def _moment(old: Any, new: Any) -> Any:
    both = isinstance(old, int | float) and isinstance(new, int | float)
    return old if both and abs(old - new) < STEADY_S else new
