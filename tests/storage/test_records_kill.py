"""kill -9 at random moments: what was acknowledged is in the catalogue and on record, and nothing is half-done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.storage.recorded import Parts, State, run, without_entries

ROOT = Path(__file__).parents[2]


def told(folder: Path, seed: int) -> tuple[dict[str, Any], list[list[str]]]:
    """Kill the writer at a random moment: what it had acknowledged, and the changes under way, by their facts."""
    lines = random.Random(seed).randrange(20, 120)
    command = (sys.executable, "-m", "tests.storage.catalog_writer", str(folder), str(seed))
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as writer:
        assert writer.stdout is not None
        output = [writer.stdout.readline() for _ in range(lines)]
        os.kill(writer.pid, signal.SIGKILL)
        output += writer.stdout.readlines()
    states: dict[int, dict[str, Any]] = {}
    open_: dict[int, list[str]] = {}
    for line in output:
        if line.endswith(b"\n"):
            walker, kind, what = msgspec.json.decode(line)
            if kind == "begin":
                open_[walker] = what
            else:
                del open_[walker]
                states[walker] = what
    acknowledged = {key: value for state in states.values() for key, value in state.items()}
    return acknowledged, list(open_.values())


def plain(state: State) -> dict[str, Any]:
    return {key: msgspec.to_builtins(value) for key, value in state.items()}


def check_whole(found: dict[str, Any], acknowledged: dict[str, Any], under_way: list[list[str]]) -> None:
    """Every change under way was made or was not; nothing else differs from what was acknowledged."""
    differ = {key for key in found.keys() | acknowledged.keys() if found.get(key) != acknowledged.get(key)}
    for change in under_way:
        assert differ & set(change) in (set(), set(change))
    assert differ <= {key for change in under_way for key in change}


def kill_and_look(folder: Path, seed: int) -> None:
    acknowledged, under_way = told(folder, seed)

    async def test(parts: Parts) -> None:
        found = plain(await parts.state())
        check_whole(found, acknowledged, under_way)
        lost = plain(await parts.rebuilt(folder / "lost"))  # the catalogue is lost as well
        unsure = {key for change in under_way for key in change}
        for key in (found.keys() | lost.keys()) - unsure:
            assert {**lost[key], "entry": 0} == {**found[key], "entry": 0}
        await parts.shelf.mend()
        assert await parts.records() == found.keys()
        mended = without_entries(await parts.rebuilt(folder / "mended"))
        assert mended == without_entries(await parts.state())

    run(test, folder)


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9(tmp_path: Path, seed: int) -> None:
    kill_and_look(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 21))
def test_kill_9_at_many_moments(tmp_path: Path, seed: int) -> None:
    kill_and_look(tmp_path, seed)
