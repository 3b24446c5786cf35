"""Reads from a model's folder what its memory needs follow from, before vLLM is started on it.

The formulas are those of vLLM 0.32; its files are named where they are used. Never reads a tensor. Blocking, bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import PreflightFailed
from orchestrator.gpu import ModelShape
from runtimes.engines import flags
from runtimes.engines.folder import Tensor, is_mistral, read_json, read_tensors
from runtimes.engines.model_config import context_of, model_type, number, text_config

SAFETENSORS_FORMATS = (
    *("auto", "hf", "safetensors", "mistral", "fastsafetensors", "instanttensor"),
    *("runai_streamer", "bitsandbytes", "dummy"),
)
_FLOATS = ("F64", "F32", "F16", "BF16")
# Held in the type they are saved in: quantisation's scales, and the few that models keep exact.
_EXACT = re.compile(r"scale|A_log$|e_score_correction_bias$")
_AUXILIARY = re.compile(r"scale|zero|g_idx|absmax|quant_map|quant_state|_shape$")
_PACKED = re.compile(r"(qweight|weight_packed|_blocks|weight)$")
_PROJECTION = re.compile(r"(?:^|\.)layers\.\d{1,5}\.(?:self_attn|attention|attn)\.([qk])(?:_(proj|norm)|())\.weight$")
_TOWER = re.compile("vision|visual|audio|image")
_DRAFT_LAYER = re.compile(r"(?:model\.|language_model\.)*layers\.(\d{1,5})\.")
_DRAFT = re.compile(r"(?:model\.)?mtp\.")
# The names behind which Transformers' `attribute_map`s hide these numbers.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEAD_DIM = ("head_dim", "hidden_size_per_head", "attention_head_dim")
_STATEFUL = (
    *("mamba", "mamba2", "linear_attention", "conv", "short_conv", "recurrent", "kda", "gated_delta_net"),
    *("mlp", "moe", "-", "M", "E"),
)
_ATTENTION_FREE = ("mamba", "mamba2", "falcon_mamba", "rwkv", "rwkv5", "rwkv6", "rwkv7", "xlstm")
_ENCODER_TYPES = (
    *("albert", "bert", "camembert", "clip", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert"),
    *("gte", "modernbert", "mpnet", "new", "nomic_bert", "roberta", "siglip", "xlm-roberta", "xlm-roberta-flash"),
)
# `is_deepseek_mla` in vllm/transformers_utils/model_arch_config_convertor.py, by how the types begin.
_MLA_TYPES = (
    *("axk1", "deepseek_v", "deepseek_mtp", "dots3_note", "k3_dspark", "glm5_next", "glm_moe_dsa", "glm4_moe_lite"),
    *("kimi_k2", "kimi_linear", "longcat_flash", "pangu_ultra_moe", "bailing_hybrid", "hy_v4"),
)
_MISTRAL_NAMES = {
    "dim": "hidden_size",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
}
_MISTRAL_CONTEXT = 128_000


@dataclass(frozen=True, kw_only=True, slots=True)
class _Heads:
    """The attention of one layer."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cache:
    """How the KV cache stores a number."""

    format: str
    """Of ``--kv-cache-dtype``, ``auto`` resolved as far as the checkpoint says."""
    auto_bytes: int

    def cell(self, key: int, value: int) -> int:
        """Bytes of one head's K and V of one token; no V in MLA. Formats not known here count a byte and scales.

        `AttentionSpec.state_content_size_bytes` in vllm/v1/kv_cache_interface.py and what
        vllm/v1/attention/backends/{triton_attn,flashinfer}.py make of it.
        """
        if self.format == "int4_per_token_head":
            return key // 2 + value // 2 + 8
        if self.format.startswith("nvfp4"):
            return key // 2 + key // 16 + value // 2 + value // 16
        if self.format in ("float16", "bfloat16", "half"):
            return 2 * (key + value)
        if self.format == "auto":
            return self.auto_bytes * (key + value)
        return key + value + (0 if self.format in ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "int8") else 8)


