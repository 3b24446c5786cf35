"""Sees to it that an embedder's folder is made ready, by a program of its own, and not too often when that fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import structlog

from orchestrator.errors import EmbedderUnavailable
from storage.embed.bert import Shape
from storage.embed.fetch import prepared

EXPECTED_S = 30.0
"""A download of 84 MB at 3 MB/s, and seconds of work."""
SOON_S = 5.0
TIMEOUT_S = 1800.0
FIRST_BACKOFF_S = 30.0
BACKOFF_MAX_S = 900.0
TAIL_LINES = 20
NEEDED_TO_RUN = ("onnxruntime", "tokenizers", "numpy")
NEEDED_TO_PREPARE = ("onnx",)

log = structlog.get_logger()


class Preparation:
    """Of the folder `target`, from the model in `folder`, or from the package index without one.

    Its methods are for one thread, the event loop's.
    """

    def __init__(
        self,
        target: Path,
        folder: Path | None,
        *,
        environ: dict[str, str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._folder = folder
        self._environ = environ
        self._now = now
        self._shape = prepared(target)
        self._under_way: Future[Shape] | None = None
        self._began_at = 0.0
        self._failures = 0
        self._failure = ""
        self._not_before = 0.0
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self.progress = ""
        """What is being done, for people; empty: nothing."""

    @property
    def shape(self) -> Shape | None:
        """The model's, once it is ready."""
        return self._shape

    def begin(self) -> Future[Shape]:
        """What is under way, begun now if nothing was. It fails with `EmbedderUnavailable`, as does this when the last
        attempt did and it is too early for another. Does not block."""
        if self._under_way is not None:
            return self._under_way
        if self._closed:
            raise EmbedderUnavailable("the embedder was closed", retry_after_s=SOON_S)
        if (left_s := self._not_before - self._now()) > 0:
            raise EmbedderUnavailable(self._failure, retry_after_s=left_s)
        future: Future[Shape] = Future()
        self._under_way, self._began_at = future, self._now()
        threading.Thread(target=self._run, args=(future,), name="embedder-preparation", daemon=True).start()
        return future

    def left_s(self) -> float:
        """How long what is under way may still take: an estimate."""
        return max(SOON_S, EXPECTED_S - (self._now() - self._began_at))

    def spoil(self, reason: str) -> None:
        """What was prepared can't be used: forget it, and make it anew at the next `begin` that is not too early."""
        shutil.rmtree(self._target, ignore_errors=True)
        self._shape = None
        self._fail(reason)

    def close(self) -> None:
        """End what is under way. Does not block."""
        self._closed = True
        if self._process is not None:
            _end(self._process)

    def _run(self, future: Future[Shape]) -> None:
        try:
            lines, code = self._make()
        except OSError as error:
            lines, code = [f"the preparation could not be started: {error}"], 1
        shape = prepared(self._target) if code == 0 else None
        self.progress = ""
        if shape is None:
            self._fail(lines[-1] if lines else f"the preparation of the embedder ended with exit code {code}")
            log.warning("embedder_not_prepared", output="\n".join(lines), attempts=self._failures)
            self._under_way = None
            future.set_exception(EmbedderUnavailable(self._failure, retry_after_s=self._not_before - self._now()))
            return
        self._failures, self._shape, self._under_way = 0, shape, None
        log.info("embedder_prepared", seconds=round(self._now() - self._began_at, 1))
        future.set_result(shape)

    def _make(self) -> tuple[list[str], int]:
        """Run the program; the last lines that it said, and its exit code."""
        argv = [sys.executable, "-m", "storage.embed.fetch", str(self._target)]
        argv += [str(self._folder)] if self._folder else []
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environ,
            start_new_session=True,  # so that its pip ends with it
        ) as process:
            self._process = process
            if self._closed:
                _end(process)
            timer = threading.Timer(TIMEOUT_S, _end, (process,))
            timer.start()
            assert process.stdout is not None
            lines = self._follow(process.stdout)
            timer.cancel()
        self._process = None
        return lines, process.returncode

    def _follow(self, output: IO[str]) -> list[str]:
        lines: list[str] = []
        for line in output:
            self.progress = line.strip()
            if not lines or line.strip() != lines[-1]:
                lines = [*lines[-TAIL_LINES + 1 :], line.strip()]
        return lines

    def _fail(self, reason: str) -> None:
        self._failures += 1
        self._failure = reason
        backoff_s = min(FIRST_BACKOFF_S * 2 ** (self._failures - 1), BACKOFF_MAX_S)
        self._not_before = self._now() + backoff_s


def missing_packages(*, prepared: bool) -> str:
    """What must be installed before an embedder can run here, as a sentence; empty: nothing."""
    needed = NEEDED_TO_RUN if prepared else NEEDED_TO_RUN + NEEDED_TO_PREPARE
    missing = [name for name in needed if find_spec(name) is None]
    if not missing:
        return ""
    return f"the embedded model needs {', '.join(missing)}: pip install 'orchestrator[documents]'"


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
