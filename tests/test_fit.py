"""How much GPU memory a model needs: the arithmetic, by table."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.fit import OVERHEAD_BYTES, need
from orchestrator.gpu import ModelShape, Need, Size
from orchestrator.model import Deployment, EngineKind, StartRecord
from orchestrator.needs import fixed_bytes
from tests.values import deployment

GB = 10**9
EXTRA = OVERHEAD_BYTES


def shape(weights: float = 16, **more: Any) -> ModelShape:
    """Like Llama 8B: 16 GB, 32 heads, 8 of them for K and V, 1 GB of cache for a request of full length."""
    base = {"parameters": 8 * GB, "kv_bytes_per_token": 125_000, "attention_heads": 32, "kv_heads": 8}
    return ModelShape(weights_bytes=int(weights * GB), **{**base, "context": 8_000, **more})


def auto(**more: Any) -> Deployment:
    return deployment(engine=EngineKind.VLLM, **{"gpus": None, **more})


def sizes(of: ModelShape | None, model: Deployment | None = None, fixed: int | None = None) -> tuple[Size, ...]:
    return need(model or auto(), of, accelerated=True, fixed_bytes=fixed).sizes


@pytest.mark.parametrize(
    ("gpus", "accelerated", "expected"),
    [
        (0, True, ()),
        (0, False, ()),
        (None, False, ()),
        (None, True, (1,)),
        (1, False, (1,)),
        (3, False, (3,)),
        (4, True, (4,)),
    ],
)
def test_without_a_shape(gpus: int | None, accelerated: bool, expected: tuple[int, ...]) -> None:
    found = need(auto(gpus=gpus), None, accelerated=accelerated, fixed_bytes=None)
    assert found == Need(sizes=tuple(Size(gpus=count) for count in expected))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [
        (32, 8, (1, 2, 4, 8, 16)),
        (32, 32, (1, 2, 4, 8, 16)),
        (14, 2, (1, 2, 14)),  # Qwen2.5-0.5B: 7 would leave one K head to several ranks unevenly
        (9, 3, (1, 3, 9)),  # SmolLM2-135M
        (40, 10, (1, 2, 5, 10)),  # 4 and 8 divide the heads, but not the K heads
        (128, 1, (1, 2, 4, 8, 16)),  # MLA
        (71, 1, (1,)),
        (12, None, (1, 2, 3, 4, 6, 12)),
        (None, None, (1,)),
    ],
)
def test_auto_tries_what_divides_the_heads(heads: int | None, kv_heads: int | None, expected: tuple[int, ...]) -> None:
    assert tuple(size.gpus for size in sizes(shape(attention_heads=heads, kv_heads=kv_heads))) == expected


def test_one_gpu_holds_weights_cache_and_overhead() -> None:
    assert sizes(shape())[0] == Size(gpus=1, bytes_min=17 * GB + EXTRA, bytes_wanted=20 * GB + EXTRA)


def test_several_share_weights_and_cache_but_not_the_overhead() -> None:
    assert sizes(shape())[1] == Size(gpus=2, bytes_min=8 * GB + GB // 2 + EXTRA, bytes_wanted=10 * GB + EXTRA)


def test_ranks_beyond_the_kv_heads_hold_copies() -> None:
    found = {size.gpus: size.bytes_min for size in sizes(shape(kv_heads=2))}
    assert found[2] == 8 * GB + GB // 2 + EXTRA
    assert found[4] == 4 * GB + GB // 2 + EXTRA
    assert {s.gpus: s.bytes_min for s in sizes(shape(kv_heads=1))}[8] == 2 * GB + GB + EXTRA


@pytest.mark.parametrize(("requests", "wanted"), [(1, 17), (4, 20), (16, 32)])
def test_concurrency_counts_in_what_is_wanted_and_not_in_what_is_needed(requests: int, wanted: int) -> None:
    (first, *_) = sizes(shape(), auto(kv_requests=requests))
    assert (first.bytes_min, first.bytes_wanted) == (17 * GB + EXTRA, wanted * GB + EXTRA)


def test_one_that_does_not_share_wants_all_there_is() -> None:
    (first, *_) = sizes(shape(), auto(share_gpus=False))
    assert (first.bytes_min, first.bytes_wanted) == (17 * GB + EXTRA, None)


def test_a_configured_number_is_taken_as_it_is() -> None:
    assert [size.gpus for size in sizes(shape(), auto(gpus=2))] == [2]


def test_of_an_unknown_context_the_weights_have_to_fit_all_the_same() -> None:
    found = need(auto(), shape(140, context=None), accelerated=True, fixed_bytes=None)
    assert found.sizes[0] == Size(gpus=1, bytes_min=140 * GB + EXTRA)
    assert "140.0 GB of weights" in found.arithmetic


def test_earlier_starts_replace_the_estimate_but_for_the_cache() -> None:
    (one, two, *_) = sizes(shape(), fixed=14 * GB)
    assert (one.bytes_min, one.bytes_wanted) == (15 * GB, 18 * GB)
    assert two.bytes_min == 7 * GB + GB // 2


@pytest.mark.parametrize(
    ("fixed", "told"),
    [
        (None, "16.0 GB of weights + 1.0 GB of KV cache for one request of 8,000 tokens + 2.7 GB for the engine"),
        (14 * GB, "14.0 GB as seen in earlier starts + 1.0 GB of KV cache for one request of 8,000 tokens"),
    ],
)
def test_arithmetic(fixed: int | None, told: str) -> None:
    assert need(auto(), shape(), accelerated=True, fixed_bytes=fixed).arithmetic.startswith(told)


def past(fixed: int, **more: Any) -> StartRecord:
    base = {"model": "m", "replica": "r", "spec": auto().spec, "engine": "vllm", "started_at_unix": 0.0, "seconds": {}}
    return StartRecord(**{**base, "outcome": "ready", "gpu_fixed_bytes": fixed, **more})


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([], None),
        ([past(0)], None),
        ([past(5)], 5),
        ([past(5), past(0), past(9)], 7),
        ([past(5, spec="other"), past(9)], 9),
        ([past(count) for count in (1, 2, 3, 4, 5, 100, 100, 100)], 3),
    ],
)
def test_the_median_of_the_newest_starts_with_these_settings(starts: list[StartRecord], expected: int | None) -> None:
    assert fixed_bytes(auto(), starts) == expected


@settings(deadline=None)
@given(
    heads=st.integers(1, 128),
    kv_heads=st.integers(1, 128),
    weights=st.integers(1, 10**12),
    context=st.integers(1, 10**6),
)
def test_every_size_divides_the_heads_and_more_gpus_need_less_of_each(
    heads: int, kv_heads: int, weights: int, context: int
) -> None:
    model = shape(weights / GB, attention_heads=heads, kv_heads=kv_heads, context=context)
    found = sizes(model)
    assert found[0].gpus == 1
    assert all(heads % size.gpus == 0 for size in found)
    assert all(size.bytes_wanted is None or size.bytes_wanted >= size.bytes_min for size in found)
    each = [size.bytes_min for size in found]
    assert each == sorted(each, reverse=True)
