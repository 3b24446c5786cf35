"""`orchestrator chat` in a pipe, its client and its history."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli import chat_history
from orchestrator.cli.chat import HttpTalker, nearest
from orchestrator.cli.chat_history import PromptHistory
from orchestrator.cli.live import Live
from orchestrator.errors import OrchestratorError
from tests.stub import WAIT_S, Service, model_table, service
from ui.tui.conversation import Finished, Heard, Message, Piece, Waiting


def chat(running: Service, model: str, prompt: bytes, *args: str) -> subprocess.CompletedProcess[bytes]:
    argv = (sys.executable, "-m", "orchestrator", "chat", model, "--url", running.url, *args)
    env = {**os.environ, "HOME": str(running.folder)}
    done = subprocess.run(argv, input=prompt, capture_output=True, timeout=WAIT_S, cwd=running.folder, env=env)
    assert b"Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    failing = model_table("acme/broken", "--fail-after-s", "0", "--fail-line", "ValueError: a bad day")
    echo = model_table("acme/echo", "--start-s", "1", "--tokens", "9")
    slow = model_table("acme/slow", "--start-s", "2.5")
    with service(tmp_path_factory.mktemp("chat"), echo, failing, slow, head="[activator]\nhold_max_s = 1") as found:
        yield found


def test_a_pipe_asks_and_gets_the_answer_alone(running: Service) -> None:
    done = chat(running, "acme/echo", "wie heißt du?\nsag!".encode())
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().startswith("echo: wie heißt du?\nsag!")
    assert done.stdout.endswith(b"\n")
    assert not list(running.folder.glob(".local/**/chat-history"))


def test_a_start_longer_than_the_service_holds_is_waited_for(running: Service) -> None:
    assert chat(running, "acme/slow", b"hi").stdout.startswith(b"echo: hi")


@pytest.mark.parametrize(
    ("model", "prompt", "said"),
    [
        ("acme/ekho", b"hi", "no model 'acme/ekho'; did you mean acme/echo"),
        ("acme/broken", b"hi", "a bad day"),
        ("acme/echo", b" \n", "the prompt on stdin is empty"),
        ("acme/echo", b"x" * (4 * 2**20 + 1), "the prompt on stdin is longer than 4 MiB"),
    ],
)
def test_what_fails_is_1_and_one_line(running: Service, model: str, prompt: bytes, said: str) -> None:
    done = chat(running, model, prompt)
    assert done.returncode == 1
    assert said in done.stderr.decode() and len(done.stderr.splitlines()) == 1
    assert done.stdout == b""


def test_what_is_heard_over_a_cold_start(running: Service) -> None:
    async def hear() -> list[Heard]:
        async with Live(running.url, None) as live:
            await live.post("/api/models/acme/echo/stop")
            talker = HttpTalker(live, "acme/echo")
            return [heard async for heard in talker.answer([Message("user", "hi")])]

    heard = asyncio.run(hear())
    kinds = [type(each) for each in heard]
    assert kinds == sorted(kinds, key=[Waiting, Piece, Finished].index), "first it waits, then it answers"
    assert kinds.count(Finished) == 1 and Piece in kinds
    assert heard[-1] == Finished(prompt_tokens=7, completion_tokens=9, reason="stop")


def test_a_missing_key_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "auth.keys.json").write_text('{"keys": []}')
    with service(tmp_path, model_table("acme/echo")) as found:
        done = chat(found, "acme/echo", b"hi")
    assert done.returncode == 1
    assert "set ORCHESTRATOR_API_KEY to a key with the scope realtime" in done.stderr.decode()


@pytest.mark.parametrize(
    ("model", "known", "said"),
    [
        ("qwen3-0.6b", ["Qwen/Qwen3-0.6B", "acme/echo"], "did you mean Qwen/Qwen3-0.6B?"),
        ("nothing", ["a/b", "c/d"], "there are a/b, c/d"),
        ("nothing", [f"m/{n}" for n in range(9)], "there are m/0, m/1, m/2, m/3, m/4 and 4 more"),
        ("nothing", [], "the service has none that this key may use"),
    ],
)
def test_the_nearest_names(model: str, known: list[str], said: str) -> None:
    assert nearest(model, known) == said


def test_the_history_is_bounded_private_and_forgiving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_history, "PROMPTS_MAX", 3)
    history = PromptHistory.of_user(remember=True, environ={"XDG_STATE_HOME": str(tmp_path)})
    assert history.past() == []
    for prompt in ("one", "two\nlines", "three", "four"):
        history.keep(prompt)
    assert history.past() == ["two\nlines", "three", "four"]
    path = tmp_path / "orchestrator/chat-history"
    assert [each.name for each in path.parent.iterdir()] == ["chat-history"]
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b'not json\n"fine"\n\xff\n3\n')
    assert history.past() == ["fine"]
    monkeypatch.setattr(chat_history, "FILE_BYTES_MAX", 20)
    history.keep("x" * 12)
    history.keep("y" * 12)
    assert history.past() == ["y" * 12]
    history.keep("z" * 30)
    assert history.past() == []


def test_no_history_where_none_is_wanted_or_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    none = PromptHistory.of_user(remember=False, environ={"XDG_STATE_HOME": str(tmp_path)})
    blocked = PromptHistory.of_user(remember=True, environ={"XDG_STATE_HOME": str(tmp_path / "file")})
    for history in (none, blocked):
        history.keep("secret")
        assert history.past() == []
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_line_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch, running: Service) -> None:
    monkeypatch.setattr("orchestrator.cli.live.LINE_BYTES_MAX", 5)

    async def read() -> None:
        async with Live(running.url, None) as live:
            async for _ in live.lines("GET", "/health"):
                pass

    with pytest.raises(OrchestratorError, match="a line from"):
        asyncio.run(read())