def read_shape(folder: Path, args: Sequence[str]) -> ModelShape | None:
    """The shape of the model in `folder` under the arguments that vLLM gets, ours included.

    None where it can't be told: no (or damaged) safetensors, foreign formats, encoder-decoders, numbers that neither
    the configuration nor the tensors say. Never raises on a folder's contents. A draft model's weights
    (``--speculative-config``) and the fixed states of recurrent layers are not in it.
    """
    try:
        config = _read_config(folder, args)
        tensors = _read_tensors(folder, args)
        context = context_of(folder, config, args) if config else None
    except (PreflightFailed, OSError):
        return None
    if not config or not tensors or config.get("is_encoder_decoder"):
        return None
    text = text_config(config)
    layers = _layers(text)
    if layers is None:
        return None
    wide = 4 if flags.value_of("--dtype", args) in ("float", "float32") else 2
    heads = _heads(text, tensors)
    kv_bytes = _kv_bytes(config, text, heads, layers, _Cache(format=_kv_format(config, args), auto_bytes=wide))
    if kv_bytes is None:
        return None
    held = _without_drafts(tensors, text, layers, args)
    bits = _packed_bits(config)
    return ModelShape(
        weights_bytes=sum(_held_bytes(name, tensor, wide) for name, tensor in held.items()),
        parameters=sum(_parameters(name, tensor, bits) for name, tensor in held.items()),
        kv_bytes_per_token=kv_bytes,
        attention_heads=heads.heads if heads else None,
        kv_heads=(1 if _is_mla(text) else heads.kv_heads) if heads else None,
        context=context,
    )


def _read_config(folder: Path, args: Sequence[str]) -> dict[str, Any] | None:
    """As vLLM sees it: `adapt_config_dict` in vllm/transformers_utils/configs/mistral.py, and ``--hf-overrides``."""
    if is_mistral(folder):
        config = {_MISTRAL_NAMES.get(key, key): value for key, value in read_json(folder / "params.json").items()}
        config.setdefault("max_position_embeddings", _MISTRAL_CONTEXT)
        config.setdefault("model_type", "deepseek_v3" if config.get("kv_lora_rank") else "transformer")
    else:
        config = read_json(folder / "config.json")
    if not any(name.startswith("--hf-overrides") for name in flags.names(args)):
        return config
    try:
        overrides = json.loads(flags.value_of("--hf-overrides", args) or "")
    except (ValueError, RecursionError):
        return None
    return _merged(config, overrides) if isinstance(overrides, dict) else None


