"""Reads a model's configuration: numbers under their many names, the language model's part, the context. Blocking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtimes.engines import flags
from runtimes.engines.folder import longest_context, read_json

COUNT_MAX = 2**31
"""No number of a real configuration comes near."""
_INNER = ("text_config", "llm_config", "language_config")
_SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_ROPE_SCALED_ALREADY = (
    *("default", "mrope", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"),
)


def number(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these that is a whole number above zero; what is absurd is not said."""
    return next((n for name in names if type(n := config.get(name)) is int and 0 < n <= COUNT_MAX), None)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a multi-modal model's configuration."""
    thinker = config.get("thinker_config")
    outer = thinker if isinstance(thinker, dict) else config
    return next((inner for name in _INNER if isinstance(inner := outer.get(name), dict)), outer)


def model_type(text: Mapping[str, Any]) -> str:
    kind = text.get("model_type")
    return kind.lower() if isinstance(kind, str) else ""


def context_of(folder: Path, config: dict[str, Any], args: Sequence[str]) -> int | None:
    """What ``--max-model-len`` says, else `_get_and_verify_max_len` in vllm/config/model.py."""
    asked = flags.number(flags.value_of("--max-model-len", args) or "")
    if asked:
        return asked
    for name in _SENTENCE_CONFIGS:
        if (folder / name).is_file():
            said = number(read_json(folder / name), "max_seq_length")
            if said:
                return said
    text = text_config(config)
    ropes = _ropes(text)
    plain = {key: value for key, value in text.items() if key not in ("rope_scaling", "rope_parameters", *_INNER)}
    own = longest_context(plain)
    if any(rope.get("rope_type", rope.get("type")) == "longrope" for rope in ropes):
        own = number(text, "original_max_position_embeddings") or own
    if own is None or not 0 < own <= COUNT_MAX:
        return None
    return min(COUNT_MAX, int(own * _stretch(ropes))) if "gemma3" not in model_type(text) else own


def _ropes(text: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One, or one for each kind of layer."""
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(rope, dict):
        return []
    nested = [part for part in rope.values() if isinstance(part, dict)]
    return nested or [rope]


def _stretch(ropes: Sequence[Mapping[str, Any]]) -> float:
    factor = 1.0
    for rope in ropes:
        said = rope.get("factor")
        if rope.get("rope_type", rope.get("type")) in _ROPE_SCALED_ALREADY or not isinstance(said, int | float):
            continue
        if 0 < said <= COUNT_MAX:
            factor = float(said)
    return factor
