"""How much GPU memory a model needs, from its shape: pure arithmetic, told to people in full.

Per GPU, spread over n of them by tensor parallelism:

    weights / n  +  KV bytes a token x tokens / min(n, KV heads)  +  OVERHEAD_BYTES

The weights and the heads are split evenly; ranks beyond the number of KV heads hold copies (vLLM:
``vllm/config/model.py``, ``get_num_kv_heads``). What earlier starts really took replaces the first and the last term.
"""

from __future__ import annotations

from orchestrator.gpu import ModelShape, Need, Size
from orchestrator.model import Deployment

OVERHEAD_BYTES = int(2.5 * 2**30)
"""CUDA's context and NCCL's buffers, the peak of activations, CUDA graphs: vLLM's log of a start sums them up as
"non-torch memory", "peak activation" and "CUDAGraph memory", 0.3, 1.2 and 0.5 GiB for an 8B model
(``vllm/v1/worker/gpu_worker.py``, ``determine_available_memory``)."""
GPUS_MAX = 16
REQUESTS_MIN = 1
"""vLLM refuses to start when the cache can't hold one request of full length."""


def need(deployment: Deployment, shape: ModelShape | None, *, accelerated: bool, fixed_bytes: int | None) -> Need:
    """The ways to run a model.

    `accelerated`: its engine runs on GPUs when it may choose. `fixed_bytes`: what weights and overhead took of each
    GPU in earlier starts, all GPUs together.

    1. ``gpus = 0``, or an engine that does not care: none.
    2. ``gpus = N``: N.
    3. ``gpus = "auto"``: each number that divides the heads, the smallest first; one when the shape is unknown.

    Of a model whose context is unknown the weights still have to fit; it gets GPUs of its own.
    """
    if deployment.gpus == 0 or (deployment.gpus is None and not accelerated):
        return Need()
    counts = (deployment.gpus,) if deployment.gpus else _counts(shape)
    if shape is None:
        return Need(sizes=tuple(Size(gpus=count) for count in counts))
    sizes = tuple(_size(deployment, shape, count, fixed_bytes) for count in counts)
    return Need(sizes=sizes, arithmetic=_arithmetic(shape, fixed_bytes))


def _counts(shape: ModelShape | None) -> tuple[int, ...]:
    if shape is None or not shape.attention_heads:
        return (1,)
    heads, kv_heads = shape.attention_heads, shape.kv_heads or shape.attention_heads
    return tuple(n for n in range(1, GPUS_MAX + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0))


def _size(deployment: Deployment, shape: ModelShape, gpus: int, fixed_bytes: int | None) -> Size:
    context = shape.context or 0
    share = deployment.share_gpus and shape.context is not None
    fixed = shape.weights_bytes // gpus + OVERHEAD_BYTES if fixed_bytes is None else fixed_bytes // gpus
    request = shape.kv_bytes_per_token * context // min(gpus, shape.kv_heads or gpus)
    wanted = fixed + request * max(deployment.kv_requests, REQUESTS_MIN) if share else None
    return Size(gpus=gpus, bytes_min=fixed + request * REQUESTS_MIN, bytes_wanted=wanted)


def _arithmetic(shape: ModelShape, fixed_bytes: int | None) -> str:
    cache = "KV cache for contexts of unknown length"
    if shape.context is not None:
        size = _gb(shape.kv_bytes_per_token * shape.context)
        cache = f"{size} of KV cache for one request of {shape.context:,} tokens"
    if fixed_bytes is not None:
        return f"{_gb(fixed_bytes)} as seen in earlier starts + {cache}"
    return f"{_gb(shape.weights_bytes)} of weights + {cache} + {_gb(OVERHEAD_BYTES)} for the engine on each GPU"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
