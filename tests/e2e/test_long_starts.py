"""PROMISES C2: the stock client, default options, across starts of 5, 30, 110 and 150 s, all at once."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import openai
import pytest

from tests.stub import ask, model_table, service

STARTS_S = (5, 30, 110, 150)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_stock_client_answers_across_long_starts(tmp_path: Path) -> None:
    tables = [model_table(f"acme/start-{s}", "--start-s", str(s)) for s in STARTS_S]
    answers: dict[int, str] = {}
    seconds: dict[int, float] = {}
    with service(tmp_path, *tables) as running:

        def one(start_s: int) -> None:
            model = f"acme/start-{start_s}"
            began = time.monotonic()
            with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
                answer = client.chat.completions.create(model=model, messages=ask(model)["messages"])
            answers[start_s] = answer.choices[0].message.content or ""
            seconds[start_s] = round(time.monotonic() - began, 1)

        threads = [threading.Thread(target=one, args=(s,)) for s in STARTS_S]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    print(json.dumps(seconds))
    assert {s: "Paris" in text for s, text in answers.items()} == dict.fromkeys(STARTS_S, True)
    assert all(s <= seconds[s] < s + 8 for s in STARTS_S)
