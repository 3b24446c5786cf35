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
        if len(self.samples) < 2 or self.samples[-1][0] == self.samples[0][0]:
            return None
        (then, before), (now, after) = self.samples[0], self.samples[-1]
        return max(after - before, 0) / (now - then)


class Images:
    """`ports.WeightsStore` for images, over all hosts: an engine may be placed on any. `on_present` is told of each
    image that all of them have."""

    def __init__(
        self,
        hosts: Iterable[DockerHost],
        *,
        on_present: Callable[[str], None] = lambda image: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hosts = tuple(hosts)
        self._on_present = on_present
        self._now = monotonic
        self._present: set[str] = set()
        self._errors: dict[str, WeightsError] = {}
        self._layers: dict[str, Layers] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._cancelled = threading.Event()

    def look(self, deployment: Deployment) -> Weights:
        """See `ports.WeightsStore.look`. From memory: `pull` and `forget` keep it right."""
        image = deployment.image
        if image in self._present:
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
        if image in self._present:
            return
        if image not in self._pulls:
            self._pulls[image] = asyncio.create_task(self._run(image))
        await asyncio.shield(self._pulls[image])

    def used(self, deployment: Deployment) -> None:
        """Docker keeps its own count."""

    async def find(self, images: Iterable[str]) -> None:
        """Learn which of these every host has already. A host that does not answer is asked at the pull."""
        for image in {*images} - self._present:
            with contextlib.suppress(RuntimeUnavailable, APIError):
                if all(await asyncio.gather(*(_has(host, image) for host in self._hosts))):
                    self._found(image)

    def _found(self, image: str) -> None:
        self._present.add(image)
        self._on_present(image)

    def forget(self, image: str) -> None:
        """A host turned out not to have it: the next start pulls it."""
        self._present.discard(image)

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
            await asyncio.gather(*(self._pull_on(host, image) for host in self._hosts))
            self._found(image)
        except WeightsError as error:
            self._errors[image] = error
            raise
        finally:
            del self._pulls[image], self._layers[image]

    async def _pull_on(self, host: DockerHost, image: str) -> None:
        where = f" on {host.name}" if host.name else ""
        try:
            if await _has(host, image):
                return
            await self._threaded(host, image)
        except NoSuchThing as error:
            raise WeightsMissing(f"the image {image} can't be had: {_said(error)}") from None
        except (RuntimeUnavailable, DockerException, requests.RequestException, OSError) as error:
            raise WeightsUnreachable(f"the image {image} can't be pulled{where}: {_said(error)}") from None

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
            except Exception as caught:
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
                    raise _refused(line["error"])
                if (layers := self._layers.get(image)) is not None:
                    layers.heard({**line, "id": f"{host.name}/{line.get('id', '')}"}, self._now())


async def _has(host: DockerHost, image: str) -> bool:
    try:
        await host.call(lambda client: client.inspect_image(image))  # type: ignore[no-untyped-call]
    except NoSuchThing:
        return False
    return True


def _refused(text: str) -> WeightsError:
    """What the registry's words mean. They come in the middle of an answer that began with 200."""
    gone = any(word in text.lower() for word in ("not found", "manifest unknown", "denied", "unauthorized"))
    kind = WeightsMissing if gone else WeightsUnreachable
    return kind(f"the image can't be pulled: {text[:300]}")


def _said(error: Exception) -> str:
    text = error.explanation if isinstance(error, APIError) and error.explanation else str(error)
    return (str(text).splitlines() or [type(error).__name__])[0][:300]
