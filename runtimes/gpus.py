"""The NVIDIA GPUs of this machine, as NVML (libnvidia-ml.so.1, a part of the driver) tells of them.

Blocking, but a matter of milliseconds: the library stays initialised between looks, which also keeps the driver from
putting idle GPUs away. For the same reason the kernel's modules can't be unloaded before `GpuReader.close`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from ctypes import CDLL
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pynvml

from orchestrator.gpu import Gpu

LIBRARY = "libnvidia-ml.so.1"
ABSENT = f"no NVIDIA driver ({LIBRARY}) on this machine"
STUCK = "the NVIDIA driver does not answer: see `dmesg`; a GPU that hangs needs a reboot"
RESET = "reboot, or stop all that uses it, the orchestrator too, and `nvidia-smi --gpu-reset`"
_DRIVER_GONE = {pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}
"""Said of one GPU, these are true of all."""
_SICK = {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED}
_FAULTS = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "it has fallen off the bus: reboot the machine",
    pynvml.NVML_ERROR_RESET_REQUIRED: f"it has failed: {RESET}",
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: "its power cables are not attached",
    pynvml.NVML_ERROR_IRQ_ISSUE: "its interrupts do not arrive: see `dmesg`",
}
_PROBLEMS = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the NVIDIA driver is installed but not loaded: `sudo modprobe nvidia`, or reboot after an update; "
        "a container must be given the GPUs"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "driver/library version mismatch, the NVIDIA driver was updated while the old one runs: "
        "reboot, or reload the nvidia modules and start again"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "insufficient permissions: give this user read and write access to /dev/nvidia* (groups video and render)"
    ),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the NVIDIA driver is too old: update it",
    pynvml.NVML_ERROR_UNINITIALIZED: "the NVIDIA driver was reloaded and is not ready: look again",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """One look at the GPUs."""

    gpus: tuple[Gpu, ...] = ()
    """Those that CUDA_VISIBLE_DEVICES leaves us, unhealthy ones too, in NVML's order."""
    problem: str = ""
    """Why GPUs can't be read, and what helps; empty when they can."""
    absent: bool = False
    """There is no NVIDIA driver at all: the problem is no failure."""
    driver: str = ""
    hidden: int = 0
    """How many more there are that CUDA_VISIBLE_DEVICES withholds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """One GPU as it sits in the machine, and what of it can be leased: itself, or its MIG slices."""

    index: int
    uuid: str
    gpus: tuple[Gpu, ...]


class GpuReader:
    """Keeps NVML initialised and reads it. Any thread may call; one at a time is served."""

    def __init__(self, *, environ: Mapping[str, str], patience_s: float = 5.0) -> None:
        self._listed = environ.get("CUDA_VISIBLE_DEVICES")
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._started = False
        self._known: dict[int, Board] = {}
        """The boards as they were last read well, so that a lost one keeps its name."""

    def look(self) -> Inventory:
        """The GPUs as they are now. Never raises. Waits `patience_s` at most for other callers, and as long again for
        the driver: one that hangs, as a sick GPU can make it, keeps a daemon thread and no caller."""
        if not self._lock.acquire(timeout=self._patience_s):
            return Inventory(problem=STUCK)
        answer: Future[Inventory] = Future()
        try:
            threading.Thread(target=self._answer, args=(answer,), name="nvml", daemon=True).start()
        except RuntimeError as error:  # this process may have no more threads
            self._lock.release()
            return Inventory(problem=f"the GPUs can't be asked: {error}")
        try:
            return answer.result(self._patience_s)
        except TimeoutError:
            return Inventory(problem=STUCK)

    def close(self) -> None:
        """Let go of the driver. Idempotent; a later look starts anew."""
        if self._lock.acquire(timeout=self._patience_s):
            try:
                self._stop()
            finally:
                self._lock.release()

    def _answer(self, answer: Future[Inventory]) -> None:
        """In a thread, which gives back the caller's lock when the driver has answered."""
        try:
            answer.set_result(self._look())
        except pynvml.NVMLError as error:
            answer.set_result(_unreadable(error))
        except BaseException as error:
            answer.set_exception(error)
        finally:
            self._lock.release()

    def _look(self) -> Inventory:
        """1. Read with NVML as it is; GPUs that are known to be lost are an answer too. 2. Where nothing else answers,
        as after a reload of the driver, start it anew and read once more."""
        if self._started:  # 1
            with contextlib.suppress(pynvml.NVMLError):
                well, failed = _boards()
                if well or all(error.value in _SICK for error in failed.values()):
                    return self._inventory(well, failed)
            self._stop()
        pynvml.nvmlInit()  # 2
        self._started = True
        return self._inventory(*_boards())

    def _stop(self) -> None:
        if self._started:
            self._started = False
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _inventory(self, well: dict[int, Board], failed: dict[int, pynvml.NVMLError]) -> Inventory:
        """A GPU that this user may not open is another's; where that is every one, it is an error."""
        found = {board.uuid for board in well.values()}
        elsewhere = {index: board for index, board in self._known.items() if board.uuid not in found}
        self._known = {**elsewhere, **well}
        sick = {index: error for index, error in failed.items() if error.value != pynvml.NVML_ERROR_NO_PERMISSION}
        if failed and not well and not sick:
            raise next(iter(failed.values()))
        boards = (*well.values(), *(_sick(index, self._known.get(index), error) for index, error in sick.items()))
        boards = tuple(sorted(boards, key=lambda board: board.index))
        gpus = visible(boards, self._listed)
        hidden = sum(len(board.gpus) for board in boards) - len(gpus)
        return Inventory(gpus=gpus, driver=_asked(pynvml.nvmlSystemGetDriverVersion) or "", hidden=hidden)


