"""GPUs through NVIDIA's own binding and a stub of the driver's library: `tests/nvml/stub.c`."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest

from orchestrator.cli.doctor import examine
from orchestrator.cli.finding import Finding, Level
from orchestrator.gpu import Gpu
from runtimes import gpus as module
from runtimes.gpus import ABSENT, STUCK, Board, GpuReader, Inventory, visible
from tests.nvml.library import DRIVER, H100, LIBRARY, MIB, StubNvml, gpu, mig, slice_uuid, uuid
from tests.stub import until

USABLE_MIB = 81_559 - 559
Readers = Callable[..., GpuReader]


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubNvml:
    """The stub, loaded into this process in the real library's stead; a copy, so that none has been started before."""
    stub = StubNvml(tmp_path)
    copy = shutil.copy(stub.library, tmp_path)
    _loads(monkeypatch, lambda name: ctypes.CDLL(str(copy)))
    monkeypatch.setenv("STUB_NVML_FILE", str(stub.file))
    return stub


@pytest.fixture
def reader(nvml: StubNvml) -> Iterator[Readers]:
    """Makes readers, and closes them."""
    made: list[GpuReader] = []

    def make(**environ: str) -> GpuReader:
        made.append(GpuReader(environ=environ, patience_s=20.0))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _loads(monkeypatch: pytest.MonkeyPatch, load: Callable[[str], Any]) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", load)
    monkeypatch.setattr(module, "CDLL", load)


def refuses(reason: str) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        assert name == LIBRARY
        raise OSError(reason)

    return load


# --- what is there ---


