"""Stands in for a machine's GPUs: builds the stub of libnvidia-ml.so.1 and writes the file that it reads."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.missing import missing

SOURCE = Path(__file__).with_name("stub.c")
LIBRARY = "libnvidia-ml.so.1"
DRIVER = "570.86.15"
H100 = "NVIDIA H100 80GB HBM3"
MIB = 2**20


def gpu(index: int, *, total_mib: int = 81_559, used_mib: int = 0, name: str = H100, **facts: str | int) -> str:
    """A line for one GPU; `facts` are further ``key=value``, see ``stub.c``."""
    return _device("gpu", uuid(index), name, {"total": total_mib, "used": used_mib, "reserved": 559, **facts})


def mig(index: int, slot: int, *, total_mib: int = 9_856, used_mib: int = 0, **facts: str | int) -> str:
    """A line for one MIG slice of the GPU above it."""
    name = f"{H100} MIG 1g.10gb"
    return _device("mig", slice_uuid(index, slot), name, {"total": total_mib, "used": used_mib, **facts})


def uuid(index: int) -> str:
    """The uuid of a GPU; two differ from the fifth character on."""
    return f"GPU-{index:x}0000000-0000-0000-0000-000000000000"


def slice_uuid(index: int, slot: int) -> str:
    """The uuid of a MIG slice."""
    return f"MIG-{index:x}{slot:x}000000-0000-0000-0000-000000000000"


class StubNvml:
    """A machine's GPUs, as a file in a folder of the test's own. Skips the test where there is no C compiler."""

    def __init__(self, folder: Path) -> None:
        self.library = built()
        self.file = folder / "nvml.txt"

    def write(self, *lines: str) -> None:
        """What the machine is from now on, for running programs too."""
        whole = self.file.with_suffix(".new")
        whole.write_text("\n".join((f"driver {DRIVER}", *lines)) + "\n")
        whole.replace(self.file)

    def unload(self) -> None:
        """As if the driver's modules were unloaded."""
        self.file.unlink()

    def env(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """What a program must be started with to find these GPUs and no others."""
        paths = (str(self.library.parent), environ.get("LD_LIBRARY_PATH", ""))
        return {"LD_LIBRARY_PATH": ":".join(filter(None, paths)), "STUB_NVML_FILE": str(self.file)}


@functools.cache
def built() -> Path:
    """The stub, built once for each state of its source and shared by all test processes."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        reason = "no C compiler for the stub of libnvidia-ml.so.1: `apt-get install gcc libc6-dev`, or set CC"
        missing(reason)
    state = hashlib.sha256(SOURCE.read_bytes() + platform.machine().encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"orchestrator-stub-nvml-{os.getuid()}-{state}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / LIBRARY
    if not library.exists():
        new = folder / f"{LIBRARY}.{os.getpid()}"
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(new), str(SOURCE)], check=True)
        new.replace(library)
    return library


def _device(kind: str, identity: str, name: str, facts: Mapping[str, str | int]) -> str:
    pairs = {"name": name.replace(" ", "_"), **facts}
    return " ".join((kind, identity, *(f"{key}={value}" for key, value in pairs.items())))
