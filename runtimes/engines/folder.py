"""Looks at a model's folder before an engine is started on it: milliseconds instead of a minute. Blocking, bounded."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import PreflightFailed

JSON_BYTES_MAX = 64 * 2**20
HEADER_BYTES_MAX = 100 * 2**20
"""The safetensors format's own limit for its header."""
HEADERS_BYTES_MAX = 64 * 2**20
"""Of all files together, where they are kept; those of DeepSeek-V3's 163 come to 12 MB."""
DIMENSIONS_MAX = 8
TENSOR_NUMBERS_MAX = 2**44
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tekken.json"),
    *("vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
)
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_LFS_POINTER = b"version https://git-lfs"
# The names under which vLLM looks for it (`derive_max_model_len_and_key` in vllm/transformers_utils, 0.32).
_CONTEXTS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a header says of one."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        return self.numbers * _BITS[self.dtype]


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """The folder holds a configuration, a tokenizer and, unless not asked for, all of its weights, whole.

    Raises `PreflightFailed`.
    """
    if not folder.is_dir():
        raise PreflightFailed(f"{folder} is not a folder")
    _check_config(folder)
    if not any((folder / name).exists() for name in _TOKENIZERS):
        raise PreflightFailed(f"{folder} holds no tokenizer")
    if weights:
        _check_weights(folder)


def longest_context(config: dict[str, Any]) -> int | None:
    """The model's own context in tokens; None where it can't be told without its code: scaled, or not said."""
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    both = (config, text)
    if any(part.get(key) and not _is_plain(part[key]) for part in both for key in ("rope_scaling", "rope_parameters")):
        return None
    stated: list[int] = [n for part in both if isinstance(n := part.get("model_max_length"), int)]
    return max(stated, default=None) or min((n for k in _CONTEXTS if isinstance(n := text.get(k), int)), default=None)


def _is_plain(rope: object) -> bool:
    return isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) == "default"


def _check_config(folder: Path) -> None:
    config = read_config(folder)
    if not is_mistral(folder) and not config.get("architectures") and not config.get("model_type"):
        raise PreflightFailed(f"{folder}/config.json names no architectures")


def is_mistral(folder: Path) -> bool:
    """Whether it is in Mistral's own format, as vLLM tells it."""
    return (folder / "params.json").exists() and not (folder / "config.json").exists()


def _check_weights(folder: Path) -> None:
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def weight_files(folder: Path) -> list[Path]:
    """What vLLM would load: what the index names, else what is there; consolidated files before all others.

    Raises `PreflightFailed`, also where there are none.
    """
    consolidated = sorted(folder.glob("consolidated*.safetensors"))
    named = _shards(folder / f"{'consolidated' if consolidated else 'model'}.safetensors.index.json")
    for path in named:
        if path.parent != folder or not path.is_file():
            raise PreflightFailed(f"{folder} lacks {path.name}, which its index names")
    files = named or consolidated or [path for pattern in _WEIGHTS for path in sorted(folder.glob(pattern))]
    if not files:
        raise PreflightFailed(f"{folder} holds no weights")
    return files


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``; empty for a folder in Mistral's own format. Raises `PreflightFailed`."""
    return {} if is_mistral(folder) else read_json(folder / "config.json")


def _shards(index: Path) -> list[Path]:
    if not index.exists():
        return []
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise PreflightFailed(f"{index} has no weight_map")
    return [index.parent / name for name in sorted({str(name) for name in names.values()})]


def _check_safetensors(path: Path) -> None:
    """Its header tells how long the file must be."""
    size = path.stat().st_size
    header, start = read_header(path)
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, OverflowError):
        raise PreflightFailed(f"{path.name} has a damaged header; delete it and pull again") from None
    expected = start + max(ends, default=0)
    if size != expected:
        fault = "cut short" if size < expected else "too long"
        raise PreflightFailed(f"{path.name} is {fault}: {size} of {expected} bytes; delete it and pull again")


def read_header(path: Path, bytes_max: int = HEADER_BYTES_MAX) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and where their data begin; the data are not read.

    https://github.com/huggingface/safetensors#format. Nothing in the header is checked. Raises `PreflightFailed`.
    """
    if not path.is_file():
        raise PreflightFailed(f"{path.name} is not a file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise PreflightFailed(f"{path.name} is only a Git LFS pointer: run `git lfs pull` in its folder")
        start = start[:8]
        file.seek(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_BYTES_MAX
        if length >= min(size, HEADER_BYTES_MAX):
            raise PreflightFailed(f"{path.name} is cut short or not a safetensors file; delete it and pull again")
        if length > bytes_max:
            raise PreflightFailed(f"{path.name} has a header of {length} bytes, more than {bytes_max}")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise PreflightFailed(f"{path.name} has a damaged header; delete it and pull again")
    return header, 8 + length


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of its safetensors files by name: one that is saved twice is held once. Empty without such files.

    Raises `PreflightFailed`.
    """
    tensors: dict[str, Tensor] = {}
    left = HEADERS_BYTES_MAX
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            continue
        header, end = read_header(path, left)
        left -= end
        tensors |= {name: _tensor(entry, path) for name, entry in header.items() if name != "__metadata__"}
    return tensors


def _tensor(entry: object, path: Path) -> Tensor:
    dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
    if isinstance(dtype, str) and dtype in _BITS and isinstance(shape, list) and _is_shape(shape):
        return Tensor(dtype, tuple(shape))
    raise PreflightFailed(f"{path.name} holds a tensor of no known type or size")


def _is_shape(sizes: list[Any]) -> bool:
    """One by one first: the product of a header's worth of great numbers would take minutes."""
    fits = len(sizes) <= DIMENSIONS_MAX and all(type(n) is int and 0 <= n <= TENSOR_NUMBERS_MAX for n in sizes)
    return fits and math.prod(sizes) <= TENSOR_NUMBERS_MAX


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object of moderate size. Raises `PreflightFailed`."""
    try:
        if path.stat().st_size > JSON_BYTES_MAX:
            raise PreflightFailed(f"{path} is too large to be a configuration")
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise PreflightFailed(f"{path.parent} holds no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PreflightFailed(f"{path} can't be read: {error}") from None
    if not isinstance(found, dict):
        raise PreflightFailed(f"{path} is not a JSON object")
    return found