def test_two_gpus(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(gpu(0), gpu(1))
    found = reader().look()
    first = Gpu(uuid=uuid(0), memory_bytes=USABLE_MIB * MIB, free_bytes=USABLE_MIB * MIB, name=H100)
    assert found.gpus[0] == first
    assert [(g.uuid, g.index) for g in found.gpus] == [(uuid(0), 0), (uuid(1), 1)]
    assert found == Inventory(gpus=found.gpus, driver=DRIVER)


def test_four_gpus_of_mixed_sizes(nvml: StubNvml, reader: Readers) -> None:
    sizes = (81_559, 81_559, 24_564, 15_360)
    nvml.write(*(gpu(i, total_mib=size, name=f"NVIDIA {size}") for i, size in enumerate(sizes)))
    found = reader().look()
    assert [(g.memory_bytes // MIB, g.name) for g in found.gpus] == [(s - 559, f"NVIDIA {s}") for s in sizes]


def test_no_gpu_at_all(nvml: StubNvml, reader: Readers) -> None:
    nvml.write()
    assert reader().look() == Inventory(driver=DRIVER)


def test_the_memory_of_other_programs_is_not_free(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(gpu(0), gpu(1))
    one = reader()
    assert one.look().gpus[1].free_bytes == USABLE_MIB * MIB
    nvml.write(gpu(0), gpu(1, used_mib=30_000))
    assert [g.free_bytes // MIB for g in one.look().gpus] == [USABLE_MIB, USABLE_MIB - 30_000]
    nvml.write(gpu(0), gpu(1))
    assert one.look().gpus[1].free_bytes == USABLE_MIB * MIB


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH])
def test_an_older_driver_tells_memory_the_older_way(nvml: StubNvml, reader: Readers, code: int) -> None:
    nvml.write(gpu(0, used_mib=1000), f"fail nvmlDeviceGetMemoryInfo_v2 {code}")
    (found,) = reader().look().gpus
    assert (found.memory_bytes // MIB, found.free_bytes // MIB) == (81_559, USABLE_MIB - 1000)


def test_a_gpu_without_memory_of_its_own_has_the_machines(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(gpu(0), "fail nvmlDeviceGetMemoryInfo 3", "fail nvmlDeviceGetMemoryInfo_v2 3")
    (found,) = reader().look().gpus
    assert found.healthy
    assert found.memory_bytes == psutil.virtual_memory().total
    assert 0 < found.free_bytes < found.memory_bytes


# --- MIG ---


def test_mig_slices_stand_for_their_gpu(nvml: StubNvml, reader: Readers) -> None:
    slots = (mig(1, 0), "mig -", mig(1, 2, used_mib=856), "mig -")
    nvml.write(gpu(0, mig="off"), gpu(1, mig="on"), *slots, gpu(2))
    found = reader().look().gpus
    assert [g.uuid for g in found] == [uuid(0), slice_uuid(1, 0), slice_uuid(1, 2), uuid(2)]
    assert [g.mig for g in found] == [False, True, True, False]
    assert [g.index for g in found] == [0, 1, 1, 2]
    assert [(g.memory_bytes // MIB, g.free_bytes // MIB) for g in found[1:3]] == [(9_856, 9_856), (9_856, 9_000)]
    assert found[1].name == f"{H100} MIG 1g.10gb"


def test_a_divided_gpu_without_slices_yields_none(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(gpu(0, mig="on"), gpu(1))
    assert [g.uuid for g in reader().look().gpus] == [uuid(1)]


def test_slices_share_the_faults_of_their_gpu(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(gpu(0, mig="on", ecc=2), mig(0, 0), mig(0, 1))
    one = reader()
    assert [(g.mig, g.healthy) for g in one.look().gpus] == [(True, False), (True, False)]
    nvml.write(gpu(0, mig="on"), mig(0, 0), mig(0, 1))
    assert all(g.healthy for g in one.look().gpus)
    nvml.write(gpu(0, mig="on"), mig(0, 0), mig(0, 1), f"fail * 15 {uuid(0)}")
    lost = one.look().gpus
    assert [(g.uuid, g.healthy) for g in lost] == [(slice_uuid(0, 0), False), (slice_uuid(0, 1), False)]


def test_a_slice_given_up_between_two_calls_is_left_out(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(gpu(0, mig="on"), mig(0, 0), mig(0, 1), f"fail nvmlDeviceGetUUID 2 {slice_uuid(0, 0)}")
    assert [(g.uuid, g.healthy) for g in reader().look().gpus] == [(slice_uuid(0, 1), True)]


# --- sick ones ---


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ({"ecc": 3}, "3 of them"),
        ({"pending": 1}, "rows wait"),
        ({"pending": 0, "failure": 1}, "replace the GPU"),
        ({"retired": 1}, "pages wait"),
    ],
)
def test_memory_faults(nvml: StubNvml, reader: Readers, facts: dict[str, int], fault: str) -> None:
    sick = " ".join(f" {key}={value}" for key, value in facts.items())
    nvml.write(gpu(0, ecc=0, pending=0, retired=0), gpu(1) + sick)
    first, second = reader().look().gpus
    assert (first.healthy, first.fault) == (True, "")
    assert not second.healthy
    assert fault in second.fault
    assert second.memory_bytes == USABLE_MIB * MIB


@pytest.mark.parametrize("function", ["*", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetTotalEccErrors"])
def test_a_lost_gpu_keeps_its_name_and_hides_no_other(nvml: StubNvml, reader: Readers, function: str) -> None:
    nvml.write(gpu(0), gpu(1), gpu(2))
    one = reader()
    before = one.look().gpus
    nvml.write(gpu(0), gpu(1), gpu(2), f"fail {function} 15 {uuid(1)}")
    first, lost, last = one.look().gpus
    assert (first, last) == (before[0], before[2])
    assert (lost.uuid, lost.name, lost.memory_bytes) == (uuid(1), H100, USABLE_MIB * MIB)
    assert (lost.healthy, lost.free_bytes) == (False, 0)
    assert "fallen off the bus" in lost.fault
    nvml.write(gpu(0), gpu(1), gpu(2))
    assert one.look().gpus == before


def test_a_gpu_lost_before_the_first_look_is_told(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(gpu(0), gpu(1), f"fail * 15 {uuid(0)}")
    lost, well = reader().look().gpus
    assert (lost.uuid, lost.index, lost.healthy) == ("unreadable-0", 0, False)
    assert well.healthy


def test_the_only_gpu_lost(nvml: StubNvml, reader: Readers) -> None:
    one = reader()
    for code in (15, 999):
        nvml.write(gpu(0))
        assert one.look().gpus[0].healthy
        nvml.write(gpu(0), f"fail * {code}")
        for found in (one.look(), one.look()):
            assert [(g.uuid, g.healthy) for g in found.gpus] == [(uuid(0), False)]
            assert not found.problem


def test_gpus_that_changed_places_are_not_told_twice(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(gpu(0), gpu(1))
    one = reader()
    one.look()
    nvml.write("generation 2", gpu(1), gpu(0), f"fail * 15 {uuid(0)}")
    assert [(g.uuid, g.healthy) for g in one.look().gpus] == [(uuid(1), True), ("unreadable-1", False)]


def test_a_gpu_that_others_may_open_only_is_left_out(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(gpu(0), gpu(1), f"fail nvmlDeviceGetHandleByIndex_v2 4 {uuid(0)}")
    assert [(g.uuid, g.index) for g in reader().look().gpus] == [(uuid(1), 1)]
    nvml.write(gpu(0), gpu(1), "fail nvmlDeviceGetHandleByIndex_v2 4")
    found = reader().look()
    assert (found.gpus, found.problem.partition(":")[0]) == ((), "insufficient permissions")


# --- no driver, or none that answers ---


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    _loads(monkeypatch, refuses(f"{LIBRARY}: cannot open shared object file: No such file or directory"))
    assert GpuReader(environ={}).look() == Inventory(problem=ABSENT, absent=True)


def test_a_library_that_comes_later_is_found(nvml: StubNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.write(gpu(0))
    one = GpuReader(environ={})
    with monkeypatch.context() as patch:
        _loads(patch, refuses(f"{LIBRARY}: cannot open shared object file: No such file or directory"))
        assert one.look().absent
    assert len(one.look().gpus) == 1
    one.close()


@pytest.mark.parametrize("reason", [f"{LIBRARY}: wrong ELF class: ELFCLASS32", "libother.so: cannot open shared"])
def test_a_broken_library_is_no_missing_one(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    _loads(monkeypatch, refuses(reason))
    found = GpuReader(environ={}).look()
    assert not found.absent
    assert reason in found.problem


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (4, "/dev/nvidia*"),
        (9, "sudo modprobe nvidia"),
        (13, "too old"),
        (17, "The operating system has blocked the request"),
        (18, "driver/library version mismatch"),
        (999, "Unknown Error"),
        (1234, "An error of the stub"),
    ],
)
def test_init_fails_until_it_does_not(nvml: StubNvml, reader: Readers, code: int, said: str) -> None:
    nvml.write(gpu(0), f"fail nvmlInitWithFlags {code}")
    one = reader()
    for found in (one.look(), one.look()):
        assert said in found.problem
        assert (found.gpus, found.absent) == ((), False)
    nvml.write(gpu(0))
    assert one.look() == Inventory(gpus=one.look().gpus, driver=DRIVER)


@pytest.mark.parametrize("unloaded", [True, False])
def test_driver_gone_and_back(nvml: StubNvml, reader: Readers, unloaded: bool) -> None:
    nvml.write(gpu(0))
    one = reader()
    before = one.look()
    if unloaded:
        nvml.unload()
        assert "not loaded" in one.look().problem
    nvml.write("generation 2", gpu(0))
    assert one.look() == before


@pytest.mark.parametrize("code", [1, 9])
def test_a_driver_that_goes_within_a_look_is_no_fault_of_a_gpu(nvml: StubNvml, reader: Readers, code: int) -> None:
    nvml.write(gpu(0), gpu(1), f"fail nvmlDeviceGetUUID {code} {uuid(1)}")
    found = reader().look()
    assert (found.gpus, bool(found.problem)) == ((), True)


def test_shut_down_by_another_and_closed_twice(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(gpu(0))
    one = reader()
    before = one.look()
    pynvml.nvmlShutdown()
    assert one.look() == before
    one.close()
    one.close()
    with pytest.raises(pynvml.NVMLError):
        pynvml.nvmlDeviceGetCount()
    assert one.look() == before


def test_eight_threads_at_once(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(*(gpu(i) for i in range(4)))
    one, together = reader(), threading.Barrier(8)

    def looks(thread: int) -> list[Inventory]:
        together.wait()
        found = []
        for turn in range(20):
            if thread == turn % 8:
                one.close()
            found.append(one.look())
        return found

    with ThreadPoolExecutor(8) as pool:
        seen = [found for each in pool.map(looks, range(8)) for found in each]
    assert len(seen) == 160
    assert set(map(repr, seen)) == {repr(one.look())}


def test_a_driver_that_hangs_holds_no_caller(nvml: StubNvml, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    nvml.write(gpu(0), f"hang nvmlDeviceGetCount_v2 {fifo}")
    one = GpuReader(environ={}, patience_s=0.05)
    for found in (one.look(), one.look()):
        assert found == Inventory(problem=STUCK)
    one.close()
    nvml.write(gpu(0))
    with fifo.open("w"):  # opens only while the driver waits, and lets it go
        pass
    until(lambda: one.look().gpus)
    one.close()


def test_no_thread_left_to_ask_with(nvml: StubNvml, reader: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.write(gpu(0))
    one = reader()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert "can't start new thread" in one.look().problem
    assert len(one.look().gpus) == 1


# --- CUDA_VISIBLE_DEVICES ---

BOARDS = tuple(
    Board(index=i, uuid=name, gpus=tuple(Gpu(uuid=u, memory_bytes=1, free_bytes=1, mig=u[0] == "M") for u in gpus))
    for i, name, gpus in (
        (0, "GPU-aa01", ("GPU-aa01",)),
        (1, "GPU-aa02", ("GPU-aa02",)),
        (2, "GPU-bb03", ("MIG-cc04", "MIG-cd05")),
        (4, "GPU-bb06", ("GPU-bb06",)),
        (5, "GPU-ee07", ()),
    )
)
EVERY = "aa01 aa02 cc04 cd05 bb06"


@pytest.mark.parametrize(
    ("listed", "left"),
    [
        (None, EVERY),
        ("", ""),
        (" ", ""),
        ("0", "aa01"),
        ("1,0", "aa01 aa02"),
        (" 1 , 0 ", "aa01 aa02"),
        ("0,0", "aa01"),
        ("4", "bb06"),
        ("3", ""),
        ("0,3,1", "aa01"),
        ("0,-1,1", "aa01"),
        ("-1", ""),
        ("0,,1", "aa01"),
        ("²", ""),
        ("NoDevFiles", ""),
        ("all", ""),
        ("GPU-aa01", "aa01"),
        ("aa01", ""),
        ("GPU-aa", ""),
        ("GPU-aa01,GPU-aa,4", "aa01"),
        ("GPU-bb06,GPU-none,0", "bb06"),
        ("MIG-cc04", "cc04"),
        ("MIG-cc04,MIG-cd05,0", "aa01 cc04 cd05"),
        ("MIG-c", ""),
        ("MIG-cd", "cd05"),
        ("2", "cc04 cd05"),
        ("GPU-bb03", "cc04 cd05"),
        ("5,0", "aa01"),
    ],
)
def test_cuda_visible_devices(listed: str | None, left: str) -> None:
    assert " ".join(gpu.uuid[4:] for gpu in visible(BOARDS, listed)) == left


def test_the_operator_limits_us(nvml: StubNvml, reader: Readers) -> None:
    nvml.write(*(gpu(i) for i in range(4)))
    found = reader(CUDA_VISIBLE_DEVICES="3,GPU-1").look()
    assert ([g.index for g in found.gpus], found.hidden) == ([1, 3], 2)
    found = reader(CUDA_VISIBLE_DEVICES="").look()
    assert (found.gpus, found.hidden, found.problem) == ((), 4, "")


# --- as users see it: a process of its own, the library found by the loader ---


def doctor(nvml: StubNvml, **environ: str) -> list[tuple[str, str, str]]:
    """Its findings about GPUs and the driver."""
    argv = (sys.executable, "-m", "orchestrator", "doctor", "--json")
    env = {**os.environ, **nvml.env(), "HF_ENDPOINT": "http://127.0.0.1:9", **environ}
    done = subprocess.run(argv, cwd=nvml.file.parent, env=env, capture_output=True, text=True, timeout=60)
    findings = [(f["level"], f["what"], f["remedy"]) for f in json.loads(done.stdout)["data"]]
    about = [finding for finding in findings if "GPU" in finding[1] or "NVIDIA" in finding[1]]
    assert done.returncode == any(level == "FAIL" for level, _, _ in findings)
    return about


def test_doctor_lists_gpus(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    nvml.write(gpu(0), gpu(1, used_mib=40_000), gpu(2))
    (found,) = doctor(nvml, CUDA_VISIBLE_DEVICES="0,1")
    sizes = f"{H100} (84.9 GB free of 84.9), {H100} (43.0 GB free of 84.9)"
    assert found == ("OK", f"2 GPUs: {sizes}; driver {DRIVER}; CUDA_VISIBLE_DEVICES hides 1", "")


def test_doctor_fails_for_a_sick_gpu_and_says_why(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    nvml.write(gpu(0), gpu(1, pending=1))
    found = doctor(nvml)
    assert [level for level, _, _ in found] == ["OK", "FAIL"]
    assert found[0][1] == f"1 GPU: {H100} (84.9 GB free of 84.9); driver {DRIVER}"
    assert found[1][1] == f"GPU 1 ({H100}) is not used"
    assert "reboot" in found[1][2]


def test_doctor_fails_for_a_driver_that_can_not_be_read(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    nvml.write(gpu(0), "fail nvmlInitWithFlags 18")
    ((level, what, remedy),) = doctor(nvml)
    assert (level, what) == ("FAIL", "the GPUs can't be read")
    assert "reboot" in remedy


def test_doctor_warns_when_there_is_no_gpu_for_us(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    nvml.write(gpu(0))
    ((level, what, _),) = doctor(nvml, CUDA_VISIBLE_DEVICES="-1")
    assert (level, what) == ("WARN", f"no NVIDIA GPU; driver {DRIVER}; CUDA_VISIBLE_DEVICES hides 1")


def test_doctor_warns_when_there_is_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _loads(monkeypatch, refuses(f"{LIBRARY}: cannot open shared object file: No such file or directory"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    remedy = "engines run on the CPU, which is slow"
    assert Finding(level=Level.WARN, what="no NVIDIA driver", remedy=remedy) in list(examine(None))
