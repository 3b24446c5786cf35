"""SGLang: the installed one. Flags, marks and rules as in SGLang 0.5.23 (`python/sglang/srt/…`)."""

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
from orchestrator.model import Deployment, Phase, Progress
from runtimes.engines import flags
from runtimes.engines.folder import check_folder, longest_context, read_config
from runtimes.engines.reading import failure_sentence
from runtimes.engines.shape import read_shape
from runtimes.engines.sleepless import Sleepless

# Where the engine listens, what it is called and who may ask are ours to say, as are the weights' files; a file of
# arguments could say all of that unseen (arg_groups/fields/serving.py, model.py). gRPC would take HTTP's place.
OURS = (
    *("--host", "--port", "--model-path", "--model", "--served-model-name", "--api-key", "--admin-api-key"),
    *("--config", "--grpc-mode", "--smg-grpc-mode", "--delete-ckpt-after-loading"),
)
STATIC_OF_SHARE = 0.85
"""`--mem-fraction-static` for a share of a GPU is the share times this.

SGLang's fraction is of "(model weights + KV cache pool) / GPU memory capacity" (arg_groups/memory_hook.py): what
activations, CUDA graphs and the CUDA context take comes on top and nothing bounds it, so it must fit into the rest of
the share. On a whole GPU SGLang itself leaves 512 + 1.5 * chunked_prefill_size + 2 * max_bs MB for that, at least
10 GiB beyond 60 GiB: 10 to 17 % of 80 to 141 GB. The capacity is really what was free when it started
(`_profile_available_bytes` in mem_cache/kv_cache_configurator.py), so beside a neighbour it takes less than its share.
"""
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "Ki": 2**10, "Mi": 2**20}
_TOKENS = re.compile(r"(\d+)(k|M|Ki|Mi|)")
# "[2026-11-21 07:58:43 DP0 TP1] ", as `configure_logger` in utils/common.py has it; argparse begins with the program.
_STAMP = re.compile(r"^(?:\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?(?: [A-Z]+\d+)*\] |sglang serve: )")
_SHARDS = re.compile(r"[Ll]oading [\w ]*shards:\s+(\d+)% Completed")
# Marks in the log, in the order in which they come; the last one that was reached tells where it is: the ranks of
# several GPUs, and a draft model, repeat earlier ones. model_executor/model_runner.py, mem_cache/memory_pool.py and
# kv_cache_configurator.py, model_runner_components/cuda_graph_setup.py, entrypoints/http_server.py.
_MARKS = (
    (re.compile("Load weight begin"), "loading weights", 0.0),
    (re.compile("Load weight end"), "weights loaded", 0.6),
    (re.compile("KV Cache is allocated"), "preparing the KV cache", 0.65),
    (re.compile("Memory pool end"), "preparing to run", 0.7),
    (re.compile(r"Capture [\w ]*graph begin", re.IGNORECASE), "capturing graphs", 0.75),
    (re.compile("Application startup complete"), "warming up", 0.95),
    (re.compile("The server is fired up and ready to roll!"), "starting the server", 1.0),
)
# It kills its own process group, itself included, when one process fails (`kill_process_tree` in utils/common.py), so
# how it ended tells nothing.
_ENDED_ITSELF = re.compile(r"sigquit|kill_process_tree called: .*include_parent=True", re.IGNORECASE)
_ENDING = re.compile(
    r"sigquit|kill_process_tree called|crash diagnostics|No live scheduler processes|^Ignore import error"
    r"|^Subprocess \w+ .* crashed with exit code -15",
    re.IGNORECASE,
)
_HIT = "hit an exception"
_DIED = re.compile(r"^RuntimeError: Rank \d+ scheduler died during initialization")
# -15 is no crash: it was told to stop.
_CRASHED = re.compile(r"^Subprocess (\w+) \(pid=\d+\) crashed with exit code (?!-15\b)(-?\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sglang:
    """A SGLang that can be run."""

    python: str
    """The interpreter that imports it."""
    cpu: bool
    """Whether it is a CPU build."""


class SglangEngine(Sleepless):
    """`ports.Engine` for ``engine = "sglang"``."""

    def __init__(self, sglang: Sglang | None) -> None:
        self._sglang = sglang

    def argv(self, deployment: Deployment, weights_path: str | None, grant: Grant) -> tuple[str, ...]:
        """The server as a module, so that no script has to be on the PATH; with metrics, as vLLM has by default."""
        if self._sglang is None:
            raise PreflightFailed(NOT_INSTALLED)
        return (
            self._sglang.python,
            "-m",
            "sglang.launch_server",
            *("--model-path", weights_path or deployment.source),
            *("--served-model-name", deployment.name),
            *("--host", "{host}", "--port", "{port}"),
            *(() if _says(deployment.args, "--enable-metrics") else ("--enable-metrics",)),
            *(_cpu_args(deployment.args) if self._sglang.cpu else _gpu_args(deployment.args, grant)),
            *deployment.args,
        )

    def env(self, deployment: Deployment) -> Mapping[str, str]:
        """The engine works from the files it is given, and a probe is answered at once.

        SGLang's ``/health`` is its ``/health_generate``: it has one token generated and answers after a second at the
        earliest, and not before the prefill that is under way ends, so one long prompt would make an engine sick.
        Without that it says 503 until its own first generation went well and 200 from then on (`health_generate` in
        entrypoints/http_server.py). What hangs afterwards is ended by SGLang's own watchdog, and what dies takes all
        with it; who wants the whole way probed sets ``health_path = "/health_generate"``.
        """
        env = {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
            "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0",
        }
        return {**env, "SGLANG_USE_CPU_ENGINE": "1"} if self._sglang is not None and self._sglang.cpu else env

    def health_path(self, deployment: Deployment) -> str:
        """As configured; SGLang's own is the default, see `env`."""
        return deployment.health_path

    def preflight(self, deployment: Deployment, weights_path: str | None) -> None:
        """SGLang is there, its arguments leave ours alone, the folder is whole, the model has that context length,
        and no foreign code is run unless its revision is pinned."""
        if self._sglang is None:
            raise PreflightFailed(NOT_INSTALLED)
        flags.check(deployment, OURS)
        folder = Path(weights_path or deployment.source)
        load_format = flags.value_of("--load-format", deployment.args)
        check_folder(folder, weights=load_format in (None, "auto", "safetensors"))
        _check_length(folder, deployment)

    def progress(self, log_tail: str) -> Progress:
        """The furthest of the known marks."""
        reached = [(note, done) for mark, note, done in _MARKS if mark.search(log_tail)]
        if not reached:
            return Progress(phase=Phase.STARTING, note="starting SGLang")
        note, done = reached[-1]
        shards = _SHARDS.findall(log_tail)
        if shards and note == "loading weights":
            done = 0.6 * int(shards[-1]) / 100
        return Progress(phase=Phase.LOADING, fraction=done, note=note)

    @property
    def accelerated(self) -> bool:
        """Unless it is the CPU build."""
        return self._sglang is not None and not self._sglang.cpu

    def shape(self, deployment: Deployment, weights_path: str | None) -> ModelShape | None:
        """As for vLLM, whose name for the context's flag differs. See `shape.read_shape`."""
        context = flags.value_of("--context-length", deployment.args)
        args = (*deployment.args, *(("--max-model-len", context) if context else ()))
        return read_shape(Path(weights_path or deployment.source), args)

    def fixed_bytes(self, log_tail: str) -> int | None:
        """It does not sum it up."""
        return None

    def failure(self, log_tail: str, exit_code: int | None) -> str:
        """See `reading.failure_sentence`; without what SGLang says about its own ending.

        1. A process was killed before it could say why. 2. A process raised something: its last exception counts, not
        the one that says that it died. 3. All else.
        """
        lines = [_STAMP.sub("", line) for line in log_tail.splitlines()]
        raised = any(_HIT in line for line in lines)
        crashed = next((found for line in lines if (found := _CRASHED.match(line))), None)
        if crashed and not raised:
            cause = ", as happens when memory runs out" if crashed[2] == "-9" else ""
            return f"SGLang's {crashed[1]} process ended with exit code {crashed[2]}{cause}"
        told = (line for line in lines if not _ENDING.search(line) and not (raised and _DIED.match(line)))
        ended_itself = raised or _ENDED_ITSELF.search(log_tail)
        return failure_sentence("\n".join(told), None if ended_itself else exit_code)


NOT_INSTALLED = 'SGLang is not installed: `pip install "orchestrator[sglang]"` on a GPU machine'


def find_sglang() -> Sglang | None:
    """The SGLang of this environment. Blocks on a few small files."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.origin:  # a mere folder of that name, as in the current one, has no origin
        return None
    return Sglang(python=sys.executable, cpu=_is_cpu_build(Path(spec.origin).parent.parent))


def _is_cpu_build(packages: Path) -> bool:
    """By what lies beside it: SGLang is called the same everywhere (python/pyproject_cpu.toml), its kernels are not."""
    return any(packages.glob("sgl*kernel_cpu-*.dist-info")) or any(packages.glob("torch-*+cpu.dist-info"))


def _says(given: tuple[str, ...], *names: str) -> bool:
    """Whether the operator gives one of these flags; argparse takes beginnings, and many write ``--tp``."""
    return any(flags.matches(name, flag) for name in flags.names(given) for flag in names)


def _cpu_args(given: tuple[str, ...]) -> tuple[str, ...]:
    """What suits a CPU, where the operator says nothing. Left alone, the KV cache takes most of the memory."""
    defaults = (("--device", "cpu"), ("--max-total-tokens", "32768"), ("--max-running-requests", "8"))
    return tuple(part for default in defaults if not _says(given, default[0]) for part in default)


def _gpu_args(given: tuple[str, ...], grant: Grant) -> tuple[str, ...]:
    """Spread over what was leased, and keep to its share, where the operator says nothing."""
    ways = ("--tp-size", "--tensor-parallel-size", "--pp-size", "--pipeline-parallel-size", "--dp-size")
    spread = grant.gpus > 1 and not _says(given, *ways, "--data-parallel-size")
    share = grant.memory_fraction
    if share is not None and _says(given, "--mem-fraction-static"):
        share = None
    return (
        *(("--tp-size", str(grant.gpus)) if spread else ()),
        *(("--mem-fraction-static", f"{share * STATIC_OF_SHARE:.3f}") if share is not None else ()),
    )


def _check_length(folder: Path, deployment: Deployment) -> None:
    """A context longer than the model's own fails only after all of the imports (`_derive_context_length` in
    configs/model_config.py)."""
    asked = _TOKENS.fullmatch(flags.value_of("--context-length", deployment.args) or "")
    env = {**os.environ, **dict(deployment.env)}
    allowed = env.get("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", "0").lower() not in ("0", "false", "")
    if asked is None or allowed or _says(deployment.args, "--json-model-override-args"):
        return
    tokens = int(asked[1]) * _UNITS[asked[2]]
    longest = longest_context(read_config(folder))
    if longest is not None and tokens > longest:
        raise PreflightFailed(f"--context-length {tokens} is longer than the model's own context of {longest} tokens")
