"""How tests configure and run a real service whose models are stub engines."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

STUB = Path(__file__).parent / "engines" / "stub.py"
WAIT_S = 30.0


def until(condition: Callable[[], Any], timeout_s: float = WAIT_S, every_s: float = 0.02) -> Any:
    """The first true value of `condition`, asked again and again; fails when none comes in time."""
    ends_at = time.monotonic() + timeout_s
    while time.monotonic() < ends_at:
        if value := condition():
            return value
        time.sleep(every_s)
    raise AssertionError(f"not within {timeout_s} s: {condition}")


def model_table(name: str, *options: str, **settings: Any) -> str:
    """One ``[models."…"]`` table with the stub as its engine."""
    command = [sys.executable, "-S", str(STUB), "--host", "{host}", "--port", "{port}", *options]
    lines = [f'[models."{name}"]', 'engine = "command"', f"command = {json.dumps(command)}"]
    return "\n".join(lines + [f"{key} = {json.dumps(value)}" for key, value in settings.items()]) + "\n"


def vllm_cache(folder: Path) -> Path:
    """A cache folder whose vLLM is the stub: for `ORCHESTRATOR_CACHE`, so that its adapter can be tried over it."""
    program = folder / "engines" / "vllm-stub" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" -S "{STUB}" "$@"\n')
    program.chmod(0o755)
    (program.parent.parent / "ready").touch()
    return folder


class Running:
    """A command of ours that serves; whoever inherits starts it."""

    process: subprocess.Popen[bytes]
    errors: Path
    """Where its stderr goes."""
    url: str

    def listening(self) -> str:
        """Its URL, once it answers."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().strip()
        assert line.startswith("listening on "), self.log()
        return line.removeprefix("listening on ")

    def client(self, **headers: str) -> httpx.Client:
        """A client of its own."""
        return httpx.Client(base_url=self.url, timeout=WAIT_S, headers=headers)

    def log(self) -> str:
        """What it wrote on stderr."""
        return self.errors.read_text("utf-8", "replace")

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.process.wait(WAIT_S)

    def close(self) -> None:
        """End it by whatever means."""
        self.process.kill()
        self.process.wait(WAIT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


class Service(Running):
    """A running ``orchestrator serve`` in a folder of its own."""

    port = 0
    """Where it listens; 0: on another one at each start."""

    def __init__(self, folder: Path, config: str, **environ: str) -> None:
        self.folder = folder
        (folder / "orchestrator.toml").write_text(config)
        self.errors = folder / "service.log"
        self._environ = {**os.environ, **environ}
        self.process = self._spawn()
        self.url = self.listening()

    def _spawn(self) -> subprocess.Popen[bytes]:
        argv = (sys.executable, "-m", "orchestrator", "serve", "--port", str(self.port))
        with self.errors.open("ab") as log:
            return subprocess.Popen(argv, cwd=self.folder, env=self._environ, stdout=subprocess.PIPE, stderr=log)

    def restart(self, **environ: str) -> None:
        """Start anew on the same folder; the old process must have ended."""
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._environ.pop("CRASH_AT", None)
        self._environ.update(environ)
        self.process = self._spawn()
        self.url = self.listening()

    def model(self, name: str) -> dict[str, Any]:
        """The control API's view of a model."""
        with self.client() as client:
            found: dict[str, Any] = client.get(f"/api/models/{name}").json()
        return found

    def phase(self, name: str) -> str:
        """The model's phase."""
        return str(self.model(name)["phase"])

    def engines(self) -> list[int]:
        """The pids of living engines that it started."""
        import psutil

        instance = (self.folder / "data" / "instance").read_text()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("ORCHESTRATOR_ENGINE_INSTANCE") == instance and process.status() != "zombie":
                    found.append(process.pid)
        return found

    def close(self) -> None:
        """End it by whatever means, engines too."""
        super().close()
        for pid in self.engines():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(pid), 9)  # vLLM's own children hide their environment


@contextlib.contextmanager
def service(folder: Path, *tables: str, head: str = "", **environ: str) -> Iterator[Service]:
    """A service with these model tables."""
    running = Service(folder, head + "\n" + "\n".join(tables), **environ)
    try:
        yield running
    finally:
        running.close()


def posted(record: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` POSTs in a stub's record; it writes them a moment after its answer."""

    def lines() -> list[dict[str, Any]]:
        text = record.read_text() if record.exists() else ""
        found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in found if line["method"] == "POST"]

    found: list[dict[str, Any]] = until(lambda: len(lines()) >= count and lines())
    return found


def ask(model: str, text: str = "What is the capital of France?", **more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}
