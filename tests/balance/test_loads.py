"""What engines' pages of metrics say of their load."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.balance.loads import load_of

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } b"} 3.0
vllm:num_requests_running{engine="1",model_name="a } b"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a } b"} 7.0
vllm:num_requests_waiting{engine="1",model_name="a } b"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 5.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
"""
SGLANG = (
    b'sglang:num_running_reqs{tp_rank="0"} 8\nsglang:num_queue_reqs{tp_rank="0"} 4\nsglang:token_usage{x="1"} 0.52\n'
)
LLAMA = b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 46\n"
TGI = b"tgi_batch_current_size 4\ntgi_queue_size 7 1700000000\n"


@pytest.mark.parametrize(
    "page, running, waiting, kv_use",
    [(VLLM, 5, 7, 0.75), (SGLANG, 8, 4, 0.52), (LLAMA, 1, 46, None), (TGI, 4, 7, None)],
)
def test_each_engine_is_understood(page: bytes, running: int, waiting: int, kv_use: float | None) -> None:
    load = load_of(page, 5.0)
    assert load is not None
    assert (load.running, load.waiting, load.kv_use, load.at) == (running, waiting, kv_use, 5.0)
    assert load_of(page.rstrip(b"\n"), 5.0) == load


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>",
        b"vllm:num_requests_running 3\n",
        b"vllm:num_requests_running NaN\nvllm:num_requests_waiting 1\n",
        b"vllm:num_requests_running +Inf\nvllm:num_requests_waiting 1\n",
        b"vllm:num_requests_running -1\nvllm:num_requests_waiting 1\n",
        b"vllm:num_requests_running\nvllm:num_requests_waiting\n",
        b"x vllm:num_requests_running 1\nx vllm:num_requests_waiting 1\n",
        b"vllm:num_requests_running_total 1\nvllm:num_requests_waiting_total 1\n",
    ],
)
def test_what_is_not_said_is_unknown(page: bytes) -> None:
    assert load_of(page, 0.0) is None


@given(
    st.lists(st.sampled_from([*VLLM.splitlines(), *TGI.splitlines(), b"", b"\xff{", b"tgi_queue_size {"]), max_size=9)
)
def test_no_page_is_too_odd(lines: list[bytes]) -> None:
    load = load_of(b"\n".join(lines), 0.0)
    assert load is None or (load.running >= 0 and load.waiting >= 0)
