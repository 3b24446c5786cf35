"""An engine's output as its host keeps it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import docker
import requests
from docker.errors import DockerException

from runtimes.docker.host import DockerHost, connect

TAIL_LINES_MAX = 5000
CHUNKS_MAX = 64
"""Read ahead of a slow reader."""


def tail_of(name: str, client: docker.APIClient) -> bytes:
    """The last lines. Blocks."""
    return bytes(client.logs(name, tail=TAIL_LINES_MAX))


async def follow(host: DockerHost, name: str, *, tail_lines: int) -> AsyncIterator[bytes]:
    """The last lines, then what comes until the container ends. Closing it early ends its thread."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | None] = asyncio.Queue(CHUNKS_MAX)
    client = await asyncio.to_thread(connect, host.address, None)
    stream = await asyncio.to_thread(client.logs, name, stream=True, follow=True, tail=tail_lines)

    def pump() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            with contextlib.suppress(DockerException, requests.RequestException, OSError, ValueError):
                for chunk in stream:
                    asyncio.run_coroutine_threadsafe(chunks.put(chunk), loop).result()
            asyncio.run_coroutine_threadsafe(chunks.put(None), loop).result()

    threading.Thread(target=pump, daemon=True, name="docker-log").start()
    try:
        while (chunk := await chunks.get()) is not None:
            yield chunk
    finally:
        while not chunks.empty():
            chunks.get_nowait()  # lets the pump go on to its end
        with contextlib.suppress(OSError, AttributeError):
            stream.close()
