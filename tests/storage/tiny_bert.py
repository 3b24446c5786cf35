"""A random sentence model of BERT's kind in a folder, and what it must answer, computed with numpy alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.tiny_model import write_safetensors

Floats = NDArray[np.float32]

HIDDEN, LAYERS, HEADS, WIDE, POSITIONS = 32, 2, 4, 64, 64
EPSILON = 1e-12
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(60)))
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": WIDE,
    "max_position_embeddings": POSITIONS,
    "layer_norm_eps": EPSILON,
}


def write_tiny_bert(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Make `folder`, with bfloat16 weights, and return it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    bits = {f"bert.{name}": (each.view(np.uint32) >> 16).astype(np.uint16) for name, each in tensors(seed).items()}
    write_safetensors(folder / "model.safetensors", bits)
    return folder


def text(random: np.random.Generator, words: int) -> str:
    """So many words that it knows."""
    return " ".join(f"w{number}" for number in random.integers(0, 60, words))


def expected(texts: list[str], *, seed: int = 0) -> Floats:
    """The vectors of the texts, each on its own, by the book: https://arxiv.org/abs/1810.04805."""
    return np.stack([_vector(tensors(seed), one) for one in texts])


def tensors(seed: int) -> dict[str, Floats]:
    """The weights, each a number that bfloat16 can hold."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        **_norm("embeddings"),
    }
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _dense(f"{name}.attention.{part}", HIDDEN, HIDDEN)
        shapes |= _norm(f"{name}.attention.output") | _norm(f"{name}.output")
        shapes |= _dense(f"{name}.intermediate.dense", HIDDEN, WIDE) | _dense(f"{name}.output.dense", WIDE, HIDDEN)
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        values = random.normal(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2, shape).astype(np.float32)
        found[name] = (values.view(np.uint32) >> 16 << 16).view(np.float32)
    return found


def _dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.LayerNorm.weight": (HIDDEN,), f"{name}.LayerNorm.bias": (HIDDEN,)}


def _vector(weights: dict[str, Floats], one: str) -> Floats:
    words = one.split()[: POSITIONS - 2]
    ids = [2, *(WORDS.index(word) for word in words), 3]

    def dense(x: Floats, name: str) -> Floats:
        product: Floats = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return product

    def norm(x: Floats, name: str) -> Floats:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled: Floats = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + EPSILON)
        return scaled * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]

    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + weights["embeddings.position_embeddings.weight"][: len(ids)], "embeddings")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        query, key, value = (_heads(dense(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = np.exp(query @ key.transpose(0, 2, 1) / math.sqrt(HIDDEN // HEADS))
        seen = (scores / scores.sum(axis=2, keepdims=True)) @ value
        merged = seen.transpose(1, 0, 2).reshape(len(ids), HIDDEN)
        x = norm(x + dense(merged, f"{name}.attention.output.dense"), f"{name}.attention.output")
        wide = dense(x, f"{name}.intermediate.dense")
        gelu = wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2
        x = norm(x + dense(gelu.astype(np.float32), f"{name}.output.dense"), f"{name}.output")
    mean = x.mean(axis=0)
    vector: Floats = mean / np.linalg.norm(mean)
    return vector


def _heads(x: Floats) -> Floats:
    return x.reshape(len(x), HEADS, HIDDEN // HEADS).transpose(1, 0, 2)
