"""Gets a file from the service: a cut download goes on where it broke off, and nothing half done is left behind."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.cli.remote import Lost, Refused, Remote
from orchestrator.errors import OrchestratorError

TRIES_MAX = 6
"""In a row that bring nothing."""
RETRY_S_MIN = 0.5
RETRY_S_MAX = 16.0
STDOUT = "-"

Progress = Callable[[int], None]
"""Told how many bytes are here."""
Say = Callable[[str], None]


def fetch(remote: Remote, file: dict[str, Any], target: Path, *, force: bool, progress: Progress, say: Say) -> None:
    """Bring the file's content to `target`, all of it or nothing.

    Raises `OrchestratorError`, also when `target` is there already, unless `force`; OSError when it can't be written.
    """
    _refuse_existing(target, force)
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as out:
            _copy(remote, file, out, progress, say)
            out.flush()
            os.fsync(out.fileno())
        _put_in_place(part, target, force)
    finally:
        part.unlink(missing_ok=True)


def fetch_to_stdout(remote: Remote, file: dict[str, Any], say: Say) -> None:
    """Write the file's content to the standard output. Raises `OrchestratorError`."""
    _copy(remote, file, sys.stdout.buffer, lambda _: None, say)
    sys.stdout.buffer.flush()


def _copy(remote: Remote, file: dict[str, Any], out: BinaryIO, progress: Progress, say: Say) -> None:
    """A file never changes, so what came before and what comes after a break fit together."""
    done, size, tries = 0, int(file["bytes"]), 0
    while done < size or not tries:
        tries += 1
        try:
            for data in remote.content(f"/v1/files/{file['id']}/content", done):
                out.write(data)
                done += len(data)
                tries = 1 if data else tries
                progress(done)
            break
        except (Lost, Refused) as error:
            wait_s = _patience(error, tries)
            say(f"{error}; going on in {wait_s:.0f} s")
            time.sleep(wait_s)
    if done != size:
        raise OrchestratorError(f"{done} bytes came where {size} were told; try again")


def _patience(error: Lost | Refused, tries: int) -> float:
    """How long to wait after this error. Raises it when it is of no use."""
    if tries >= TRIES_MAX or (isinstance(error, Refused) and error.status != 503):
        raise error
    if isinstance(error, Refused) and error.retry_after_s is not None:
        return min(error.retry_after_s, RETRY_S_MAX)
    return float(min(RETRY_S_MIN * 2 ** (tries - 1), RETRY_S_MAX))


def _put_in_place(part: Path, target: Path, force: bool) -> None:
    if force:
        part.replace(target)
        return
    try:
        os.link(part, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError:  # a file system without links
        _refuse_existing(target, force)
        part.replace(target)


def _refuse_existing(target: Path, force: bool) -> None:
    if not force and os.path.lexists(target):
        raise _exists(target)


def _exists(target: Path) -> OrchestratorError:
    return OrchestratorError(f"{target} is there already: --force replaces it, -o takes another name")
