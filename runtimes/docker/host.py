"""One Docker host: calls off the event loop, and what is known of it while it is silent."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env

from orchestrator.errors import RuntimeUnavailable
from runtimes.docker import container
from runtimes.docker.paths import own_mounts

CALL_TIMEOUT_S = 20
LIST_WAIT_S = 2.0
"""How long a listing may take before its host counts as silent; the call itself goes on, and is not doubled."""
THREADS_MAX = 8
RECONNECT_S = 1.0
GATEWAY_FAULTS = (502, 503, 504)
"""What a proxy before a socket says when the daemon behind it is silent."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a host is and how it is reached."""

    name: str = ""
    url: str | None = None
    """``unix://``, ``tcp://`` or ``ssh://``; None: as the environment says (``DOCKER_HOST``)."""
    engines_at: str = "127.0.0.1"
    """The host's address on which its engines' ports are published, and reached."""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""

    @property
    def local(self) -> bool:
        """Whether it is this machine: its GPUs are read here, and its paths are ours."""
        url = self.url or os.environ.get("DOCKER_HOST", "unix://")
        return url.startswith(("unix://", "http+unix://"))


class DockerHost:
    """Calls `work(client)` in threads of its own, each with a client of its own."""

    def __init__(self, address: Address, instance: str) -> None:
        self.address = address
        self._instance = instance
        self._filters: dict[str, list[str]] = {"label": [f"{container.INSTANCE}={instance}"]}
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix=f"docker-{address.name or 'local'}")
        self._clients = threading.local()
        self._listing: Future[list[dict[str, Any]]] | None = None
        self._mounted: tuple[Mapping[str, Any], ...] | None = None
        self.listed: list[dict[str, Any]] = []
        """The last listing that was answered."""
        self.answered_at: float | None = None
        self.fault = ""
        """Why the last listing was not answered; empty: it was."""

    @property
    def name(self) -> str:
        """As configured; empty for the only one."""
        return self.address.name

    async def call(self, work: Callable[[docker.APIClient], T]) -> T:
        """The result of `work`; blocks nobody else. Raises `RuntimeUnavailable`, or docker's `APIError`."""
        return await asyncio.wrap_future(self._threads.submit(self._call, work))

    def call_now(self, work: Callable[[docker.APIClient], T], timeout_s: float) -> T | None:
        """The same for who has no event loop any more; None when it fails. Blocks for `timeout_s` at most."""
        with contextlib.suppress(RuntimeUnavailable, APIError, TimeoutError):
            return self._threads.submit(self._call, work).result(timeout_s)
        return None

    async def near(self) -> bool:
        """Whether it is this machine's, or the one whose container we run in. Blocks for one call, the first time."""
        return self.address.local or bool(await self.own_mounts())

    async def own_mounts(self) -> tuple[Mapping[str, Any], ...]:
        """What is mounted where in the container that we run in, if it is one of this host's."""
        if self._mounted is None:
            self._mounted = await self.call(own_mounts)
        return self._mounted

    def _call(self, work: Callable[[docker.APIClient], T]) -> T:
        try:
            client = getattr(self._clients, "client", None)
            if client is None:
                client = self._clients.client = connect(self.address)
            return work(client)
        except APIError as error:
            if error.status_code in GATEWAY_FAULTS:
                raise RuntimeUnavailable(f"Docker{self._where} does not answer: {_short(error)}") from None
            raise
        except (DockerException, requests.RequestException, OSError) as error:
            self._clients.client = None
            raise RuntimeUnavailable(f"Docker{self._where} does not answer: {_short(error)}") from None

    @property
    def _where(self) -> str:
        return f" on {self.name}" if self.name else ""

    async def look(self) -> bool:
        """Bring `listed` up to date; False when the host is silent. Waits `LIST_WAIT_S` at most, and not at all
        while an earlier call still hangs."""
        if self._listing is None or self._listing.done():  # what came too late is too old to be used
            self._listing = self._threads.submit(self._call, self.containers)
            waiter = asyncio.wrap_future(self._listing)
            waiter.add_done_callback(_heard)
            await asyncio.wait((waiter,), timeout=LIST_WAIT_S)
        if not self._listing.done():
            self.fault = self.fault or f"Docker{self._where} does not answer"
            return False
        try:
            self.listed = self._listing.result()
        except (RuntimeUnavailable, APIError) as error:
            self.fault = str(error)
            return False
        self.answered_at, self.fault = time.monotonic(), ""
        return True

    def containers(self, client: docker.APIClient) -> list[dict[str, Any]]:
        """Our engines, ended ones too. Blocks; `call` and `look` run it."""
        found: list[dict[str, Any]] = client.containers(all=True, filters=self._filters)
        return [each for each in found if container.is_ours(each, self._instance)]

    def watch(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        """Have `changed` called on the loop at each change of one of our containers, and whenever the stream of events
        was lost. Returns at once; a thread does it for as long as the loop lives."""
        threading.Thread(target=self._watch, args=(loop, changed), daemon=True, name="docker-events").start()

    def _watch(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        """Reads events. The stream ends silently when the daemon goes."""
        filters = {**self._filters, "type": ["container"]}
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is interested any more
            while True:
                with contextlib.suppress(DockerException, requests.RequestException, OSError, ValueError):
                    client = connect(self.address, timeout_s=None)
                    loop.call_soon_threadsafe(changed)
                    for _ in client.events(filters=filters):
                        loop.call_soon_threadsafe(changed)
                loop.call_soon_threadsafe(changed)
                time.sleep(RECONNECT_S)

    def close(self) -> None:
        """Let go of the threads; calls that hang are left to time out."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def connect(address: Address, timeout_s: int | None = CALL_TIMEOUT_S) -> docker.APIClient:
    """A client of the version that the daemon speaks. Blocks. Raises docker's and requests' errors."""
    settings: dict[str, Any] = {**kwargs_from_env()} if address.url is None else {"base_url": address.url}
    if address.tls_ca:
        settings["tls"] = docker.tls.TLSConfig(
            ca_cert=address.tls_ca, client_cert=(address.tls_cert, address.tls_key), verify=True
        )
    ssh = (settings.get("base_url") or "").startswith("ssh://")
    if ssh and importlib.util.find_spec("paramiko") is None:
        raise DockerException("ssh:// hosts need `pip install 'orchestrator[ssh]'`, and the ssh program")
    # types-docker knows no timeout of None, which is how requests waits for ever, as an event stream must.
    return _Client(version="auto", timeout=timeout_s, use_ssh_client=ssh, **settings)  # type: ignore[arg-type]


class _Client(docker.APIClient):
    """One that trusts the authority it was given: requests has ``REQUESTS_CA_BUNDLE`` win over a session's own
    (https://github.com/psf/requests/issues/3829), so that a host's certificate would be refused, or another's taken."""

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """See requests."""
        verify = self.verify if verify is None else verify
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _heard(waiter: asyncio.Future[Any]) -> None:
    """Its failure is read from the call itself, perhaps much later: asyncio need not complain."""
    if not waiter.cancelled():
        waiter.exception()