def _merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    inner = {
        key: _merged(config[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(config.get(key), dict)
    }
    return {**config, **changes, **inner}


def _read_tensors(folder: Path, args: Sequence[str]) -> dict[str, Tensor]:
    known = (flags.value_of("--load-format", args) or "auto") in SAFETENSORS_FORMATS
    return read_tensors(folder) if known else {}


def _layers(text: Mapping[str, Any]) -> int | None:
    """`get_num_hidden_layers`; LongCat's decoder layers hold two attentions each."""
    if model_type(text).startswith("longcat_flash") and (pairs := number(text, "num_layers")):
        return 2 * pairs
    return number(text, *_LAYERS)


def _heads(text: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> _Heads | None:
    """`get_total_num_attention_heads`, `get_head_size`, `get_total_num_kv_heads` (vllm/transformers_utils/
    model_arch_config_convertor.py). Configurations leave out what is their class's default: the tensors tell it."""
    q, k, norm = _projections(tensors)
    dim, heads = number(text, *_HEAD_DIM), number(text, *_HEADS)
    kv_heads = _kv_heads(text)
    if dim is None:
        dim = _share(q, heads) or _share(k, kv_heads) or (norm if not heads else None)
        hidden = number(text, *_HIDDEN)
        dim = dim or (hidden // heads if hidden and heads else None)
    heads = heads or _share(q, dim)
    kv_heads = kv_heads or _share(k, dim) or heads
    return _Heads(heads=heads, kv_heads=kv_heads, head_dim=dim) if heads and kv_heads and dim else None


def _share(whole: int | None, parts: int | None) -> int | None:
    return whole // parts if whole and parts and whole % parts == 0 else None


def _kv_heads(text: Mapping[str, Any]) -> int | None:
    """Falcon, StarCoder (multi-query) and DBRX, MPT (nested) have their own ways to say it."""
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        return 1
    nested = text.get("attn_config")
    return number(text, *_KV_HEADS) or (number(nested, "kv_n_heads") if isinstance(nested, dict) else None)


def _projections(tensors: Mapping[str, Tensor]) -> tuple[int | None, int | None, int | None]:
    """The largest outputs of Q and K, and the length of K's norm, of layers that are not packed."""
    found: dict[str, int] = {}
    for name, tensor in tensors.items():
        match = _PROJECTION.search(name)
        packed = tensor.dtype in ("U8", "I32") or not tensor.shape
        if match is None or packed or _TOWER.search(name) or len(tensor.shape) != (1 if match[2] == "norm" else 2):
            continue
        what = f"{match[1]}_{match[2] or 'proj'}"
        found[what] = max(found.get(what, 0), tensor.shape[0])
    return found.get("q_proj"), found.get("k_proj"), found.get("k_norm")


def _kv_bytes(
    config: Mapping[str, Any], text: Mapping[str, Any], heads: _Heads | None, layers: int, cache: _Cache
) -> int | None:
    """Of all layers, for one token.

    1. Encoders and attention-free models have no cache (`EncoderOnlyAttentionSpec`, `MambaSpec`).
    2. MLA: one vector a layer (`MLAAttentionSpec`; `get_kv_cache_spec` in vllm/model_executor/layers/attention/
       mla_attention.py), and DeepSeek-V3.2's indexer's own (`DeepseekV32IndexerCache` in models/deepseek_v2.py).
    3. Blocks that each say their heads (Nemotron-NAS).
    4. Else K and V for each KV head of each layer with attention (`AttentionSpec`).
    """
    if _is_encoder(config, text) or model_type(text) in _ATTENTION_FREE:
        return 0
    full, sliding = _attending(text, layers)
    if _is_mla(text):
        return (full + sliding) * _mla_cell(text, cache)
    if heads is None:
        return None
    blocks = text.get("block_configs")
    if isinstance(blocks, list):
        kv_heads = sum(_block_kv_heads(block, heads) for block in blocks[:layers])
        return kv_heads * cache.cell(heads.head_dim, heads.head_dim)
    return full * _full_layer(text, heads, cache) + sliding * _sliding_layer(text, heads, cache)


def _is_encoder(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """`attn_type` in vllm/config/model.py; Gemma's embedding model says it in its own way (models/config.py)."""
    both = (config, text)
    if any(part.get("is_causal") is False or part.get("use_bidirectional_attention") is True for part in both):
        return True
    named = config.get("architectures")
    bidirectional = any(isinstance(n, str) and "Bidirectional" in n for n in (named if isinstance(named, list) else ()))
    return bidirectional or model_type(config) in _ENCODER_TYPES


def _is_mla(text: Mapping[str, Any]) -> bool:
    return model_type(text).startswith(_MLA_TYPES) and (
        number(text, "kv_lora_rank") is not None or "compress_ratios" in text
    )


def _mla_cell(text: Mapping[str, Any], cache: _Cache) -> int:
    """What DeepSeek-V4 compresses counts whole: an upper bound."""
    index = number(text, "index_head_dim") or 0
    packed = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}.get(cache.format)
    if index and cache.format.startswith("fp8"):
        packed = 656
    rank = number(text, "kv_lora_rank")
    vector = rank + (number(text, "qk_rope_head_dim") or 0) if rank else number(text, "head_dim") or 0
    return (packed or cache.cell(vector, 0)) + (index + index // 128 * 4 if index else 0)


def _block_kv_heads(block: object, heads: _Heads) -> int:
    attention = block.get("attention") if isinstance(block, dict) else None
    if not isinstance(attention, dict) or attention.get("no_op") or attention.get("replace_with_linear"):
        return 0
    return heads.heads // (number(attention, "n_heads_in_group") or 1)


def _full_layer(text: Mapping[str, Any], heads: _Heads, cache: _Cache) -> int:
    """Gemma 4's full layers have heads of their own (transformers, models/gemma4/configuration_gemma4.py), MiMo's V
    another length than K; MLA that vLLM runs as ordinary attention (MiniCPM3) has longer heads."""
    kind, kv_heads, dim = model_type(text), heads.kv_heads, heads.head_dim
    if kind.startswith("gemma4"):
        dim = number(text, "global_head_dim") or 512
        if text.get("attention_k_eq_v", True):
            kv_heads = number(text, "num_global_key_value_heads") or kv_heads
    if number(text, "kv_lora_rank"):
        dim = (number(text, "qk_nope_head_dim") or dim) + (number(text, "qk_rope_head_dim") or 0)
    value = number(text, "v_head_dim") if kind.startswith("mimo_v2") else None
    return kv_heads * cache.cell(dim, value or dim)


def _sliding_layer(text: Mapping[str, Any], heads: _Heads, cache: _Cache) -> int:
    """They keep no more than their window (and a block: `SlidingWindowSpec`), yet count like full ones; only their
    heads may differ (MiMo)."""
    dim = number(text, "swa_head_dim") or heads.head_dim
    value = number(text, "swa_v_head_dim") or dim
    return (number(text, "swa_num_key_value_heads") or heads.kv_heads) * cache.cell(dim, value)


def _attending(text: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """How many layers cache every token, and how many slide; the rest keep a state of fixed size, or nothing.

    `get_num_layers_by_block_type` in vllm/config/model.py, and Transformers' `layers_block_type` of each model.
    1. A list of kinds, one a layer. 2. A pattern (Nemotron-H). 3. The indices of those with attention (Bamba, LFM2,
    Kimi Linear). 4. A period (Jamba), or an interval (Qwen3-Next). 5. All of them.
    """
    kinds = next((k for n in ("layers_block_type", "layer_types") if isinstance(k := text.get(n), list)), None)
    slides = text.get("hybrid_layer_pattern")
    marks = text.get("attn_type_list")
    if kinds is not None:
        kinds = kinds[:layers]
        sliding = kinds.count("sliding_attention")
        return layers - sliding - sum(kind in _STATEFUL for kind in kinds), sliding
    if isinstance(slides, list):  # MiMo: 1 slides
        sliding = slides[:layers].count(1)
        return layers - sliding, sliding
    if isinstance(marks, list):  # MiniMax: 1 is attention
        return marks[:layers].count(1), 0
    if isinstance(pattern := text.get("hybrid_override_pattern"), str):
        return pattern[:layers].count("*"), 0
    return _counted(text, layers), 0


def _counted(text: Mapping[str, Any], layers: int) -> int:
    linear = text.get("linear_attn_config")
    kimi = linear.get("full_attn_layers") if isinstance(linear, dict) else None
    for indices in (text.get("attn_layer_indices"), text.get("full_attn_idxs"), text.get("hybrid_layer_ids"), kimi):
        if isinstance(indices, list):
            return min(layers, len(indices))
    if period := number(text, "attn_layer_period"):
        return len(range(number(text, "attn_layer_offset") or 0, layers, period))
    interval = number(text, "full_attention_interval")
    return layers // (interval or (4 if model_type(text).startswith(("qwen3_next", "qwen3_5")) else 1))


def _kv_format(config: Mapping[str, Any], args: Sequence[str]) -> str:
    """`resolve_kv_cache_dtype_string` in vllm/utils/torch_utils.py (ModelOpt); a scheme of compressed-tensors means
    fp8 (vllm/model_executor/layers/attention/attention.py)."""
    given = flags.value_of("--kv-cache-dtype", args) or "auto"
    quantized = _quantization(config)
    inner = quantized.get("quantization")
    parts = (inner, quantized) if isinstance(inner, dict) else (quantized,)
    scheme = next((s for n in ("kv_cache_scheme", "kv_cache_quant_algo") for p in parts if (s := p.get(n))), None)
    if given != "auto" or scheme is None:
        return given
    if isinstance(scheme, dict):
        return {8: "fp8", 4: "nvfp4"}.get(number(scheme, "num_bits") or 0, "auto")
    return scheme.lower() if isinstance(scheme, str) and scheme.lower() in ("fp8", "nvfp4") else "auto"


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    both = (config, text_config(dict(config)))
    found = (part.get(name) for part in both for name in ("quantization_config", "compression_config"))
    return next((value for value in found if isinstance(value, dict)), {})


def _packed_bits(config: Mapping[str, Any]) -> int:
    """How many bits of a packed tensor make one parameter."""
    quantized = _quantization(config)
    groups = quantized.get("config_groups")
    inner = [g.get("weights") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    said = [number(part, "bits", "w_bit", "num_bits") for part in (quantized, *inner) if isinstance(part, dict)]
    return next((n for n in said if n and n <= 8), 4)


def _held_bytes(name: str, tensor: Tensor, wide: int) -> int:
    """Parameters are made in the engine's type, whatever the file's: `set_default_torch_dtype` around the loader in
    vllm/model_executor/model_loader/base_loader.py. Under ``auto`` that is one of 16 bits, float32 checkpoints
    included (`_resolve_auto_dtype` in vllm/config/model.py)."""
    convert = tensor.dtype in _FLOATS and not _EXACT.search(name)
    return tensor.numbers * wide if convert else (tensor.bits + 7) // 8


def _parameters(name: str, tensor: Tensor, bits: int) -> int:
    if _AUXILIARY.search(name.rpartition(".")[2]):
        return 0
    if tensor.dtype in ("I32", "U8") and _PACKED.search(name):
        return tensor.bits // (bits if tensor.dtype == "I32" else 4)
    return tensor.numbers


def _without_drafts(
    tensors: Mapping[str, Tensor], text: Mapping[str, Any], layers: int, args: Sequence[str]
) -> dict[str, Tensor]:
    """Layers that only predict several tokens at once are skipped unless asked for (`get_spec_layer_idx_from_
    weight_name` in vllm/model_executor/models/deepseek_v2.py, `skip_prefixes` in qwen3_next.py)."""
    if any(name.startswith(("--speculative-config", "-sc")) for name in flags.names(args)):
        return dict(tensors)
    drafts = number(text, "num_nextn_predict_layers") is not None
    return {name: tensor for name, tensor in tensors.items() if not _is_draft(name, layers if drafts else None)}


def _is_draft(name: str, layers: int | None) -> bool:
    match = _DRAFT_LAYER.match(name) if layers is not None else None
    return _DRAFT.match(name) is not None or (match is not None and layers is not None and int(match[1]) >= layers)
