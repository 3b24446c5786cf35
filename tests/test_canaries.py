"""PROMISES S3 and S12 over all that the service shows and keeps of itself: neither a secret nor what was said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from orchestrator.access.key_file import new_key
from orchestrator.model import Scope
from tests.stub import Service, ask, model_table, service, until
from tests.test_scopes import TABLE

MODEL = "acme/a"
PROMPT = "canary-of-a-prompt-7f3a9c"
WRONG_KEY = "canary-of-a-wrong-key-51b2d8"
STREAMS = ("/api/events", "/dashboard/events")
"""They don't end; the first of what they say is read."""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """A service that was asked in every way, well and badly, and the secret of the key that did."""
    folder = tmp_path_factory.mktemp("canaries")
    secret = new_key(folder / "auth.keys.json", "boss", list(Scope), models=[], expires=None)
    with service(folder, '[embeddings]\nmodel = ""\n', model_table(MODEL, "--token-delay-s", "0.05")) as running:
        asked_in_every_way(running, secret)
        yield running, secret


def asked_in_every_way(running: Service, secret: str) -> None:
    chat, completions = "/v1/chat/completions", "/v1/completions"
    with running.client(authorization=f"Bearer {secret}", prefer="wait=30") as client:
        assert client.post(chat, json=ask(MODEL, PROMPT)).status_code == 200
        assert client.post(completions, json={"model": MODEL, "prompt": PROMPT, "stream": True}).status_code == 200
        with client.stream("POST", chat, json=ask(MODEL, PROMPT, stream=True)) as cut:
            next(cut.iter_lines())
        client.post(chat, content=f'{{"model": "{MODEL}", "messages": "{PROMPT}'.encode())
        client.post(chat, json=ask(PROMPT, PROMPT))
        until(lambda: client.get("/api/usage").json()["data"][0]["cancelled"] == 1)
    with running.client(authorization=f"Bearer {WRONG_KEY}") as stranger:
        assert stranger.post(chat, json=ask(MODEL, PROMPT)).status_code == 401
        assert stranger.get("/dashboard", params={"key": WRONG_KEY}).status_code in (303, 401)


def looked_at(running: Service, client: httpx.Client) -> Iterator[tuple[str, str]]:
    """Every page and every list, as JSON and as a page."""
    replica = client.get("/api/replicas").json()["data"][0]["id"]
    for method, path in TABLE:
        if method != "GET":
            continue
        address = path.format(model=MODEL, replica=replica, name="none", store="vs_none", page="none")
        for accept in ("application/json", "text/html"):
            with client.stream("GET", address, headers={"accept": accept}) as answer:
                body = next(answer.iter_text()) if path in STREAMS else answer.read().decode()
            yield f"{address} {accept}", body + repr(answer.headers)


def test_neither_secrets_nor_prompts_are_shown(used: tuple[Service, str]) -> None:
    running, secret = used
    with running.client() as browser:
        browser.get("/dashboard", params={"key": secret})
        shown = dict(looked_at(running, browser))
    assert len(shown) > 60 and MODEL in shown["/dashboard text/html"]
    for canary in (secret, PROMPT, WRONG_KEY):
        assert [address for address, text in shown.items() if canary in text] == []


def test_neither_secrets_nor_prompts_are_kept(used: tuple[Service, str]) -> None:
    running, secret = used
    (engine,) = running.engines()
    kept = {path: path.read_bytes() for path in running.folder.rglob("*") if path.is_file()}
    kept |= {path: path.read_bytes() for path in (Path(f"/proc/{engine}/environ"), Path(f"/proc/{engine}/cmdline"))}
    assert {path.name for path in kept} >= {"service.log", "catalog.duckdb", "auth.keys.json"}
    for canary in (secret, PROMPT, WRONG_KEY):
        assert [path for path, data in kept.items() if canary.encode() in data] == []


def test_the_command_line_shows_no_secret(used: tuple[Service, str]) -> None:
    running, secret = used
    environ = {**os.environ, "ORCHESTRATOR_URL": running.url, "ORCHESTRATOR_API_KEY": secret}
    for command in (("ps",), ("keys", "list"), ("usage",), ("logs", MODEL), ("doctor",)):
        argv = [sys.executable, "-m", "orchestrator", *command]
        done = subprocess.run(argv, cwd=running.folder, env=environ, capture_output=True, timeout=60, check=False)
        said = done.stdout + done.stderr
        assert said and not any(canary.encode() in said for canary in (secret, PROMPT, WRONG_KEY)), command
