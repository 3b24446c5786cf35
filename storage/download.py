"""One file, fetched in ranges to a name that is the same every time, so that it goes on where it broke off.

huggingface_hub resumes within a call only; its partial files have random names and are never used again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.errors import WeightsUnreachable

PART_SUFFIX = ".orchestrator-part"
CHUNK_BYTES = 2**20
ATTEMPTS_MAX = 6
"""Tries in a row that bring no byte; one that brings some starts the count anew."""
BACKOFF_S = 0.5
BACKOFF_MAX_S = 30.0
TIMEOUT_S = 30.0


class Refused(Exception):
    """The hub answered with a status that trying again does not mend."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


class Cancelled(Exception):
    """The pull was given up; what has come stays for the next."""


def part_of(blob: Path) -> Path:
    """Where a blob grows."""
    return blob.with_name(blob.name + PART_SUFFIX)


def fetch(
    client: Any,
    url: str,
    blob: Path,
    size: int,
    *,
    on_bytes: Callable[[int], None],
    cancelled: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch `url` to `blob`, checked against the digest that is its name. Blocks.

    `on_bytes` hears of every byte that comes, negative when some had to be dropped. Raises `WeightsUnreachable`,
    `Refused`, `Cancelled`; in each case the part stays, unless it was proved wrong.
    """
    import httpx

    part, failures, cause = part_of(blob), 0, ""
    while failures < ATTEMPTS_MAX:
        before = _size(part)
        try:
            if before < size or size == 0:
                _append(client, url, part, size, on_bytes, cancelled)
            if _size(part) == size:
                _finish(part, blob)
                return
            cause = f"{_size(part)} of {size} bytes came"
        except httpx.HTTPError as error:
            cause = str(error) or type(error).__name__
        except Corrupt as error:
            cause = str(error)
            on_bytes(-_size(part))
            part.unlink()
            before = size
        failures = 0 if _size(part) > before else failures + 1
        if failures:
            _pause(min(BACKOFF_S * 2.0 ** (failures - 1), BACKOFF_MAX_S), cancelled, sleep)
    raise WeightsUnreachable(f"the download broke off {ATTEMPTS_MAX} times in a row: {cause}")


class Corrupt(Exception):
    """What came is not what was asked for."""


def _append(
    client: Any, url: str, part: Path, size: int, on_bytes: Callable[[int], None], cancelled: Callable[[], bool]
) -> None:
    have = _size(part)
    headers = {"range": f"bytes={have}-", "accept-encoding": "identity"} if have else {"accept-encoding": "identity"}
    with client.stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as answer:
        if answer.status_code == 416:
            raise Corrupt("the part is longer than the file")
        if answer.status_code in (400, 401, 403, 404, 410):
            raise Refused(answer.status_code)
        answer.raise_for_status()
        if have and answer.status_code != 206:
            on_bytes(-have)
            have = 0
        with part.open("ab" if have else "wb") as file:
            for chunk in answer.iter_raw():  # as it comes: what a fixed size would gather is lost at a cut
                if cancelled():
                    raise Cancelled
                file.write(chunk)
                on_bytes(len(chunk))
                have += len(chunk)
                if have > size:
                    raise Corrupt("more came than the file has")


def _finish(part: Path, blob: Path) -> None:
    """Check the digest and give the file its name. Hashing reads from the page cache what was just written."""
    if len(blob.name) == 64:
        digest: Any = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % _size(part), usedforsecurity=False)  # git's name for a file
    with part.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
    if digest.hexdigest() != blob.name:
        raise Corrupt("what came does not have the digest that the hub names")
    part.replace(blob)


def _pause(seconds: float, cancelled: Callable[[], bool], sleep: Callable[[float], None]) -> None:
    ends = seconds
    while ends > 0:
        if cancelled():
            raise Cancelled
        sleep(min(ends, 0.25))
        ends -= 0.25


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
