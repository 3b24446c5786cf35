"""What an engine's page of metrics says of its load. Pure.

The names are those of vLLM (vllm/v1/metrics/loggers.py), SGLang (srt/metrics/collector.py), llama.cpp
(tools/server, ``--metrics``) and Text Generation Inference (docs, reference/metrics).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from orchestrator.model import Load

RUNNING = (
    b"vllm:num_requests_running",
    b"sglang:num_running_reqs",
    b"llamacpp:requests_processing",
    b"tgi_batch_current_size",
)
WAITING = (
    b"vllm:num_requests_waiting",
    b"sglang:num_queue_reqs",
    b"llamacpp:requests_deferred",
    b"tgi_queue_size",
)
KV_USE = (
    b"vllm:kv_cache_usage_perc",
    b"vllm:gpu_cache_usage_perc",
    b"sglang:token_usage",
    b"llamacpp:kv_cache_usage_ratio",
)
SERIES_MAX = 256
"""Of one name: an engine has one for each of its data-parallel parts."""
REQUESTS_MAX = 10**6


def load_of(page: bytes, at: float) -> Load | None:
    """Its load as of `at`; None where it does not say how many requests run and wait. The parts of a data-parallel
    engine are added up; of their caches the fullest counts."""
    running, waiting = _first(page, RUNNING), _first(page, WAITING)
    if not (running and waiting):
        return None
    kv_use = _first(page, KV_USE)
    return Load(
        running=min(int(sum(running)), REQUESTS_MAX),
        waiting=min(int(sum(waiting)), REQUESTS_MAX),
        kv_use=min(max(kv_use), 1.0) if kv_use else None,
        at=at,
    )


def _first(page: bytes, names: tuple[bytes, ...]) -> list[float]:
    """The values of the first of these names that the page has."""
    for name in names:
        if values := list(_values(page, name)):
            return values
    return []


def _values(page: bytes, name: bytes) -> Iterator[float]:
    """Of the lines ``name{labels} value [time]``. Searching for a name is much quicker than reading all lines."""
    at = -1
    for _ in range(SERIES_MAX):
        at = page.find(name, at + 1)
        if at < 0:
            return
        if at and page[at - 1] != 0x0A:
            continue
        end = page.find(b"\n", at)
        line = page[at + len(name) : end if end >= 0 else len(page)]
        if (value := _value(line)) is not None:
            yield value


def _value(rest: bytes) -> float | None:
    """The value of what follows a series' name; None where the name goes on, or it is no count."""
    if rest[:1] == b"{":
        rest = rest[rest.rfind(b"}") + 1 :]
    elif rest[:1] not in (b" ", b"\t"):
        return None
    try:
        value = float(rest.split()[0])
    except (ValueError, IndexError):
        return None
    return value if isfinite(value) and value >= 0 else None
