"""The adapter for any program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import PreflightFailed
from orchestrator.gpu import Grant
from orchestrator.model import Deployment, EngineKind, Phase
from runtimes.engines.command import CommandEngine

ENGINE = CommandEngine()


def deployment(*command: str, **fields: Any) -> Deployment:
    return Deployment(name="acme/echo", engine=EngineKind.COMMAND, source="", command=command, **fields)


def refused(*command: str, **fields: Any) -> str:
    with pytest.raises(PreflightFailed) as caught:
        ENGINE.preflight(deployment(*command, **fields), None)
    return str(caught.value)


def test_argv_fills_in_the_weights_and_the_name_and_nothing_else() -> None:
    asked = deployment(
        "serve", "-m", "{weights}/w.gguf", "--alias={model}", "{host}:{port}", '{"a": {}}', args=("{x}",)
    )
    assert ENGINE.argv(asked, "/models/w", Grant()) == (
        *("serve", "-m", "/models/w/w.gguf", "--alias=acme/echo", "{host}:{port}", '{"a": {}}', "{x}"),
    )


def test_preflight_finds_programs_by_path_and_by_name(tmp_path: Path) -> None:
    ENGINE.preflight(deployment(sys.executable), None)
    program = tmp_path / "my-engine"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    ENGINE.preflight(deployment("my-engine", env=(("PATH", str(tmp_path)),)), None)
    program.chmod(0o644)
    assert refused(str(program)) == f"{program}: no such program"
    assert refused("no-such-engine-anywhere") == "no-such-engine-anywhere: no such program"


def test_weights_need_a_source() -> None:
    assert "{weights}" in refused(sys.executable, "-m", "{weights}")
    assert "{weights}" in refused(sys.executable, args=("{weights}",))
    ENGINE.preflight(deployment(sys.executable, "-m", "{weights}"), "/models/w")


def test_an_unknown_program_is_starting_until_it_answers() -> None:
    assert ENGINE.progress("load: 43 %\n").phase is Phase.STARTING
    assert ENGINE.health_path(deployment("x", health_path="/ok")) == "/ok"
    assert ENGINE.env(deployment("x")) == {}


PYTHON_TRACEBACK = """\
Traceback (most recent call last):
  File "engine.py", line 3, in <module>
    raise ConnectionError("the upstream refused")
ConnectionError: the upstream refused

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "engine.py", line 5, in <module>
    raise my.engine.StartError("no room") from None
my.engine.StartError: no room
"""


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        ("", None, "the engine ended and said nothing"),
        ("", 3, "the engine ended with exit code 3 and said nothing"),
        (" \n\n", 0, "the engine ended with exit code 0 and said nothing"),
        ("loading\nbye\n", 1, "bye"),
        (PYTHON_TRACEBACK, 1, "my.engine.StartError: no room"),
        (PYTHON_TRACEBACK + "INFO:     Shutting down\n", 1, "my.engine.StartError: no room"),
        (
            "usage: engine.py [-h]\n                 [--port PORT]\nengine.py: error: unrecognized arguments: --foo\n",
            2,
            "error: unrecognized arguments: --foo",
        ),
        ("\x1b[31mERROR:\x1b[0m    [Errno 98] address in use\nINFO:     Bye\n", 1, "[Errno 98] address in use"),
        ("2026-11-21 04:50:01,123 ERROR out of disk\n2026-11-21 04:50:02,000 INFO done\n", 1, "out of disk"),
        ("INFO:     0 requests failed\nstopped\n", 0, "stopped"),
        ("x.py:3: UserWarning: this failed before\n  warnings.warn('x')\nstopped\n", 0, "stopped"),
        (
            "gguf_init_from_file: failed to open 'm.gguf'\nmain: exiting due to model loading error\n",
            1,
            "gguf_init_from_file: failed to open 'm.gguf'",
        ),
        ("INFO: 200 OK\n", -9, "the engine was killed by SIGKILL, as happens when memory runs out"),
        ("INFO: 200 OK\n", 137, "the engine was killed by SIGKILL, as happens when memory runs out"),
        (
            "ValueError: x\n",
            -9,
            "the engine was killed by SIGKILL, as happens when memory runs out; before that it said: ValueError: x",
        ),
        (
            "ValueError: x\nINFO:     Application startup complete.\nINFO:     200 OK\n",
            -9,
            "the engine was killed by SIGKILL, as happens when memory runs out",
        ),
        (
            "ValueError: x\nINFO:     Application startup complete.\nINFO:     200 OK\n",
            None,
            "the engine ended; the last it said: 200 OK",
        ),
        ("ValueError: x\nstopped\n", None, "ValueError: x"),
        ("ready\n", -11, "the engine was killed by SIGSEGV"),
        ("fatal: bad magic\n", -6, "fatal: bad magic"),
        ("ready\n", -99, "the engine was killed by signal 99"),
        ("error: " + "a" * 400, 1, "error: " + "a" * 292 + "…"),
        ("error: " + "b" * 100 + ". " + "a" * 400, 1, "error: " + "b" * 100 + "."),
    ],
)
def test_failure(text: str, code: int | None, sentence: str) -> None:
    assert ENGINE.failure(text, code) == sentence
