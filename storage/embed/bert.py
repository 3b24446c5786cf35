"""A folder with a sentence model of BERT's kind, as its publishers lay it out: what it is, and its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[np.float32]]

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
HEADER_BYTES_MAX = 10 * 2**20
_SAMPLES = 16
_SAMPLE_BYTES = 64 * 2**10
_BYTES_PER_NUMBER = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What is to be known of a BERT to run it."""

    layers: int
    heads: int
    dimension: int
    positions: int
    """The longest text, in tokens."""
    epsilon: float
    """Of its layer normalisation."""


def read_shape(folder: Path) -> Shape:
    """What the folder's files say of the model. Raises `ConfigError` when it is not one that we can run."""
    for name in (WEIGHTS, TOKENIZER, CONFIG):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} holds no {name}: a sentence model is {WEIGHTS}, {TOKENIZER} and {CONFIG}")
    config = _read_object(folder / CONFIG)
    _refuse_others(folder, config)
    try:
        return Shape(
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            dimension=int(config["hidden_size"]),
            positions=int(config["max_position_embeddings"]),
            epsilon=float(config.get("layer_norm_eps", 1e-12)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder / CONFIG} is not a BERT's: {error!r}") from None


def fingerprint(folder: Path) -> str:
    """Eight hex digits that differ between models: of the small files whole, of the weights samples all over them."""
    digest = hashlib.sha256()
    for name in (CONFIG, TOKENIZER):
        digest.update((folder / name).read_bytes())
    size = (folder / WEIGHTS).stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with (folder / WEIGHTS).open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(size * number // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:8]


def read_tensors(path: Path) -> Tensors:
    """The weights of a safetensors file, by name without a leading ``bert.``; float32, mapped where they are that.

    Format: https://huggingface.co/docs/safetensors. Raises `ConfigError` when it is damaged.
    """
    import numpy as np

    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= min(HEADER_BYTES_MAX, size):
            raise ConfigError(f"{path} is not a safetensors file")
        header = json.loads(file.read(header_bytes))
    data = np.memmap(path, mode="r", offset=8 + header_bytes)
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in _BYTES_PER_NUMBER:
            start, end = entry["data_offsets"]
            if end > len(data):
                raise ConfigError(f"{path} is cut short")
            tensors[name.removeprefix("bert.")] = _numbers(data[start:end], entry["dtype"]).reshape(entry["shape"])
    return tensors


def _numbers(data: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    import numpy as np

    if kind == "BF16":  # the upper half of a float32
        return (data.view("<u2").astype("<u4") << 16).view(np.float32)
    return data.view("<f2" if kind == "F16" else "<f4").astype(np.float32, copy=False)


def _refuse_others(folder: Path, config: Mapping[str, Any]) -> None:
    wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ConfigError(f"{folder / CONFIG}: {key} is {config[key]!r}, and only {value!r} can be run")
    pooling = folder / "1_Pooling" / CONFIG
    if pooling.is_file() and not _read_object(pooling).get("pooling_mode_mean_tokens", False):
        raise ConfigError(f"{pooling}: only models that take the mean of their tokens can be run")
    modules = folder / "modules.json"
    if modules.is_file() and ".Dense" in modules.read_text("utf-8"):
        raise ConfigError(f"{modules}: models with a dense layer after the pooling can't be run")


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return found
