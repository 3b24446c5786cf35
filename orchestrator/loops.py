"""The loops that the service can't be without: how they begin and end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine

import structlog

log = structlog.get_logger()


def kept(loop: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
    """Begin one. If it ever fails, so does the process."""
    task = asyncio.create_task(loop, name=name)
    task.add_done_callback(_die_with)
    return task


async def ended(loop: asyncio.Task[None]) -> None:
    """End one in good order."""
    loop.remove_done_callback(_die_with)
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):  # which is what it was told
        await loop


def _die_with(task: asyncio.Task[None]) -> None:
    """Without its loops the service is a shell: end the process, so that a supervisor starts it anew."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("loop_died", loop=task.get_name(), error=repr(error), exc_info=error)
        os._exit(70)
