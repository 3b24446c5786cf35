"""The main job with the real thing: vLLM on the CPU and SmolLM2-135M-Instruct, once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import openai
import pytest

from orchestrator.config import cache_dir
from orchestrator.demo.engine import prepare_engine
from orchestrator.demo.weights import MODEL, prepare_weights
from tests.stub import ask, service, until


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_cold_503_then_the_stock_client_hears_paris_then_nothing_is_left(tmp_path: Path) -> None:
    cache = cache_dir(os.environ)
    engine = prepare_engine(cache, lambda step: None)
    source = prepare_weights(cache, engine.python, lambda step: None)
    table = f'[models."{MODEL}"]\nsource = "{source}"\nargs = ["--max-model-len", "2048"]\nidle_timeout_s = 3\n'
    with service(tmp_path, table) as running:
        with running.client() as client:
            began = time.monotonic()
            cold = client.post("/v1/chat/completions", json=ask(MODEL))
            assert cold.status_code == 503
            assert cold.json()["error"]["code"] == "model_cold"
        stock = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
        answer = stock.chat.completions.create(model=MODEL, messages=ask(MODEL)["messages"], temperature=0)
        assert "Paris" in (answer.choices[0].message.content or "")
        print(f"answered {time.monotonic() - began:.1f} s after the first request")
        with stock.chat.completions.create(model=MODEL, messages=ask(MODEL)["messages"], stream=True) as stream:
            assert len(list(stream)) > 3
        with running.client() as client:
            wrong = client.post("/v1/chat/completions", json=ask(MODEL, max_tokens=-1))
            assert wrong.status_code == 400
            assert wrong.json()["error"].keys() == {"message", "type", "param", "code"}
            assert wrong.json()["error"]["code"] is None
            start = client.get("/api/starts").json()["data"][0]
            assert start["outcome"] == "ready"
            assert start["seconds"].keys() == {"starting", "loading"}
        stock.close()
        until(lambda: running.phase(MODEL) == "cold" and not running.engines(), 120)