def visible(boards: tuple[Board, ...], listed: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; all where it is not set. As with CUDA the list ends at the first
    entry that names none, or more than one. Indices are NVML's (nvidia-smi's), which CUDA shares where
    CUDA_DEVICE_ORDER=PCI_BUS_ID or all GPUs are alike; the index or uuid of a divided GPU names all its slices."""
    every = tuple(gpu for board in boards for gpu in board.gpus)
    if listed is None:
        return every
    chosen: set[str] = set()
    for entry in listed.split(","):
        named = _named(boards, entry.strip())
        if named is None:
            break
        chosen |= {gpu.uuid for gpu in named}
    return tuple(gpu for gpu in every if gpu.uuid in chosen)


def _named(boards: tuple[Board, ...], entry: str) -> tuple[Gpu, ...] | None:
    """What one entry names; None where that is nothing, or not sure."""
    found: list[tuple[Gpu, ...]] = []
    if entry.isascii() and entry.isdigit():
        found = [board.gpus for board in boards if board.index == int(entry)]
    elif entry.startswith("GPU-"):
        found = [board.gpus for board in boards if board.uuid.startswith(entry)]
    elif entry.startswith("MIG-"):
        found = [(gpu,) for board in boards for gpu in board.gpus if gpu.mig and gpu.uuid.startswith(entry)]
    return found[0] if len(found) == 1 else None


def _unreadable(error: pynvml.NVMLError) -> Inventory:
    """NVML can't be started, or not be read as a whole."""
    if error.value != pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return Inventory(problem=_PROBLEMS.get(error.value, f"NVML: {error}: see `nvidia-smi` and `dmesg`"))
    try:  # pynvml says the same of a library that is there but can't be loaded
        CDLL(LIBRARY)
    except OSError as cause:
        if not str(cause).startswith(f"{LIBRARY}: cannot open shared object file: No such file"):
            return Inventory(problem=f"{LIBRARY} can't be loaded ({cause}): install the NVIDIA driver again")
    return Inventory(problem=ABSENT, absent=True)


