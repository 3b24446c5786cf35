"""The first run, told on the terminal: from nothing to a real answer, and back to nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.cli.remote import Remote, progress_line
from orchestrator.config import cache_dir
from orchestrator.demo.engine import DISK_BYTES, DOWNLOAD_BYTES, prepare_engine
from orchestrator.demo.weights import MODEL, prepare_weights
from orchestrator.steps import Step, StepFailed
from runtimes.engines.vllm import find_vllm

QUESTION = "What is the capital of France?"
IDLE_TIMEOUT_S = 10
LISTEN_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 900.0
GONE_TIMEOUT_S = IDLE_TIMEOUT_S + 60.0
REDRAW_S = 0.25
PLAIN_LINE_S = 5.0


def run_demo(*, keep: bool) -> int:
    """Prepare, start, ask, answer, wait until the engine is gone. Returns the exit code. Raises `OrchestratorError`."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    cache = cache_dir(os.environ)
    _say_what_comes(console, cache)
    with _steps(console) as report:
        vllm = prepare_engine(cache, report)
        source = prepare_weights(cache, vllm.python, report)
    with tempfile.TemporaryDirectory(prefix="orchestrator-demo-") as folder:
        Path(folder, "orchestrator.toml").write_text(configuration(source), "utf-8")
        with _service(Path(folder), console) as url:
            _ask_cold(console, url)
            _ask_and_watch(console, url)
            if keep:
                console.print(f"the service runs on at {url}; Ctrl-C ends it")
                _until(lambda: False, float("inf"))
            _watch_it_go(console, url)
    _say_how_to_go_on(console, source)
    return 0


def configuration(source: str) -> str:
    """The demo's whole ``orchestrator.toml``."""
    return f"""\
[server]
port = 0
[defaults]
idle_timeout_s = {IDLE_TIMEOUT_S}
[models."{MODEL}"]
engine = "vllm"
source = "{source}"
args = ["--max-model-len", "2048"]
"""


def _say_what_comes(console: Console, cache: Path) -> None:
    console.print("[bold]orchestrator demo[/]: a small real model on a real engine, from cold to an answer and back")
    if find_vllm(cache) is None:
        console.print(
            f"preparing vLLM for the CPU in {cache}: about {DOWNLOAD_BYTES / 1e9:.1f} GB to download,"
            f" {DISK_BYTES / 1e9:.1f} GB on disk, a few minutes; only this once"
        )


@contextmanager
def _steps(console: Console) -> Iterator[Callable[[Step], None]]:
    """Show steps: a line that moves on a terminal, a line each elsewhere."""
    title, began = "", time.monotonic()
    with console.status("…") as status:
        if not console.is_terminal:
            status.stop()

        def report(step: Step) -> None:
            nonlocal title
            if step.title != title:
                title = step.title
                console.print(f"  {title}  [dim]{time.monotonic() - began:.0f} s[/]")
            if console.is_terminal:
                status.update(f"[dim]{step.detail}[/]" if step.detail else "…")

        yield report


@contextmanager
def _service(folder: Path, console: Console) -> Iterator[str]:
    """A service of its own in `folder`; ends with its engines on exit, Ctrl-C included."""
    argv = (sys.executable, "-m", "orchestrator", "serve", "--config", "orchestrator.toml")
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
    try:
        url = _listening(process, folder)
        console.print(f"\n[bold]$ orchestrator serve[/]\nlistening on {url}")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _listening(process: subprocess.Popen[bytes], folder: Path) -> str:
    assert process.stdout is not None
    timer = threading.Timer(LISTEN_TIMEOUT_S, process.kill)
    timer.start()
    line = process.stdout.readline().decode().strip()
    timer.cancel()
    if not line.startswith("listening on "):
        said = (folder / "service.log").read_text("utf-8", "replace")[-2000:]
        raise StepFailed(f"the service did not start:\n{said}")
    return line.removeprefix("listening on ")


def _ask_cold(console: Console, url: str) -> None:
    """One plain request, to show what a client without patience is told."""
    import httpx

    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
    began = time.monotonic()
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    ms = (time.monotonic() - began) * 1000
    console.print(f'\n[bold]$ curl {url}/v1/chat/completions -d \'{{"model": "{MODEL}", …}}\'[/]')
    console.print(f"HTTP {answer.status_code} after {ms:.0f} ms")
    if answer.status_code == 503:
        console.print(f"Retry-After: {answer.headers['retry-after']}\n{answer.json()['error']['message']}")


def _ask_and_watch(console: Console, url: str) -> None:
    """The stock client, no options: it is told to come back, does, and is held until the engine answers."""
    import openai

    console.print(f"\n[bold]the stock OpenAI client asks:[/] {QUESTION}")
    result: list[str | Exception] = []

    def ask() -> None:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        try:
            messages: list[Any] = [{"role": "user", "content": QUESTION}]
            answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=40)
            result.append(answer.choices[0].message.content or "")
        except openai.OpenAIError as error:
            result.append(error)

    began = time.monotonic()
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    _watch(console, Remote(url, None), lambda _: bool(result), ANSWER_TIMEOUT_S)
    if not result or isinstance(result[0], Exception):
        view = Remote(url, None).get(f"/api/models/{MODEL}")
        raise StepFailed(f"no answer: {result[0] if result else 'timed out'}\n{view['error']}")
    console.print(f"[bold green]{result[0]}[/]  [dim]{time.monotonic() - began:.0f} s after the question[/]")


def _watch_it_go(console: Console, url: str) -> None:
    console.print(f"\nnobody asks any more: after {IDLE_TIMEOUT_S} idle seconds the engine leaves")
    gone = _watch(console, Remote(url, None), lambda view: not view["replicas"], GONE_TIMEOUT_S)
    if not gone:
        raise StepFailed("the engine did not leave")
    console.print("the engine is gone; its memory is free again")


def _watch(console: Console, remote: Remote, ended: Callable[[dict[str, Any]], bool], timeout_s: float) -> bool:
    """Show the model's phases until `ended`; each phase leaves a line."""
    shown, told_at, ends_at = "", 0.0, time.monotonic() + timeout_s
    with console.status("…") as status:
        if not console.is_terminal:
            status.stop()
        while time.monotonic() < ends_at:
            view = remote.get(f"/api/models/{MODEL}")
            if ended(view):
                return True
            now = time.monotonic()
            if view["phase"] != shown or (not console.is_terminal and now - told_at > PLAIN_LINE_S):
                shown, told_at = view["phase"], now
                console.print(f"  {_line(view)}")
            status.update(_line(view)) if console.is_terminal else None
            time.sleep(REDRAW_S)
    return False


def _line(view: dict[str, Any]) -> str:
    if view["phase"] == "ready" and view["stops_in_s"] is not None:
        return f"ready · idle, stops in {view['stops_in_s']:.0f} s"
    return progress_line(view)


def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    ends_at = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < ends_at:
        time.sleep(REDRAW_S)


def _say_how_to_go_on(console: Console, source: str) -> None:
    console.print(
        "\n[bold]to go on[/], put this into orchestrator.toml and run `orchestrator serve`:\n\n"
        f'  \\[models."{MODEL}"]\n  source = "{source}"\n\n'
        "then point any OpenAI client at http://127.0.0.1:8000/v1; `orchestrator ps` shows what runs"
    )
