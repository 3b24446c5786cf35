"""The images that engines run in: present on every host, or pulled, with progress. One pull an image and host."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException
from docker.errors import NotFound as NoSuchThing

from orchestrator.errors import RuntimeUnavailable, WeightsError, WeightsMissing, WeightsUnreachable
from orchestrator.model import Deployment, Weights, WeightsState
from runtimes.docker.host import DockerHost, connect
from runtimes.docker.said import refusal, said

RATE_WINDOW_S = 5.0
SILENCE_S_MAX = 300
"""A registry that sends nothing for this long is given up."""


@dataclass
class Layers:
    """What a pull has said of each layer, in bytes. `docker pull` announces them one by one, so the total grows."""

    total: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def heard(self, line: Mapping[str, Any], now: float) -> None:
        """Take one line of the pull's stream. Only downloads count: unpacking goes on alongside, and is quick."""
        layer, detail = line.get("id", ""), line.get("progressDetail") or {}
        if line.get("status") == "Downloading" and detail.get("total"):
            self.total[layer] = detail["total"]
            self.done[layer] = detail.get("current", 0)
        elif line.get("status") in ("Download complete", "Pull complete") and layer in self.total:
            self.done[layer] = self.total[layer]
        self.samples.append((now, sum(self.done.values())))
        while now - self.samples[0][0] > RATE_WINDOW_S:
            self.samples.popleft()

    @property
    def bytes_per_s(self) -> float | None:
        """Over the last seconds; None while nothing can be said."""
        samples = tuple(self.samples)  # a pull's thread adds to it meanwhile
        if len(samples) < 2 or samples[-1][0] == samples[0][0]:
            return None
        (then, before), (now, after) = samples[0], samples[-1]
        return max(after - before, 0) / (now - then)


class Images:
    """`ports.WeightsStore` for images, over all hosts that answer: an engine may be placed on any of these. A host that
    comes back gets what it missed. `on_present` is told which host has which image."""

    def __init__(
        self,
        hosts: Iterable[DockerHost],
        *,
        on_present: Callable[[str, str], None] = lambda host, image: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hosts = tuple(hosts)
        self._on_present = on_present
        self._now = monotonic
        self._present: dict[str, set[str]] = {}
        """Image to the names of the hosts that have it."""
        self._errors: dict[str, WeightsError] = {}
        self._layers: dict[str, Layers] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._cancelled = threading.Event()

    def look(self, deployment: Deployment) -> Weights:
        """See `ports.WeightsStore.look`. From memory: `pull` and `forget` keep it right."""
        image = deployment.image
        if self._is_present(image):
            return Weights(state=WeightsState.PRESENT)
        if image in self._pulls:
            layers = self._layers.get(image, Layers())
            return Weights(
                state=WeightsState.PULLING,
                what="image",
                done_bytes=sum(layers.done.values()),
                total_bytes=sum(layers.total.values()) or None,
                bytes_per_s=layers.bytes_per_s,
            )
        if error := self._errors.get(image):
            return Weights(state=WeightsState.FAILED, what="image", error=str(error), permanent=error.permanent)
        return Weights(state=WeightsState.ABSENT, what="image")

    async def pull(self, deployment: Deployment) -> None:
        """See `ports.WeightsStore.pull`. It goes on when a caller is cancelled; `aclose` ends it."""
        image = deployment.image
        if self._is_present(image):
            return
        if image not in self._pulls:
            self._pulls[image] = asyncio.create_task(self._run(image))
        await asyncio.shield(self._pulls[image])

    def used(self, deployment: Deployment) -> None:
        """Docker keeps its own count."""

    async def find(self, images: Iterable[str]) -> None:
        """Learn which of these are where. A host that does not answer within moments is asked when it does."""
        await asyncio.gather(*(host.look() for host in self._hosts))
        await asyncio.gather(*(self._find(host, i) for host in self._hosts if not host.fault for i in {*images}))

    async def _find(self, host: DockerHost, image: str) -> None:
        with contextlib.suppress(RuntimeUnavailable, APIError):
            if await _has(host, image):
                self._found(host, image)

    def _found(self, host: DockerHost, image: str) -> None:
        self._present.setdefault(image, set()).add(host.name)
        self._on_present(host.name, image)

    def _is_present(self, image: str) -> bool:
        """Whether every host that answers has it, and one at least."""
        have = self._present.get(image, set())
        return bool(have) and all(host.fault or host.name in have for host in self._hosts)

    def forget(self, host: str, image: str) -> None:
        """That host turned out not to have it: the next start pulls it."""
        self._present.get(image, set()).discard(host)

    async def aclose(self) -> None:
        """Give up what runs. Docker keeps the layers that it has."""
        self._cancelled.set()
        tasks = list(self._pulls.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, image: str) -> None:
        self._errors.pop(image, None)
        self._layers[image] = Layers()
        try:
            pulls = [self._pull_on(host, image) for host in self._hosts if not host.fault]
            results = await asyncio.gather(*pulls, return_exceptions=True)
            for failure in (result for result in results if result is not None):
                raise failure
            if not pulls:
                raise WeightsUnreachable(f"the image {image} can't be pulled: no Docker host answers")
        except WeightsError as error:
            self._errors[image] = error
            raise
        finally:
            del self._pulls[image], self._layers[image]

    async def _pull_on(self, host: DockerHost, image: str) -> None:
        where = f" on {host.name}" if host.name else ""
        try:
            if not await _has(host, image):
                await self._threaded(host, image)
        except (RuntimeUnavailable, DockerException, requests.RequestException, OSError) as error:
            text = said(error)
            remedy = refusal(text) if isinstance(error, _Refused | APIError) else ""
            kind = WeightsMissing if remedy else WeightsUnreachable
            told = f"the image {image} can't be pulled{where}: {text}"
            raise kind(f"{told}; {remedy}" if remedy else told) from None
        self._found(host, image)

    async def _threaded(self, host: DockerHost, image: str) -> None:
        """In a thread of its own, which does not hold up our end."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exception | None] = loop.create_future()

        def tell(error: Exception | None) -> None:
            if not ended.done():
                ended.set_result(error)

        def pull() -> None:
            error: Exception | None = None
            try:
                self._pull(host, image)
            except Exception as caught:  # raised where it is awaited, outside this thread
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, error)

        threading.Thread(target=pull, daemon=True, name="docker-pull").start()
        if error := await ended:
            raise error

    def _pull(self, host: DockerHost, image: str) -> None:
        repository, tag = docker.utils.parse_repository_tag(image)
        with contextlib.closing(connect(host.address, SILENCE_S_MAX)) as client:
            for line in client.pull(repository, tag=tag or "latest", stream=True, decode=True):
                if self._cancelled.is_set():
                    return
                if "error" in line:
                    raise _Refused(line["error"])
                if (layers := self._layers.get(image)) is not None:
                    layers.heard({**line, "id": f"{host.name}/{line.get('id', '')}"}, self._now())


async def _has(host: DockerHost, image: str) -> bool:
    try:
        await host.call(lambda client: client.inspect_image(image))
    except NoSuchThing:
        return False
    return True


class _Refused(DockerException):
    """What went wrong in the middle of a pull, whose answer had begun with 200."""