def _boards() -> tuple[dict[int, Board], dict[int, pynvml.NVMLError]]:
    """By index: the boards that answer, and what was said of the others."""
    well: dict[int, Board] = {}
    failed: dict[int, pynvml.NVMLError] = {}
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            well[index] = _board(index)
        except pynvml.NVMLError as error:
            if error.value in _DRIVER_GONE:
                raise
            failed[index] = error
    return well, failed


def _board(index: int) -> Board:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    uuid = str(pynvml.nvmlDeviceGetUUID(handle))
    fault = _fault(handle)
    mode = _asked(pynvml.nvmlDeviceGetMigMode, handle)
    if mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
        return Board(index=index, uuid=uuid, gpus=tuple(_slices(index, handle, fault)))
    return Board(index=index, uuid=uuid, gpus=(_gpu(handle, index=index, fault=fault, mig=False),))


def _slices(index: int, handle: object, fault: str) -> Iterator[Gpu]:
    """The MIG instances of a divided GPU; they share its faults."""

    def part(slot: int) -> Gpu:
        return _gpu(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot), index=index, fault=fault, mig=True)

    for slot in range(_asked(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        gpu: Gpu | None = _asked(part, slot)
        if gpu is not None:  # else the slot is empty, another's, or just given up
            yield gpu


def _gpu(handle: object, *, index: int, fault: str, mig: bool) -> Gpu:
    memory_bytes, free_bytes = _memory(handle)
    return Gpu(
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        memory_bytes=memory_bytes,
        free_bytes=max(0, min(free_bytes, memory_bytes)),
        healthy=not fault,
        fault=fault,
        name=_asked(pynvml.nvmlDeviceGetName, handle) or "",
        index=index,
        mig=mig,
    )


def _sick(index: int, known: Board | None, error: pynvml.NVMLError) -> Board:
    """A board that does not answer, under the names it had when it did."""
    fault = _FAULTS.get(error.value, f"it can't be read: {error}")
    if known is not None and known.gpus:
        lost = (replace(gpu, free_bytes=0, healthy=False, fault=fault) for gpu in known.gpus)
        return replace(known, gpus=tuple(lost))
    uuid = known.uuid if known is not None else f"unreadable-{index}"
    gpu = Gpu(uuid=uuid, memory_bytes=0, free_bytes=0, healthy=False, fault=fault, index=index)
    return Board(index=index, uuid=uuid, gpus=(gpu,))


def _memory(handle: object) -> tuple[int, int]:
    """Bytes that programs can have, and of these what none has. The driver's own are neither: CUDA counts alike."""
    memory = _asked(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if memory is not None:
        return memory.total - memory.reserved, memory.free
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)  # drivers before 510; what is reserved counts as used
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_NOT_SUPPORTED:
            raise
        shared = psutil.virtual_memory()  # it has none of its own: GB10 (DGX Spark), Jetson
        return shared.total, shared.available
    return memory.total, memory.free


def _fault(handle: object) -> str:
    """Why a GPU that answers should not be used; empty when it is well, or has no such counters."""
    uncorrected = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
    errors = _asked(pynvml.nvmlDeviceGetTotalEccErrors, handle, *uncorrected)
    _, _, rows_wait, rows_failed = _asked(pynvml.nvmlDeviceGetRemappedRows, handle) or (0, 0, 0, 0)
    if rows_failed:
        return "its memory is worn out, a bad row can't be replaced any more: replace the GPU"
    if rows_wait:
        return f"bad memory rows wait to be replaced: {RESET}"
    if _asked(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle):
        return f"bad memory pages wait to be retired: {RESET}"
    return f"memory errors that could not be corrected (ECC), {errors} of them: {RESET}" if errors else ""


def _asked(ask: Callable[..., Any], *args: object) -> Any:
    """The answer to what not every GPU, driver or user can be told; None for these. A GPU that is lost still raises."""
    try:
        return ask(*args)
    except pynvml.NVMLError as error:
        if error.value in _SICK | _DRIVER_GONE:
            raise
        return None
