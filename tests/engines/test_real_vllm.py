"""What the adapter relies on, asked of a real vLLM: the installed one, or the one that the demo prepares."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from orchestrator.config import cache_dir
from orchestrator.demo.engine import prepare_engine
from orchestrator.errors import PreflightFailed
from orchestrator.gpu import Grant
from orchestrator.model import Deployment, EngineKind
from runtimes.engines.vllm import VllmEngine
from runtimes.process import HOST, free_port, inherited
from tests.stub import until
from tests.tiny_model import write_tiny_model

START_S = 300.0
NAME = "acme/tiny"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


class Started:
    """A vLLM that was started on `folder` as our process runtime does."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.engine = VllmEngine(prepare_engine(cache_dir(os.environ), lambda step: None))
        deployment = Deployment(name=NAME, engine=EngineKind.VLLM, source=str(folder), args=args)
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        self._log = folder / "engine.log"
        argv = [
            part.replace("{host}", HOST).replace("{port}", str(port))
            for part in self.engine.argv(deployment, str(folder), Grant())
        ]
        env = {**inherited(os.environ), **self.engine.env(deployment)}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def healthy(self) -> bool:
        assert self.process.poll() is None, self.failure()
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def failure(self) -> str:
        return self.engine.failure(self.log(), self.process.poll())


@contextmanager
def started(folder: Path, *args: str) -> Iterator[Started]:
    running = Started(folder, *args)
    killer = threading.Timer(START_S, lambda: os.killpg(running.process.pid, signal.SIGKILL))
    killer.start()
    try:
        yield running
    finally:
        killer.cancel()
        if running.process.poll() is None:
            os.killpg(running.process.pid, signal.SIGKILL)
            running.process.wait(START_S)


def test_it_starts_tells_how_far_it_is_and_answers(tmp_path: Path) -> None:
    with started(write_tiny_model(tmp_path), "--max-model-len", "512") as running:
        until(running.healthy, START_S)
        text = running.log()
        body = {"model": NAME, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        answer = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] > 0, answer.text
        running.process.terminate()
        running.process.wait(60)
    seen = [running.engine.progress(text[:end]) for end in range(0, len(text) + 50, 50)]
    notes = list(dict.fromkeys(progress.note for progress in seen))
    assert notes[0] == "starting vLLM"
    assert notes[-1] == "starting the server", notes
    fractions = [progress.fraction or 0.0 for progress in seen]
    assert fractions == sorted(fractions)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--foo",), "error: unrecognized arguments: --foo"),
        (("--max-model-len", "4096"), "ValueError: User-specified max_model_len (4096) is greater than the derived"),
    ],
)
def test_it_fails_as_its_log_says(tmp_path: Path, args: tuple[str, ...], sentence: str) -> None:
    with started(write_tiny_model(tmp_path), *args) as running:
        running.process.wait(START_S)
        assert running.failure().startswith(sentence)


def test_what_preflight_refuses_does_not_start(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    with started(folder) as running:
        with pytest.raises(PreflightFailed, match="is too long"):
            running.engine.preflight(Deployment(name=NAME, engine=EngineKind.VLLM, source=str(folder)), str(folder))
        running.process.wait(START_S)
        assert "SafetensorError" in running.failure()
