"""A random Llama of 0.2 MB as an ordinary model folder: real for every loader, quick to make, worth nothing to ask."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HIDDEN, LAYERS, HEADS, HEAD_DIM, MLP = 64, 2, 2, 32, 128
CONTEXT_TOKENS = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Make `folder` with configuration, tokenizer and weights, and return it. `config` changes the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({**_config(vocabulary), **config}))
    write_safetensors(folder / "model.safetensors", _weights(vocabulary, seed))
    return folder


def write_safetensors(path: Path, tensors: dict[str, np.ndarray[Any, np.dtype[np.uint16]]]) -> None:
    """bfloat16 tensors, given as their bit patterns (https://github.com/huggingface/safetensors#format)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [at, at + bits.nbytes]}
        at += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(bits.tobytes() for bits in tensors.values()))


def _config(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT_TOKENS,
        "vocab_size": vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def _write_tokenizer(folder: Path) -> int:
    """One token a byte, plus the special ones; returns how many."""
    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[2],
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return len(names)


def _weights(vocabulary: int, seed: int) -> dict[str, np.ndarray[Any, np.dtype[np.uint16]]]:
    heads = HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{p}_proj.weight": (heads, HIDDEN) for p in "qkv"}
        shapes |= {f"{layer}.mlp.{p}_proj.weight": (MLP, HIDDEN) for p in ("gate", "up")}
        shapes[f"{layer}.self_attn.o_proj.weight"] = (HIDDEN, heads)
        shapes[f"{layer}.mlp.down_proj.weight"] = (HIDDEN, MLP)
        shapes |= {f"{layer}.{n}.weight": (HIDDEN,) for n in ("input_layernorm", "post_attention_layernorm")}
    shapes["model.norm.weight"] = (HIDDEN,)
    random = np.random.default_rng(seed)
    return {name: _bfloat16(np.ones(s) if len(s) == 1 else random.normal(0, 0.02, s)) for name, s in shapes.items()}


def _bfloat16(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The upper half of a float32 is a bfloat16."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
