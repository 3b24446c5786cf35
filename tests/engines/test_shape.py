"""Shapes of published models: their configurations as they stand on the hub, their tensors as headers without data.

Heads, layers with attention and context of `CACHES` were compared with `ModelConfig` of vLLM 0.32 where it reads the
same configuration; the tokens of a GiB with what a running vLLM logs.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.gpu import ModelShape
from runtimes.engines import folder as folder_module
from runtimes.engines.shape import read_shape
from tests.tiny_model import CONTEXT_TOKENS, write_tiny_model

KIB = 1024
Tensors = dict[str, tuple[str, list[int]]]


def write_header(path: Path, tensors: Mapping[str, object]) -> None:
    """A safetensors file that ends where its data would begin."""
    text = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def write_model(folder: Path, config: dict[str, Any], tensors: Tensors, *, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    entries = {key: {"dtype": kind, "shape": shape, "data_offsets": [0, 0]} for key, (kind, shape) in tensors.items()}
    write_header(folder / name, entries)
    return folder


def shape_of(tmp_path: Path, config: dict[str, Any], tensors: Tensors | None = None, *args: str) -> ModelShape:
    found = read_shape(write_model(tmp_path / "m", config, {"x": ("BF16", [2])} if tensors is None else tensors), args)
    assert found is not None
    return found


def decoder(
    config: dict[str, Any], head_dim: int, *, norms: int = 0, bias: bool = False, kind: str = "BF16"
) -> Tensors:
    """The tensors of a Llama-like model; experts where the configuration has them."""
    hidden, heads, kv = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    made: dict[str, list[int]] = {"model.embed_tokens.weight": [config["vocab_size"], hidden]}
    if not config["tie_word_embeddings"]:
        made["lm_head.weight"] = [config["vocab_size"], hidden]
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    inner = config.get("moe_intermediate_size") or config["intermediate_size"]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for letter, count in (("q", heads), ("k", kv), ("v", kv)):
            made[f"{layer}.self_attn.{letter}_proj.weight"] = [count * head_dim, hidden]
            if bias:
                made[f"{layer}.self_attn.{letter}_proj.bias"] = [count * head_dim]
        made[f"{layer}.self_attn.o_proj.weight"] = [hidden, heads * head_dim]
        for letter in "qk" if norms else "":
            made[f"{layer}.self_attn.{letter}_norm.weight"] = [norms]
        blocks = [f"{layer}.mlp.experts.{e}" for e in range(experts)] or [f"{layer}.mlp"]
        if experts:
            made[f"{layer}.mlp.gate.weight"] = [experts, hidden]
        for block in blocks:
            made |= {f"{block}.{n}_proj.weight": [inner, hidden] for n in ("gate", "up")}
            made[f"{block}.down_proj.weight"] = [hidden, inner]
        made |= {f"{layer}.{n}_layernorm.weight": [hidden] for n in ("input", "post_attention")}
    made["model.norm.weight"] = [hidden]
    return {name: (kind, shape) for name, shape in made.items()}


def config(kind: str, hidden: int, layers: int, heads: int, kv: int, context: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["SomeForCausalLM"],
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": context,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        **more,
    }


LLAMA_3_8B = config("llama", 4096, 32, 32, 8, 8192, intermediate_size=14336, vocab_size=128256)
LLAMA_31_ROPE = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
QWEN25_7B = config("qwen2", 3584, 28, 28, 4, 32768, intermediate_size=18944, vocab_size=152064)
QWEN3_30B = config(
    *("qwen3_moe", 2048, 48, 32, 4, 40960),
    head_dim=128,
    vocab_size=151936,
    num_experts=128,
    moe_intermediate_size=768,
    intermediate_size=6144,
)
MIXTRAL = config("mixtral", 4096, 32, 32, 8, 32768, intermediate_size=14336, vocab_size=32000, num_local_experts=8)
SMOL = config("llama", 576, 30, 9, 3, 8192, intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True)
DEEPSEEK_V3 = config(
    *("deepseek_v3", 7168, 61, 128, 128, 163840),
    kv_lora_rank=512,
    qk_rope_head_dim=64,
    qk_nope_head_dim=128,
    v_head_dim=128,
    q_lora_rank=1536,
    num_nextn_predict_layers=1,
    rope_scaling={"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    quantization_config={"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
)
GPT_OSS_20B = config(
    *("gpt_oss", 2880, 24, 64, 8, 131072),
    head_dim=64,
    layer_types=["sliding_attention", "full_attention"] * 12,
    sliding_window=128,
    rope_scaling={"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
    quantization_config={"quant_method": "mxfp4"},
)
MINILM = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [
        (LLAMA_3_8B, decoder(LLAMA_3_8B, 128), 8_030_261_248),
        (QWEN25_7B, decoder(QWEN25_7B, 128, bias=True), 7_615_616_512),
        (MIXTRAL, decoder(MIXTRAL, 128), 46_702_792_704),
        (QWEN3_30B, decoder(QWEN3_30B, 128, norms=128), 30_532_122_624),
        (SMOL, decoder(SMOL, 64), 134_515_008),
    ],
    ids=["llama-3-8b", "qwen2.5-7b", "mixtral-8x7b", "qwen3-30b-a3b", "smollm2-135m"],
)
def test_weights_are_those_of_the_model_card(
    tmp_path: Path, config: dict[str, Any], tensors: Tensors, parameters: int
) -> None:
    shape = shape_of(tmp_path, config, tensors)
    assert (shape.parameters, shape.weights_bytes) == (parameters, 2 * parameters)
    assert shape_of(tmp_path, config, tensors, "--dtype", "float32").weights_bytes == 4 * parameters
    assert shape_of(tmp_path, config, tensors, "--dtype=half").weights_bytes == 2 * parameters


# Name, configuration, bytes of a token under a 16-bit type, heads, KV heads, context.
CACHES: list[tuple[str, dict[str, Any], int, int | None, int | None, int | None]] = [
    ("llama-3-8b", LLAMA_3_8B, 128 * KIB, 32, 8, 8192),
    (
        "llama-3.1-8b",
        {**LLAMA_3_8B, "max_position_embeddings": 131072, "rope_scaling": LLAMA_31_ROPE},
        128 * KIB,
        32,
        8,
        131072,
    ),
    ("llama-2-7b", config("llama", 4096, 32, 32, 32, 4096), 512 * KIB, 32, 32, 4096),
    ("smollm2-135m", SMOL, 23_040, 9, 3, 8192),
    ("qwen2.5-7b", QWEN25_7B, 56 * KIB, 28, 4, 32768),
    ("qwen3-30b-a3b", QWEN3_30B, 96 * KIB, 32, 4, 40960),
    (
        "mistral-7b-v0.1, all sliding",
        config("mistral", 4096, 32, 32, 8, 32768, sliding_window=4096),
        128 * KIB,
        32,
        8,
        32768,
    ),
    ("mixtral-8x7b", MIXTRAL, 128 * KIB, 32, 8, 32768),
    ("mistral-nemo, own head_dim", config("mistral", 5120, 40, 32, 8, 131072, head_dim=128), 160 * KIB, 32, 8, 131072),
    (
        "gemma-3-1b",
        config("gemma3_text", 1152, 26, 4, 1, 32768, head_dim=256, sliding_window=512),
        26 * KIB,
        4,
        1,
        32768,
    ),
    ("gpt-oss-20b, half sliding", GPT_OSS_20B, 48 * KIB, 64, 8, 131072),
    ("deepseek-v3, MLA", DEEPSEEK_V3, 61 * 576 * 2, 128, 1, 163840),
    (
        "deepseek-v3.2, MLA and indexer",
        {**DEEPSEEK_V3, "model_type": "deepseek_v32", "index_head_dim": 128},
        61 * (576 * 2 + 132),
        *(128, 1, 163840),
    ),
    (
        "minicpm3, MLA run as ordinary attention",
        config("minicpm3", 2560, 62, 40, 40, 32768, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32),
        62 * 2 * 40 * 96 * 2,
        *(40, 40, 32768),
    ),
    (
        "falcon-7b, one KV head",
        {"model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71}
        | {"multi_query": True, "new_decoder_architecture": False},
        *(8 * KIB, 71, 1, None),
    ),
    (
        "gpt2, other names",
        {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
        *(36 * KIB, 12, 12, 1024),
    ),
    (
        "dbrx, nested",
        {"model_type": "dbrx", "d_model": 6144, "n_layers": 40, "n_heads": 48, "max_seq_len": 32768}
        | {"attn_config": {"kv_n_heads": 8}},
        *(160 * KIB, 48, 8, 32768),
    ),
    (
        "jamba, every eighth",
        config("jamba", 4096, 32, 32, 8, 262144, attn_layer_period=8, attn_layer_offset=4),
        16 * KIB,
        32,
        8,
        262144,
    ),
    (
        "qwen3-next, every fourth",
        config("qwen3_next", 2048, 48, 16, 2, 262144, head_dim=256, full_attention_interval=4),
        *(24 * KIB, 16, 2, 262144),
    ),
    (
        "nemotron-h-8b",
        config(
            *("nemotron_h", 4096, 52, 32, 8, 8192),
            attention_head_dim=128,
            hybrid_override_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        ),
        *(16 * KIB, 32, 8, 8192),
    ),
    (
        "granite-4.0-h-tiny",
        config(
            *("granitemoehybrid", 1536, 40, 12, 4, 131072),
            layer_types=["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)],
        ),
        *(8 * KIB, 12, 4, 131072),
    ),
    ("bamba-9b", config("bamba", 4096, 32, 32, 8, 262144, attn_layer_indices=[9, 18, 27]), 12 * KIB, 32, 8, 262144),
    (
        "minimax-text-01",
        config(
            "minimax_text_01", 6144, 80, 64, 8, 10240000, head_dim=128, attn_type_list=[0, 0, 0, 0, 0, 0, 0, 1] * 10
        ),
        *(40 * KIB, 64, 8, 10240000),
    ),
    (
        "kimi-linear, MLA in every fourth",
        config(
            *("kimi_linear", 2304, 27, 32, 32, 1048576),
            kv_lora_rank=512,
            qk_rope_head_dim=64,
            linear_attn_config={"full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "kda_layers": []},
        ),
        *(7 * 576 * 2, 32, 1, 1048576),
    ),
    (
        "nemotron-nas",
        config(
            *("nemotron-nas", 8192, 4, 64, 0, 131072),
            block_configs=[
                {"attention": {"n_heads_in_group": 8, "no_op": False}},
                {"attention": {"n_heads_in_group": None, "no_op": True}},
                {"attention": {"n_heads_in_group": 16, "no_op": False}},
                {"attention": {"n_heads_in_group": None, "no_op": False, "replace_with_linear": True}},
            ],
        ),
        *(12 * 2 * 128 * 2, 64, 64, 131072),
    ),
    ("mamba-2.8b", {"model_type": "mamba", "hidden_size": 2560, "num_hidden_layers": 64}, 0, None, None, None),
    ("all-MiniLM-L6-v2", MINILM, 0, 12, 12, 512),
    ("gte-qwen2, not causal", {**QWEN25_7B, "is_causal": False}, 0, 28, 4, 32768),
    (
        "qwen2.5, rope stretched",
        {**QWEN25_7B, "rope_scaling": {"type": "linear", "factor": 4}},
        56 * KIB,
        28,
        4,
        131072,
    ),
    ("qwen2.5, yarn", {**QWEN25_7B, "rope_scaling": {"type": "yarn", "factor": 4}}, 56 * KIB, 28, 4, 32768),
    (
        "phi-3-mini-128k",
        config(
            *("phi3", 3072, 32, 32, 32, 131072),
            original_max_position_embeddings=4096,
            rope_scaling={"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
        ),
        *(384 * KIB, 32, 32, 4096),
    ),
]


@pytest.mark.parametrize(
    ("config", "kv_bytes", "heads", "kv_heads", "context"), [row[1:] for row in CACHES], ids=[row[0] for row in CACHES]
)
def test_the_cache_of_a_token(
    tmp_path: Path,
    config: dict[str, Any],
    kv_bytes: int,
    heads: int | None,
    kv_heads: int | None,
    context: int | None,
) -> None:
    shape = shape_of(tmp_path, config)
    found = (shape.kv_bytes_per_token, shape.attention_heads, shape.kv_heads, shape.context)
    assert found == (kv_bytes, heads, kv_heads, context)


def test_what_a_configuration_leaves_to_its_class_is_told_by_the_tensors(tmp_path: Path) -> None:
    """Gemma 3 4B says neither heads nor their length; 12B no length, and hidden / heads is not it."""
    inner = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34}
    rope = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    layer = "language_model.model.layers.0.self_attn"
    tower = "vision_tower.vision_model.encoder.layers.0.self_attn"
    tensors: Tensors = {
        f"{layer}.q_proj.weight": ("BF16", [2048, 2560]),
        f"{layer}.k_proj.weight": ("BF16", [1024, 2560]),
        f"{layer}.k_norm.weight": ("BF16", [256]),
        f"{tower}.k_proj.weight": ("BF16", [1152, 1152]),
    }
    shape = shape_of(tmp_path, {"model_type": "gemma3", "text_config": {**inner, **rope}}, tensors)
    assert (shape.kv_bytes_per_token, shape.attention_heads, shape.kv_heads) == (34 * 2 * 4 * 256 * 2, 8, 4)
    assert shape.context is None, "its class says it, the folder does not"

    said = {"hidden_size": 3840, "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 8}
    tensors |= {f"{layer}.q_proj.weight": ("BF16", [4096, 3840]), f"{layer}.k_proj.weight": ("BF16", [2048, 3840])}
    shape = shape_of(tmp_path, {"model_type": "gemma3", "text_config": {**inner, **said}}, tensors)
    assert shape.kv_bytes_per_token == 48 * 2 * 8 * 256 * 2


def test_layers_whose_heads_differ(tmp_path: Path) -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    gemma = config("gemma4_text", 2816, 6, 16, 8, 131072, head_dim=256, layer_types=kinds)
    own = {"global_head_dim": 512, "num_global_key_value_heads": 2}
    assert shape_of(tmp_path, {**gemma, **own}).kv_bytes_per_token == 5 * 2 * 8 * 256 * 2 + 2 * 2 * 512 * 2
    mimo = config("mimo_v2_flash", 4096, 6, 64, 4, 262144, head_dim=192, v_head_dim=128)
    slides = {"hybrid_layer_pattern": [0, 1, 1, 1, 1, 0], "swa_num_key_value_heads": 8, "swa_head_dim": 192}
    shape = shape_of(tmp_path, {**mimo, **slides, "swa_v_head_dim": 128})
    assert shape.kv_bytes_per_token == (2 * 4 + 4 * 8) * (192 + 128) * 2


@pytest.mark.parametrize(
    ("args", "layer_bytes", "mla_bytes"),
    [
        (("--dtype", "float32"), 8 * 256 * 4, 576 * 4),
        (("--kv-cache-dtype", "auto"), 8 * 256 * 2, 576 * 2),
        (("--dtype", "float32", "--kv-cache-dtype", "bfloat16"), 8 * 256 * 2, 576 * 2),
        (("--kv-cache-dtype", "fp8"), 8 * 256, 576),
        (("--kv_cache_dtype=fp8_e5m2",), 8 * 256, 576),
        (("--kv-cache-dtype", "int8_per_token_head"), 8 * 264, 584),
        (("--kv-cache-dtype", "int4_per_token_head"), 8 * 136, 296),
        (("--kv-cache-dtype", "nvfp4"), 8 * 144, 288 + 36),
        (("--kv-cache-dtype", "fp8_ds_mla"), 8 * 264, 656),
        (("--kv-cache-dtype", "turboquant_k8v4"), 8 * 264, 584),
    ],
)
def test_the_type_of_the_cache(tmp_path: Path, args: tuple[str, ...], layer_bytes: int, mla_bytes: int) -> None:
    assert shape_of(tmp_path, LLAMA_3_8B, None, *args).kv_bytes_per_token == 32 * layer_bytes
    assert shape_of(tmp_path, DEEPSEEK_V3, None, *args).kv_bytes_per_token == 61 * mla_bytes


@pytest.mark.parametrize(
    ("quantization", "kv_bytes"),
    [
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, 64 * KIB),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": None}, 128 * KIB),
        ({"quant_method": "modelopt", "quantization": {"kv_cache_quant_algo": "FP8"}}, 64 * KIB),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "INT3"}, 128 * KIB),
        ({"quant_method": "fp8"}, 128 * KIB),
    ],
)
def test_a_checkpoint_may_name_the_type_of_the_cache(
    tmp_path: Path, quantization: dict[str, Any], kv_bytes: int
) -> None:
    quantized = {**LLAMA_3_8B, "quantization_config": quantization}
    assert shape_of(tmp_path, quantized).kv_bytes_per_token == kv_bytes
    given = shape_of(tmp_path, quantized, None, "--kv-cache-dtype", "bfloat16")
    assert given.kv_bytes_per_token == 128 * KIB


LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("quantization", "tensors", "held", "parameters"),
    [
        (  # GPTQ of 4 bits: eight numbers a word, along the inputs
            {"quant_method": "gptq", "bits": 4, "group_size": 128},
            {
                f"{LAYER}.qweight": ("I32", [512, 4096]),
                f"{LAYER}.qzeros": ("I32", [32, 512]),
                f"{LAYER}.scales": ("F16", [32, 4096]),
                f"{LAYER}.g_idx": ("I32", [4096]),
            },
            512 * 4096 * 4 + 32 * 512 * 4 + 32 * 4096 * 2 + 4096 * 4,
            4096 * 4096,
        ),
        (  # GPTQ of 8 bits
            {"quant_method": "gptq", "bits": 8},
            {f"{LAYER}.qweight": ("I32", [1024, 4096])},
            *(4096 * 4096, 4096 * 4096),
        ),
        (  # AWQ: along the outputs
            {"quant_method": "awq", "bits": 4},
            {f"{LAYER}.qweight": ("I32", [4096, 512]), "model.norm.weight": ("F16", [4096])},
            *(4096 * 512 * 4 + 4096 * 2, 4096 * 4096 + 4096),
        ),
        (  # DeepSeek's FP8: the scales of its blocks stay float32
            {"quant_method": "fp8"},
            {f"{LAYER}.weight": ("F8_E4M3", [1536, 7168]), f"{LAYER}.weight_scale_inv": ("F32", [12, 56])},
            *(1536 * 7168 + 12 * 56 * 4, 1536 * 7168),
        ),
        (  # compressed-tensors of 4 bits
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4}}}},
            {
                f"{LAYER}.weight_packed": ("I32", [4096, 512]),
                f"{LAYER}.weight_scale": ("BF16", [4096, 32]),
                f"{LAYER}.weight_shape": ("I64", [2]),
            },
            *(4096 * 512 * 4 + 4096 * 32 * 2 + 16, 4096 * 4096),
        ),
        (  # MXFP4 of gpt-oss
            {"quant_method": "mxfp4"},
            {
                "model.layers.0.mlp.experts.down_proj_blocks": ("U8", [32, 2880, 90, 16]),
                "model.layers.0.mlp.experts.down_proj_scales": ("U8", [32, 2880, 90]),
            },
            *(32 * 2880 * 90 * 17, 32 * 2880 * 2880),
        ),
        (  # bitsandbytes of 4 bits
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {f"{LAYER}.weight": ("U8", [8388608, 1]), f"{LAYER}.weight.absmax": ("U8", [262144])},
            *(8388608 + 262144, 4096 * 4096),
        ),
        (  # INT8 with scales
            {"quant_method": "compressed-tensors"},
            {f"{LAYER}.weight": ("I8", [4096, 4096]), f"{LAYER}.weight_scale": ("F32", [4096, 1])},
            *(4096 * 4096 + 4096 * 4, 4096 * 4096),
        ),
    ],
    ids=["gptq-4", "gptq-8", "awq", "fp8", "packed", "mxfp4", "bitsandbytes", "int8"],
)
def test_quantised_tensors_count_as_stored(
    tmp_path: Path, quantization: dict[str, Any], tensors: Tensors, held: int, parameters: int
) -> None:
    shape = shape_of(tmp_path, {**LLAMA_3_8B, "quantization_config": quantization}, tensors)
    assert (shape.weights_bytes, shape.parameters) == (held, parameters)


def test_a_float32_checkpoint_is_halved_unless_told_otherwise(tmp_path: Path) -> None:
    tensors: Tensors = {"embeddings.word_embeddings.weight": ("F32", [30522, 384])}
    stated = {**MINILM, "torch_dtype": "float32"}
    assert shape_of(tmp_path, stated, tensors).weights_bytes == 30522 * 384 * 2
    assert shape_of(tmp_path, stated, tensors, "--dtype", "auto").weights_bytes == 30522 * 384 * 2
    assert shape_of(tmp_path, stated, tensors, "--dtype", "float").weights_bytes == 30522 * 384 * 4


def test_layers_that_only_draft_are_held_when_asked_for(tmp_path: Path) -> None:
    tensors: Tensors = {
        "model.layers.60.mlp.gate.weight": ("BF16", [100]),
        "model.layers.61.mlp.gate.weight": ("BF16", [1000]),
        "mtp.fc.weight": ("BF16", [10000]),
    }
    assert shape_of(tmp_path, DEEPSEEK_V3, tensors).parameters == 100
    speculative = ("--speculative-config", '{"method": "mtp"}')
    assert shape_of(tmp_path, DEEPSEEK_V3, tensors, *speculative).parameters == 11100


@pytest.mark.parametrize(
    ("args", "context"),
    [
        (("--max-model-len", "2k"), 2000),
        (("--max_model_len=1K",), 1024),
        (("--max-model-len", "auto"), 8192),
        (("--max-model-len", "-1"), 8192),
        (("--hf-overrides", '{"max_position_embeddings": 100}'), 100),
        (("--hf-overrides", '{"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}'), 16384),
    ],
)
def test_the_context_asked_for(tmp_path: Path, args: tuple[str, ...], context: int) -> None:
    assert shape_of(tmp_path, LLAMA_3_8B, None, *args).context == context


def test_a_sentence_model_says_its_context_elsewhere(tmp_path: Path) -> None:
    folder = write_model(tmp_path, MINILM, {"x": ("F32", [2])})
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": false}')
    shape = read_shape(folder, ())
    assert shape is not None and shape.context == 256


def test_shards_by_an_index_and_files_that_it_does_not_name(tmp_path: Path) -> None:
    folder = write_model(tmp_path, LLAMA_3_8B, {"a": ("BF16", [10])}, name="model-00001-of-00002.safetensors")
    write_model(folder, LLAMA_3_8B, {"b": ("BF16", [20])}, name="model-00002-of-00002.safetensors")
    write_model(folder, LLAMA_3_8B, {"a": ("BF16", [10]), "c": ("BF16", [5])}, name="other.safetensors")
    assert _parameters(folder) == 35, "without an index all is loaded, a tensor once"
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert _parameters(folder) == 30
    write_model(folder, LLAMA_3_8B, {"d": ("BF16", [7])}, name="consolidated.safetensors")
    assert _parameters(folder) == 7, "consolidated files go before all others"


def _parameters(folder: Path) -> int:
    shape = read_shape(folder, ())
    assert shape is not None
    return shape.parameters


def test_a_folder_in_mistrals_own_format(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path, {}, {"layers.0.attention.wk.weight": ("BF16", [1024, 4096])}, name="consolidated.safetensors"
    )
    (folder / "config.json").unlink()
    params = {"dim": 4096, "n_layers": 32, "head_dim": 128, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 32768}
    (folder / "params.json").write_text(json.dumps(params))
    shape = read_shape(folder, ())
    assert shape is not None
    assert (shape.kv_bytes_per_token, shape.kv_heads, shape.context) == (128 * KIB, 8, 128_000)


@pytest.mark.parametrize(
    ("args", "wide"), [((), 2), (("--dtype", "float32"), 4)], ids=["as saved", "as the CPU build runs it"]
)
def test_the_tiny_model(tmp_path: Path, args: tuple[str, ...], wide: int) -> None:
    """vLLM 0.32 logs 2,097,152 tokens for 1 GiB in bfloat16."""
    shape = read_shape(write_tiny_model(tmp_path), args)
    assert shape == ModelShape(
        weights_bytes=98_816 * wide,
        parameters=98_816,
        kv_bytes_per_token=256 * wide,
        attention_heads=2,
        kv_heads=2,
        context=CONTEXT_TOKENS,
    )
    assert wide == 4 or 2**30 // shape.kv_bytes_per_token == 2_097_152


# What vLLM 0.32 on a CPU logged as `KV cache size` under VLLM_CPU_KVCACHE_SPACE=1: whole blocks of 128 tokens.
@pytest.mark.parametrize(("args", "tokens"), [((), 46_592), (("--dtype", "float32"), 23_296)])
def test_a_gib_of_cache_holds_what_vllm_says(tmp_path: Path, args: tuple[str, ...], tokens: int) -> None:
    kv_bytes = shape_of(tmp_path, SMOL, None, *args).kv_bytes_per_token
    assert 2**30 // (128 * kv_bytes) * 128 == tokens


def test_what_cannot_be_told(tmp_path: Path) -> None:
    assert read_shape(tmp_path / "nothing", ()) is None
    folder = write_model(tmp_path / "m", LLAMA_3_8B, {"x": ("BF16", [2])})
    assert read_shape(folder, ("--load-format", "gguf")) is None
    assert read_shape(folder, ("--hf-overrides", "{")) is None
    assert read_shape(folder, ("--hf-overrides", "[" * 100_000)) is None
    assert read_shape(folder, ("--hf-overrides.num_hidden_layers", "2")) is None
    write_model(folder, {**LLAMA_3_8B, "is_encoder_decoder": True}, {"x": ("BF16", [2])})
    assert read_shape(folder, ()) is None
    write_model(folder, LLAMA_3_8B, {})
    assert read_shape(folder, ()) is None
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert read_shape(folder, ()) is None
    (folder / "pytorch_model.bin").unlink()
    assert read_shape(folder, ()) is None


HOSTILE_NUMBERS = [0, -1, True, 2**31 + 1, 10**4000, 1e308, "32", None, [32], {"a": 1}]


@pytest.mark.parametrize("value", HOSTILE_NUMBERS, ids=lambda v: str(v)[:10])
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size"])
def test_absurd_numbers_in_a_configuration_are_not_said(tmp_path: Path, key: str, value: object) -> None:
    shape = read_shape(write_model(tmp_path, {**LLAMA_3_8B, key: value}, {"x": ("BF16", [2])}), ())
    assert shape is None or shape.kv_bytes_per_token in (128 * KIB, 512 * KIB), "as if it were not there"


@pytest.mark.parametrize("value", [*HOSTILE_NUMBERS, "x" * 10_000, [[]] * 10_000, [{"attention": 7}], {"a": {"b": -1}}])
@pytest.mark.parametrize(
    "key",
    [
        *("head_dim", "layer_types", "layers_block_type", "hybrid_override_pattern", "attn_layer_period", "model_type"),
        *("attn_layer_indices", "linear_attn_config", "block_configs", "attn_config", "rope_scaling", "text_config"),
        *("quantization_config", "kv_lora_rank", "max_position_embeddings", "architectures", "thinker_config"),
        *("full_attention_interval", "num_nextn_predict_layers", "attn_type_list", "hybrid_layer_pattern"),
    ],
)
def test_no_configuration_is_a_crash_or_a_long_wait(tmp_path: Path, key: str, value: object) -> None:
    folder = write_model(tmp_path, {**LLAMA_3_8B, key: value}, {"x": ("BF16", [2])})
    began = time.monotonic()
    for nested in ({}, {"rope_scaling": {"factor": value, "rope_type": value}, "config_groups": value}):
        (folder / "config.json").write_text(json.dumps({**LLAMA_3_8B, **nested, key: value}))
        shape = read_shape(folder, ())
        assert shape is None or shape.kv_bytes_per_token >= 0
        assert shape is None or shape.context is None or 0 < shape.context <= 2**31
    assert time.monotonic() - began < 5


HOSTILE_SHAPES: list[object] = [
    *([-1], [2.0], ["2"], [True], [None], [[2]], "22", 2, None, {}),
    *([2**62], [2**30] * 3, [10**4000], [1] * 9, [2**40] * 100_000),
]
HOSTILE_TYPES: list[object] = ["Q4", None, 16, ["BF16"], {}]
HOSTILE_TENSORS: list[object] = [
    *({"dtype": "BF16", "shape": shape} for shape in HOSTILE_SHAPES),
    *({"dtype": kind, "shape": [2]} for kind in HOSTILE_TYPES),
    *(7, None, [], "x", {}),
]


@pytest.mark.parametrize("entry", HOSTILE_TENSORS, ids=lambda e: str(e)[:40])
def test_hostile_tensors_are_not_counted(tmp_path: Path, entry: object) -> None:
    folder = write_model(tmp_path, LLAMA_3_8B, {})
    write_header(folder / "model.safetensors", {"x": entry})
    assert read_shape(folder, ()) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 16,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"[1]",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 600_000) + b'{"a":' * 120_000,
        struct.pack("<Q", 20_005) + b'{"a":' + b"9" * 20_000,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
    ids=["empty", "zeros", "ones", "huge", "list", "not text", "deep", "deep objects", "long number", "pointer"],
)
def test_a_damaged_header(tmp_path: Path, content: bytes) -> None:
    folder = write_model(tmp_path, LLAMA_3_8B, {})
    (folder / "model.safetensors").write_bytes(content)
    assert read_shape(folder, ()) is None


def test_headers_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path, LLAMA_3_8B, {"a": ("BF16", [2])})
    write_model(folder, LLAMA_3_8B, {"b": ("BF16", [2])}, name="more.safetensors")
    size = (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(folder_module, "HEADERS_BYTES_MAX", 2 * size)
    assert read_shape(folder, ()) is not None
    monkeypatch.setattr(folder_module, "HEADERS_BYTES_MAX", 2 * size - 10)
    assert read_shape(folder, ()) is None


def test_an_index_leads_to_files_of_its_folder_only(tmp_path: Path) -> None:
    outside = write_model(tmp_path / "outside", LLAMA_3_8B, {"a": ("BF16", [2])})
    folder = write_model(tmp_path / "m", LLAMA_3_8B, {"a": ("BF16", [2])})
    for name in ("../outside/model.safetensors", str(outside / "model.safetensors"), "/dev/zero", ".", ""):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        assert read_shape(folder, ()) is None
