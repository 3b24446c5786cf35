"""The SGLang adapter against real logs of SGLang 0.5.23 on a CPU (`logs/sglang/`, its kernels replaced by stubs, long
lines and tracebacks cut), lines of users' logs from GitHub, and real model folders."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import PreflightFailed
from orchestrator.eta import DEFAULT_S
from orchestrator.gpu import Grant
from orchestrator.model import Deployment, EngineKind, Phase, Progress
from runtimes.engines import engines
from runtimes.engines.reading import SENTENCE_CHARS_MAX
from runtimes.engines.sglang import OURS, Sglang, SglangEngine, find_sglang
from tests.tiny_model import CONTEXT_TOKENS, write_tiny_model

LOGS = Path(__file__).parent / "logs" / "sglang"
CPU = SglangEngine(Sglang(python="/env/bin/python", cpu=True))
GPU = SglangEngine(Sglang(python="/env/bin/python", cpu=False))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def deployment(*args: str, **fields: Any) -> Deployment:
    return Deployment(name="acme/small", engine=EngineKind.SGLANG, source="acme/small", args=args, **fields)


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text("utf-8")


def refused(folder: Path, *args: str, **fields: Any) -> str:
    with pytest.raises(PreflightFailed) as caught:
        GPU.preflight(deployment(*args, **fields), str(folder))
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def test_it_is_one_of_the_engines(tmp_path: Path) -> None:
    assert isinstance(engines(tmp_path)[EngineKind.SGLANG], SglangEngine)
    assert DEFAULT_S[EngineKind.SGLANG]


def test_argv_on_a_gpu_is_what_the_operator_asked_for() -> None:
    assert GPU.argv(deployment("--context-length", "2048"), "/models/small", Grant()) == (
        *("/env/bin/python", "-m", "sglang.launch_server", "--model-path", "/models/small"),
        *("--served-model-name", "acme/small", "--host", "{host}", "--port", "{port}", "--enable-metrics"),
        *("--context-length", "2048"),
    )


def test_metrics_are_asked_for_once() -> None:
    assert GPU.argv(deployment("--enable-metrics"), "/m", Grant()).count("--enable-metrics") == 1


@pytest.mark.parametrize(
    ("args", "grant", "added"),
    [
        ((), Grant(), ()),
        ((), Grant(gpus=1), ()),
        ((), Grant(gpus=2), ("--tp-size", "2")),
        (("--tp", "2"), Grant(gpus=2), ()),
        (("--tensor-parallel-size=2",), Grant(gpus=2), ()),
        (("--pp-size", "2"), Grant(gpus=2), ()),
        (("--dp", "2"), Grant(gpus=2), ()),
        (("--ep-size", "2"), Grant(gpus=2), ("--tp-size", "2")),
        # 85 % of the share; the rest is for activations and graphs.
        ((), Grant(gpus=1, memory_fraction=0.5), ("--mem-fraction-static", "0.425")),
        ((), Grant(gpus=2, memory_fraction=1.0), ("--tp-size", "2", "--mem-fraction-static", "0.850")),
        (("--mem-fraction-static", "0.3"), Grant(gpus=1, memory_fraction=0.5), ()),
        (("--mem-frac=0.3",), Grant(gpus=1, memory_fraction=0.5), ()),
    ],
)
def test_a_grant_becomes_arguments_where_the_operator_says_nothing(
    args: tuple[str, ...], grant: Grant, added: tuple[str, ...]
) -> None:
    tail = GPU.argv(deployment(*args), "/models/small", grant)
    assert tail[tail.index("--enable-metrics") + 1 :] == (*added, *args)


@pytest.mark.parametrize(
    ("args", "added"),
    [
        ((), ("--device", "cpu", "--max-total-tokens", "32768", "--max-running-requests", "8")),
        (("--max-total-tokens=4k",), ("--device", "cpu", "--max-running-requests", "8")),
    ],
)
def test_defaults_for_a_cpu_give_way_to_the_operator(args: tuple[str, ...], added: tuple[str, ...]) -> None:
    tail = CPU.argv(deployment(*args), "/models/small", Grant())
    assert tail[tail.index("--enable-metrics") + 1 :] == (*added, *args)


def test_the_environment_keeps_the_engine_off_the_network_and_its_probes_cheap() -> None:
    env = GPU.env(deployment())
    assert {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK"} <= {key for key in env if env[key] == "1"}
    assert env["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "0"
    assert "SGLANG_USE_CPU_ENGINE" not in env
    assert CPU.env(deployment())["SGLANG_USE_CPU_ENGINE"] == "1"


def test_the_operator_may_probe_by_generating() -> None:
    assert GPU.health_path(deployment()) == "/health"
    assert GPU.health_path(deployment(health_path="/health_generate")) == "/health_generate"


# Each mark of a real start, and what the log up to that line says.
STEPS = [
    ("Init parallel begin", Progress(phase=Phase.STARTING, note="starting SGLang")),
    ("Load weight begin", Progress(phase=Phase.LOADING, fraction=0.0, note="loading weights")),
    ("shards: 100% Completed", Progress(phase=Phase.LOADING, fraction=0.6, note="loading weights")),
    ("Load weight end", Progress(phase=Phase.LOADING, fraction=0.6, note="weights loaded")),
    ("KV Cache is allocated", Progress(phase=Phase.LOADING, fraction=0.65, note="preparing the KV cache")),
    ("Memory pool end", Progress(phase=Phase.LOADING, fraction=0.7, note="preparing to run")),
    ("Application startup complete", Progress(phase=Phase.LOADING, fraction=0.95, note="warming up")),
    ("ready to roll!", Progress(phase=Phase.LOADING, fraction=1.0, note="starting the server")),
]


@pytest.mark.parametrize(("mark", "expected"), STEPS, ids=[mark for mark, _ in STEPS])
def test_progress_from_a_real_log(mark: str, expected: Progress) -> None:
    before, found, _ = log("ready").partition(mark)
    assert found, "the log has the mark"
    assert GPU.progress(before + found) == expected


# Two GPUs (https://github.com/sgl-project/sglang/pull/20758, with the first lines of issue 4127), before 0.5.20.
TWO_GPUS = """\
[2026-03-17 07:14:02 TP1] Load weight begin. avail mem=21.63 GB
[2026-03-17 07:14:02 TP0] Load weight begin. avail mem=21.63 GB
Loading safetensors checkpoint shards:   0% Completed | 0/14 [00:00<?, ?it/s]
Loading safetensors checkpoint shards:  50% Completed | 7/14 [00:03<00:03,  2.24it/s]
[2026-03-17 07:16:10 TP0] Load weight end. elapsed=123.1 s, avail mem=13.31 GB, mem usage=8.32 GB.
[2026-03-17 07:16:10 TP1] Load weight end. elapsed=123.4 s, avail mem=13.31 GB, mem usage=8.32 GB.
[2026-03-17 07:16:11 TP0] KV Cache is allocated. #tokens: 580364, K size: 4.15 GB, V size: 4.15 GB
[2026-03-17 07:16:11 TP0] Memory pool end. avail mem=12.02 GB
[2026-03-17 07:16:11 TP0] Capture cuda graph begin. This can take up to several minutes. avail mem=11.64 GB
Capturing batches (bs=1 avail_mem=10.83 GB): 100%|##########| 4/4 [00:24<00:00,  6.04s/it]
[2026-03-17 07:16:12 TP1] KV Cache is allocated. #tokens: 580364, K size: 4.15 GB, V size: 4.15 GB
[2026-03-17 07:16:38 TP1] Capture cuda graph end. Time elapsed: 27.40 s. mem usage=0.83 GB. avail mem=10.88 GB.
[2026-03-17 07:16:38 TP1] Capture piecewise CUDA graph begin. avail mem=10.88 GB
[2026-03-17 07:16:59] INFO:     Application startup complete.
[2026-03-17 07:17:01] The server is fired up and ready to roll!
"""


@pytest.mark.parametrize("text", [log("ready"), TWO_GPUS], ids=["cpu", "two GPUs"])
def test_progress_never_goes_back_as_a_real_log_grows(text: str) -> None:
    seen = [GPU.progress(text[:end]) for end in range(0, len(text) + 1, 10)]
    places = [(p.phase is Phase.LOADING, p.fraction or 0.0) for p in seen]
    assert places == sorted(places)
    assert GPU.progress(text).fraction == 1.0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", Progress(phase=Phase.STARTING, note="starting SGLang")),
        # Eight shards; the bar overwrites its line.
        (
            "Load weight begin. avail mem=21.63 GB\nMulti-thread loading shards:   0% Completed | 0/8 [00:00<?]\r"
            "Multi-thread loading shards:  50% Completed | 4/8 [00:03<00:03,  1.3it/s]\r",
            Progress(phase=Phase.LOADING, fraction=0.3, note="loading weights"),
        ),
        (
            "Load weight begin.\nLoading safetensors checkpoint shards:  25% Completed | 1/4 [00:00<00:01,  2.0it/s]",
            Progress(phase=Phase.LOADING, fraction=0.15, note="loading weights"),
        ),
        (
            "Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1, avail mem=8.10 GB",
            Progress(phase=Phase.LOADING, fraction=0.75, note="capturing graphs"),
        ),
        (
            "Capture target prefill CUDA graph begin. backend=breakable, num_tokens=[4, 8], avail mem=8.10 GB",
            Progress(phase=Phase.LOADING, fraction=0.75, note="capturing graphs"),
        ),
        (
            "Capture target verify CPU graph begin. backend=full",
            Progress(phase=Phase.LOADING, fraction=0.75, note="capturing graphs"),
        ),
    ],
)
def test_progress_from_single_lines(line: str, expected: Progress) -> None:
    assert GPU.progress(line) == expected


@pytest.mark.parametrize(
    ("name", "code", "sentence"),
    [
        ("bad_flag", 2, "error: unrecognized arguments: --foo"),
        (
            "long_context",
            1,
            "ValueError: Warning: User-specified context_length (99999) is greater than the derived context_length"
            " (2048). This may lead to incorrect model outputs or CUDA errors. Note that the derived context_length may"
            " differ from max_position_embeddings in the model's config.",
        ),
        # SGLang kills itself when one of its processes fails.
        (
            "small_share",
            -9,
            "ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.0001. Raise"
            " --mem-fraction-static above 0.003 (minimum viable = 1 - available/pre = 0.0025). If using speculative"
            " decoding, draft weights are now counted.",
        ),
        (
            "unknown_architecture",
            137,
            "ValueError: Cannot find model module. 'FancyForCausalLM' is not a registered model in the Transformers"
            " library (only relevant if the model is meant to be in Transformers) and 'AutoModel' is not present in the"
            " model config's 'auto_map' (relevant if the model is custom).",
        ),
        ("no_weights", -9, "RuntimeError: Cannot find any model weights with `noweights`"),
        (
            "truncated",
            -9,
            "SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered",
        ),
        # It stays, and is killed when its time to start is over.
        (
            "port_taken",
            -9,
            "[Errno 98] error while attempting to bind on address ('127.0.0.1', 31234): address already in use",
        ),
        # What running out of memory looks like, while it starts and later.
        (
            "killed_starting",
            1,
            "RuntimeError: Rank 0 scheduler died during initialization (exit code: -9). If exit code is -9 (SIGKILL), a"
            " common cause is the OS OOM killer. Run `dmesg -T | grep -i oom` to check.",
        ),
        (
            "scheduler_killed",
            -9,
            "SGLang's scheduler_0 process ended with exit code -9, as happens when memory runs out",
        ),
    ],
)
def test_failure_from_a_real_log(name: str, code: int, sentence: str) -> None:
    assert GPU.failure(log(name), code) == sentence


# Ends of users' logs, cut, and put together with what 0.5.23 says of its own end.
OUT_OF_MEMORY = """\
[2026-05-01 15:16:15] Received sigquit from a child process. It usually means the child failed.
[2026-05-01 15:16:15 TP2] Scheduler hit an exception: Traceback (most recent call last):
  File "/root/sglang/python/sglang/srt/managers/scheduler.py", line 3118, in run_scheduler_process
    scheduler = Scheduler(
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 616.00 MiB. GPU 0 has a total capacity of 21.98 GiB

RuntimeError: Rank 0 scheduler died during initialization (exit code: -3).
"""  # https://github.com/kvcache-ai/ktransformers/issues/1969, https://github.com/sgl-project/sglang/issues/4730
NOT_ENOUGH_MEMORY = """\
[2025-03-29 18:18:34 TP0] Setup Custom allreduce failed with CUDART error: peer access is not supported.
[2025-03-29 18:18:34 TP0] Scheduler hit an exception: Traceback (most recent call last):
  File "/sgl-workspace/sglang/python/sglang/srt/managers/scheduler.py", line 1999, in run_scheduler_process
    scheduler = Scheduler(server_args, port_args, gpu_id, tp_rank, dp_rank)
RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.

[2025-03-29 18:18:34] Received sigquit from a child process. It usually means the child failed.
"""  # https://github.com/sgl-project/sglang/issues/4895, /4330, /12496
WHILE_SERVING = """\
[2025-06-26 02:16:20 TP0] Decode batch. #running-req: 1, #token: 2102, token usage: 0.51, cuda graph: True
[2025-06-26 02:16:20 DP0 TP1] Scheduler hit an exception: Traceback (most recent call last):
  File "/sgl-workspace/sglang/python/sglang/srt/mem_cache/radix_cache.py", line 254, in match_prefix_lmcache
    raise ValueError("Failed to allocate token prealloc indices")
ValueError: Failed to allocate token prealloc indices

[2025-06-26 02:16:20] Subprocess scheduler_1 (pid=77) crashed with exit code -3. Triggering SIGQUIT for cleanup...
[2025-06-26 02:16:20] SIGQUIT received. signum=None, frame=None. It usually means one child failed.
"""  # https://github.com/LMCache/LMCache/pull/869
NO_GRAPHS = """\
[2025-04-10 07:26:56 TP7] Scheduler hit an exception: Traceback (most recent call last):
  File "/sgl-workspace/sglang/python/sglang/srt/model_executor/cuda_graph_runner.py", line 269, in __init__
    raise Exception(
Exception: Capture cuda graph failed: CUDA out of memory. Tried to allocate 448.00 MiB.
Possible solutions:
1. set --mem-fraction-static to a smaller value (e.g., 0.8 or 0.7)
"""  # https://github.com/sgl-project/sglang/issues/5285
UNKNOWN_MODEL = """\
[2025-03-10 14:17:52 TP6] Ignore import error when loading sglang.srt.models.deepseek_v2. Command '['/usr/bin/gcc']'
[2025-03-10 14:17:52 TP1] Scheduler hit an exception: Traceback (most recent call last):
  File "/home/xiaoi/sglang/python/sglang/srt/managers/scheduler.py", line 1748, in run_scheduler_process
ValueError: Model architectures ['DeepseekV3ForCausalLM'] are not supported for now. Supported architectures: \
dict_keys(['BaichuanForCausalLM', 'ChatGLMModel', 'CLIPModel', 'CohereForCausalLM', 'Cohere2ForCausalLM', \
'DbrxForCausalLM', 'DeepseekForCausalLM', 'MultiModalityCausalLM', 'DeepseekVL2ForCausalLM', 'ExaoneForCausalLM'])
"""  # https://github.com/sgl-project/sglang/issues/4253


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        (
            OUT_OF_MEMORY,
            -9,
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 616.00 MiB. GPU 0 has a total capacity of"
            " 21.98 GiB",
        ),
        (NOT_ENOUGH_MEMORY, -9, "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static."),
        (NO_GRAPHS, -9, "Exception: Capture cuda graph failed: CUDA out of memory. Tried to allocate 448.00 MiB."),
        (WHILE_SERVING, -9, "ValueError: Failed to allocate token prealloc indices"),
        (UNKNOWN_MODEL, 1, "ValueError: Model architectures ['DeepseekV3ForCausalLM'] are not supported for now."),
        ("[2026-11-21 07:54:31] Init parallel begin.\n", -9, None),
        ("", 3, "the engine ended with exit code 3 and said nothing"),
    ],
    ids=[
        "out of memory",
        "not enough memory",
        "no graphs",
        "while serving",
        "unknown model",
        "killed from outside",
        "silent",
    ],
)
def test_failure_from_users_logs(text: str, code: int, sentence: str | None) -> None:
    expected = sentence or "the engine was killed by SIGKILL, as happens when memory runs out"
    assert GPU.failure(text, code) == expected


def test_no_cut_of_any_log_yields_a_frame_or_too_long_a_sentence() -> None:
    for path in LOGS.glob("*.log"):
        text = path.read_text("utf-8")
        for end in range(0, len(text), 97):
            sentence = GPU.failure(text[:end], 1)
            assert 0 < len(sentence) <= SENTENCE_CHARS_MAX
            assert "\n" not in sentence
            assert not re.match(r"File |Traceback|\^|\[[\d: -]{19}\] ", sentence), (path, end)


def test_preflight_takes_a_whole_folder(folder: Path) -> None:
    GPU.preflight(deployment("--context-length", str(CONTEXT_TOKENS)), str(folder))


def test_a_missing_sglang_is_told(folder: Path) -> None:
    with pytest.raises(PreflightFailed, match="SGLang is not installed"):
        SglangEngine(None).preflight(deployment(), str(folder))
    with pytest.raises(PreflightFailed, match="SGLang is not installed"):
        SglangEngine(None).argv(deployment(), str(folder), Grant())


@pytest.mark.parametrize(
    "args",
    [
        ("--context-length", "2049"),
        ("--context-length=4k",),
        ("--context-length", "3Ki"),
        ("--context-length", "1M"),
        ("--context-length", "100", "--context-length", "4096"),
    ],
)
def test_too_long_a_context(folder: Path, args: tuple[str, ...]) -> None:
    assert "longer than the model's own context of 2048 tokens" in refused(folder, *args)


@pytest.mark.parametrize(
    ("args", "env", "config"),
    [
        (("--context-length", "2k"), (), {}),
        (("--context-length", "2Ki"), (), {}),
        (("--context-length", "many"), (), {}),
        (("--context-length", "9999"), (("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", "1"),), {}),
        (("--context-length", "9999", "--json-model-override-args", "{}"), (), {}),
        (("--context-length", "9999"), (), {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ],
)
def test_a_context_that_sglang_would_take_or_judge_itself(
    tmp_path: Path, args: tuple[str, ...], env: tuple[tuple[str, str], ...], config: dict[str, Any]
) -> None:
    folder = write_tiny_model(tmp_path, **config)
    GPU.preflight(deployment(*args, env=env), str(folder))


@pytest.mark.parametrize("flag", ["--trust-remote-code", "--trust-remote"])
def test_foreign_code_only_with_a_pinned_revision(folder: Path, flag: str) -> None:
    assert "pin it" in refused(folder, flag)
    assert "pin it" in refused(folder, flag, revision="main")
    GPU.preflight(deployment(flag, revision=COMMIT), str(folder))


@pytest.mark.parametrize(
    "args",
    [
        *((flag, "x") for flag in OURS),
        ("--port=80",),
        ("--model-p", "other/one"),
        ("--served_model_name", "other"),
        ("--conf=args.yaml",),
    ],
)
def test_what_is_ours_is_refused(folder: Path, args: tuple[str, ...]) -> None:
    assert "belongs to the orchestrator" in refused(folder, *args)


def test_flags_that_only_resemble_ours_are_fine(folder: Path) -> None:
    args = ("--model-impl", "auto", "--context-length", "1024", "--grpc-port", "9", "--tp", "2")
    GPU.preflight(deployment(*args), str(folder))


def test_a_spoilt_folder_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    assert "lacks model-2.safetensors" in refused(folder)


def test_dummy_weights_need_no_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in refused(folder)
    GPU.preflight(deployment("--load-format", "dummy"), str(folder))


@pytest.mark.parametrize(
    ("dist_infos", "cpu"),
    [
        (("sglang-0.5.23.dist-info", "sglang_kernel-0.4.10.dist-info", "torch-2.14.1.dist-info"), False),
        (("sglang-0.5.23.dist-info", "torch-2.9.0+cpu.dist-info"), True),
        (("sglang-0.5.23.dist-info", "sgl_kernel_cpu-0.3.21.dist-info"), True),
    ],
)
def test_an_installed_sglang_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dist_infos: tuple[str, ...], cpu: bool
) -> None:
    (tmp_path / "sglang").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_sglang() is None, "a mere folder of that name is not it"
    (tmp_path / "sglang" / "__init__.py").touch()
    for name in dist_infos:
        (tmp_path / name).mkdir()
    assert find_sglang() == Sglang(python=sys.executable, cpu=cpu)
