"""What the embedded embedder is made of: a user's folder, portions of texts, and turns."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from storage.embed.bert import fingerprint, read_tensors
from storage.embed.minilm import SLICE_CHARS_MAX, SLICE_TEXTS_MAX, EmbeddedMiniLm, slices
from storage.embed.session import RUN_TOKENS_MAX, runs
from storage.embed.turns import Turns
from tests.storage.tiny_bert import write_tiny_bert

# --- a user's folder ---


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", '{"model_type": "xlm-roberta"}', "model_type is 'xlm-roberta', and only 'bert'"),
        ("config.json", '{"hidden_act": "relu"}', "hidden_act is 'relu'"),
        ("config.json", '{"position_embedding_type": "relative_key"}', "position_embedding_type"),
        ("config.json", '{"model_type": "bert"}', "not a BERT's: KeyError"),
        ("config.json", "{", "not JSON"),
        ("config.json", "[]", "not a JSON object"),
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true}', "only models that take the mean"),
        ("modules.json", '[{"type": "sentence_transformers.models.Dense"}]', "dense layer"),
        ("model.safetensors", None, "holds no model.safetensors"),
        ("tokenizer.json", None, "holds no tokenizer.json"),
    ],
)
def test_a_folder_that_can_not_be_run_is_refused(tmp_path: Path, file: str, content: str | None, said: str) -> None:
    folder = write_tiny_bert(tmp_path / "model")
    (folder / file).parent.mkdir(exist_ok=True)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(ConfigError) as refused:
        EmbeddedMiniLm(tmp_path, folder=folder)
    assert said in str(refused.value)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    weights = write_tiny_bert(tmp_path / "model") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    with pytest.raises(ConfigError, match="cut short"):
        read_tensors(weights)
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match="not a safetensors file"):
        read_tensors(weights)


def test_other_weights_are_another_model(tmp_path: Path) -> None:
    first, second = (write_tiny_bert(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert fingerprint(first) != fingerprint(second)


# --- portions ---


@given(st.lists(st.integers(1, 256), max_size=100))
def test_runs_hold_each_row_once_and_few_tokens(lengths: list[int]) -> None:
    found = runs(lengths)
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    assert all(len(rows) * max(lengths[row] for row in rows) <= RUN_TOKENS_MAX for rows in found)


@given(st.lists(st.integers(0, 2 * SLICE_CHARS_MAX), max_size=100))
def test_slices_hold_each_row_once_and_are_small(lengths: list[int]) -> None:
    found = list(slices(["x" * length for length in lengths]))
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    for rows in found:
        longest = max(lengths[row] for row in rows)
        assert len(rows) == 1 or (len(rows) <= SLICE_TEXTS_MAX and len(rows) * longest <= SLICE_CHARS_MAX)


@pytest.mark.parametrize(
    ("places", "spare", "asked", "order"),
    [
        (1, 0, "bbq", "bqb"),
        (1, 0, "bqbq", "bqqb"),
        (3, 1, "bbbq", "bbqb"),
        (3, 1, "qqqqb", "qqqqb"),
    ],
)
def test_turns(places: int, spare: int, asked: str, order: str) -> None:
    async def run() -> None:
        turns, begun = Turns(places, spare=spare), ""
        gates = [asyncio.Event() for _ in asked]

        async def one(number: int) -> None:
            nonlocal begun
            async with turns.one(urgent=asked[number] == "q"):
                begun += asked[number]
                await gates[number].wait()

        tasks = [asyncio.create_task(one(number)) for number in range(len(asked))]
        dropped = asyncio.create_task(one(0))
        await asyncio.sleep(0)
        dropped.cancel()
        for gate in gates:
            for _ in range(5):
                await asyncio.sleep(0)
            gate.set()
        await asyncio.gather(*tasks)
        assert begun == order and turns.idle

    asyncio.run(run())
