"""Looks at a model's folder before an engine is started on it: milliseconds instead of a minute. Blocking, bounded."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from orchestrator.errors import PreflightFailed

JSON_BYTES_MAX = 64 * 2**20
HEADER_BYTES_MAX = 100 * 2**20
"""The safetensors format's own limit for its header."""
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")


def check_folder(folder: Path) -> None:
    """The folder holds a configuration, a tokenizer and all of its weights, whole. Raises `PreflightFailed`."""
    if not folder.is_dir():
        raise PreflightFailed(f"{folder} is not a folder")
    config = read_config(folder)
    if not config.get("architectures"):
        raise PreflightFailed(f"{folder}/config.json names no architectures")
    if not any((folder / name).exists() for name in _TOKENIZERS):
        raise PreflightFailed(f"{folder} holds no tokenizer")
    for name in _shards(folder):
        if not (folder / name).exists():
            raise PreflightFailed(f"{folder} lacks {name}, which its index names")
    files = [path for pattern in _WEIGHTS for path in folder.glob(pattern)]
    if not files:
        raise PreflightFailed(f"{folder} holds no weights")
    for path in files:
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``. Raises `PreflightFailed`."""
    return _read_json(folder / "config.json")


def _shards(folder: Path) -> set[str]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return set()
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise PreflightFailed(f"{index} has no weight_map")
    return {str(name) for name in names.values()}


def _check_safetensors(path: Path) -> None:
    """Its header tells how long the file must be (https://github.com/huggingface/safetensors#format)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_BYTES_MAX
        if length >= min(size, HEADER_BYTES_MAX):
            raise PreflightFailed(f"{path.name} is cut short or not a safetensors file; delete it and pull again")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            raise PreflightFailed(f"{path.name} has a damaged header; delete it and pull again") from None
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise PreflightFailed(f"{path.name} is cut short: {size} of {expected} bytes; delete it and pull again")


def _read_json(path: Path) -> dict[str, Any]:
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
