"""A real terminal: a program in tmux, keys sent to it, and what it shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import psutil

from tests.missing import missing
from tests.stub import until

TMUX = shutil.which("tmux")
WAIT_S = 20.0
_SHELL = """\
"$@"
echo "ended with $? $(stty -a | grep -oE -e '-?icanon|-?echo ' | xargs)"
exec sleep 600
"""
"""Stays when the program has ended, so that what it left behind can be looked at."""


class Terminal:
    """One program in a terminal of its own. `socket` is a new file."""

    def __init__(
        self, socket: Path, argv: tuple[str, ...], size: tuple[int, int], environ: MappingProxyType[str, str]
    ) -> None:
        self._socket = socket
        width, height = map(str, size)
        config = socket.with_suffix(".conf")
        config.write_text("set -g default-terminal screen-256color\nset -s escape-time 0\n")
        told = [f"-e{name}={value}" for name, value in environ.items()]
        self._tmux(
            "-f", str(config), "new-session", "-d", "-x", width, "-y", height, *told, "sh", "-c", _SHELL, "sh", *argv
        )

    def send(self, *keys: str) -> None:
        """Keys by tmux's names: ``C-l``, ``Enter``; anything else is typed."""
        self._tmux("send-keys", *keys)

    def screen(self, *, styled: bool = False) -> str:
        """What it shows; `styled` with escape sequences."""
        return self._tmux("capture-pane", "-p", *(["-e"] if styled else []))

    def shows(self, *texts: str) -> str:
        """Wait until the screen holds all `texts`; returns it."""
        try:
            until(lambda: all(text in self.screen() for text in texts), WAIT_S, 0.05)
        except AssertionError:
            raise AssertionError(f"{texts} not in\n{self.screen()}") from None
        return self.screen()

    def resize(self, width: int, height: int) -> None:
        """As a user drags a window."""
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def signal(self, number: int) -> None:
        """Send its program a signal."""
        (program,) = psutil.Process(int(self._pane("#{pane_pid}"))).children()
        program.send_signal(number)

    def ended(self) -> int:
        """Wait for its end; the exit code. Asserts that the terminal is as it was: lines and their echo, no other
        screen, no mouse, a cursor."""
        shown = self.shows("ended with ")
        code, modes = shown.rpartition("ended with ")[2].strip().split(" ", 1)
        assert modes == "icanon echo"
        assert self._pane("#{alternate_on}#{mouse_any_flag}#{cursor_flag}") == "001"
        return int(code)

    def close(self) -> None:
        """End all of it."""
        self._tmux("kill-server")

    def _pane(self, what: str) -> str:
        return self._tmux("display-message", "-p", what).strip()

    def _tmux(self, *args: str) -> str:
        assert TMUX is not None
        done = subprocess.run((TMUX, "-S", self._socket, *args), capture_output=True, text=True, timeout=WAIT_S)
        return done.stdout


@contextmanager
def terminal(folder: Path, *args: str, size: tuple[int, int] = (80, 24), **environ: str) -> Iterator[Terminal]:
    """``orchestrator ARGS`` in a terminal; its state and configuration in `folder`."""
    if TMUX is None:
        missing("tmux is missing: apt-get install tmux")
    told = MappingProxyType({"XDG_STATE_HOME": str(folder / "state"), "LANG": "C.UTF-8", **environ})
    found = Terminal(folder / "tmux", (sys.executable, "-m", "orchestrator", *args), size, told)
    try:
        yield found
    finally:
        found.close()
