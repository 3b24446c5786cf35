"""What the user asked in ``orchestrator chat``, for the up arrow: one file of the user's, not the service's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

PROMPTS_MAX = 500
FILE_BYTES_MAX = 2**20


class PromptHistory:
    """The last `PROMPTS_MAX` prompts, of at most `FILE_BYTES_MAX` together. Only prompts are kept, never answers, in a
    file that only its user may read. A file that can't be read or written is as none: nobody's talk ends for it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @classmethod
    def of_user(cls, *, remember: bool, environ: Mapping[str, str] = os.environ) -> Self:
        """``$XDG_STATE_HOME/orchestrator/chat-history``, or ``~/.local/state/…``; nowhere unless `remember`."""
        folder = Path(environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
        return cls(folder / "orchestrator" / "chat-history" if remember else None)

    def past(self) -> list[str]:
        """Oldest first."""
        if self._path is None:
            return []
        try:
            lines = self._path.read_bytes()[-FILE_BYTES_MAX:].splitlines()
        except OSError:
            return []
        return [prompt for line in lines[-PROMPTS_MAX:] if isinstance(prompt := _decoded(line), str)]

    def keep(self, prompt: str) -> None:
        """Remember one more; the oldest go."""
        if self._path is None:
            return
        lines = [json.dumps(each).encode() + b"\n" for each in [*self.past(), prompt][-PROMPTS_MAX:]]
        while sum(map(len, lines)) > FILE_BYTES_MAX:
            lines.pop(0)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._path.with_suffix(f".{os.getpid()}")
            fresh.touch(mode=0o600)
            fresh.write_bytes(b"".join(lines))
            fresh.replace(self._path)
        except OSError:
            return


def _decoded(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None
