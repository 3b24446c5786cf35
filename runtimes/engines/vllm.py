"""vLLM: the installed one, or the CPU build that ``orchestrator demo`` prepares."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import PreflightFailed
from orchestrator.model import Deployment, Phase, Progress
from runtimes.engines.folder import check_folder, read_config
from runtimes.engines.reading import failure_sentence

READY_FILE = "ready"
"""Written last into an engine folder that `orchestrator demo` prepares."""
TRUST_FLAG = "--trust-remote-code"
_SHARDS = re.compile(r"Loading (?:safetensors|pt) checkpoint shards:\s+(\d+)% Completed")
# Marks in the log of vLLM 0.32, in the order in which they come; the last one seen tells where it is.
_MARKS = (
    ("Starting to load model", "loading weights", 0.0),
    ("Loading weights took", "weights loaded", 0.6),
    ("torch.compile takes", "compiled", 0.7),
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

    def argv(self, deployment: Deployment, weights_path: str | None) -> tuple[str, ...]:
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
            *(_cpu_args(deployment.args) if self._vllm.cpu else ()),
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
        return {**env, "VLLM_CPU_KVCACHE_SPACE": "1"} if self._vllm is not None and self._vllm.cpu else env

    def health_path(self, deployment: Deployment) -> str:
        """As configured; vLLM's own is the default."""
        return deployment.health_path

    def preflight(self, deployment: Deployment, weights_path: str | None) -> None:
        """vLLM is there, the folder is whole, the context length is one that the model has, and no foreign
        code is run unless its revision is pinned."""
        if self._vllm is None:
            raise PreflightFailed(NOT_INSTALLED)
        if TRUST_FLAG in deployment.args and not re.fullmatch("[0-9a-f]{40}", deployment.revision or ""):
            raise PreflightFailed(f'{TRUST_FLAG} runs code from the model\'s source: pin it, source = "id@<commit>"')
        folder = Path(weights_path or deployment.source)
        check_folder(folder)
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

    def failure(self, log_tail: str, exit_code: int | None) -> str:
        """See `reading.failure_sentence`."""
        return failure_sentence(log_tail, exit_code)


NOT_INSTALLED = (
    'vLLM is not installed: `pip install "orchestrator[vllm]"` on a GPU machine, '
    "or `orchestrator demo`, which prepares the CPU build"
)


def find_vllm(cache: Path) -> Vllm | None:
    """The vLLM to run: of this environment, else the one prepared under `cache`. Blocks on a few small files."""
    if importlib.util.find_spec("vllm") is not None:
        return Vllm(python=sys.executable, cpu=_is_cpu_build(Path(sys.prefix)))
    for ready in sorted(cache.glob(f"engines/vllm-*/{READY_FILE}"), reverse=True):
        return Vllm(python=str(ready.parent / "bin" / "python"), cpu=_is_cpu_build(ready.parent))
    return None


def _is_cpu_build(prefix: Path) -> bool:
    dists = [path.name for path in prefix.glob("lib/python3*/site-packages/vllm*.dist-info")]
    return any(name.startswith("vllm_cpu-") or "+cpu" in name for name in dists)


def _cpu_args(given: tuple[str, ...]) -> tuple[str, ...]:
    """What suits a CPU, where the operator says nothing: float32 batches best without AMX, graphs gain nothing."""
    defaults = (("--dtype", "float32"), ("--enforce-eager",), ("--max-num-seqs", "8"))
    flags = {part.partition("=")[0] for part in given}
    return tuple(part for default in defaults if default[0] not in flags for part in default)


def _check_length(folder: Path, deployment: Deployment) -> None:
    """A context longer than the model's own fails after a minute of imports."""
    asked = _value_of("--max-model-len", deployment.args)
    config = read_config(folder)
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    longest = text.get("max_position_embeddings") if isinstance(text, dict) else None
    allowed = dict(deployment.env).get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1"
    if not asked or not asked.isdigit() or not isinstance(longest, int) or allowed or config.get("rope_scaling"):
        return
    if int(asked) > longest:
        raise PreflightFailed(f"--max-model-len {asked} is longer than the model's own context of {longest} tokens")


def _value_of(flag: str, args: tuple[str, ...]) -> str | None:
    """The value of ``--flag value`` or ``--flag=value``; the last one counts."""
    found = [b for a, b in itertools.pairwise(args) if a == flag]
    found += [part.partition("=")[2] for part in args if part.startswith(f"{flag}=")]
    return found[-1] if found else None
