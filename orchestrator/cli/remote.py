"""The commands that talk to a running service, by its HTTP API."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli.text import printable, troubles
from orchestrator.errors import OrchestratorError

POLL_S = 0.25
PLAIN_LINE_S = 5.0
"""How often a line is printed where there is no terminal to redraw."""
TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 900.0
"""What the service may take to put a file away, once it has all of it: a bucket may be slow."""


class Refused(OrchestratorError):
    """The service answered with an error."""

    def __init__(self, message: str, *, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class Lost(OrchestratorError):
    """The connection broke in the middle of an answer."""


class Remote:
    """A running service. Every call blocks; each raises `OrchestratorError` with a sentence for people: `Refused` for
    what the service said."""

    def __init__(self, url: str, key: str | None) -> None:
        import httpx

        self.url = url
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)

    def get(self, path: str, **query: str) -> Any:
        """The JSON of an answer."""
        return self._call("GET", path, params=query)

    def post(self, path: str, body: object = None) -> Any:
        """Likewise; `body` is sent as JSON."""
        return self._call("POST", path, json=body)

    def delete(self, path: str) -> Any:
        """Likewise."""
        return self._call("DELETE", path)

    def upload(self, path: str, body: Iterator[bytes], headers: Mapping[str, str]) -> Any:
        """Likewise; `body` is sent as it comes. Waits up to `UPLOAD_TIMEOUT_S` for the service to put it away."""
        import httpx

        timeout = httpx.Timeout(TIMEOUT_S, read=UPLOAD_TIMEOUT_S)
        return self._call("POST", path, content=body, headers=dict(headers), timeout=timeout)

    def stream(self, path: str, **query: str) -> Iterator[bytes]:
        """The bytes of an answer as they come."""
        import httpx

        try:
            with self._client.stream("GET", path, params=query, timeout=None) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise error_of(answer)
                yield from answer.iter_bytes()
        except httpx.TransportError:
            raise OrchestratorError(f"the orchestrator at {self.url} went away") from None

    def content(self, path: str, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start` on, as they come. Raises `Lost` when they break off."""
        import httpx

        headers = {"range": f"bytes={start}-", "accept-encoding": "identity"} if start else {}
        try:
            with self._client.stream("GET", path, headers=headers) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise error_of(answer)
                skip = 0 if answer.status_code == 206 else start
                for data in answer.iter_bytes():
                    yield data[skip:]
                    skip = max(0, skip - len(data))
        except httpx.TransportError:
            raise Lost(f"the connection to {self.url} broke off") from None

    def _call(self, method: str, path: str, **how: Any) -> Any:
        with explained(self.url):
            answer = self._client.request(method, path, **how)
        if answer.status_code >= 400:
            raise error_of(answer)
        try:
            return answer.json()
        except ValueError:
            raise OrchestratorError(f"what answers at {self.url} is no orchestrator") from None


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """What goes wrong on the way to a service, as a sentence. Raises `OrchestratorError`, of which one is `Lost`."""
    import httpx

    try:
        yield
    except (httpx.ConnectError, httpx.UnsupportedProtocol):
        raise OrchestratorError(
            f"no orchestrator answers at {url}; start it with `orchestrator serve`, or name it with --url"
        ) from None
    except httpx.TimeoutException:
        raise OrchestratorError(f"the orchestrator at {url} did not answer in time") from None
    except httpx.TransportError:
        raise Lost(f"the connection to {url} broke off") from None


def connect(url: str | None, config: Path | None) -> Remote:
    """The service that the options, the environment or the configuration name."""
    return Remote(*where(url, config))


def where(url: str | None, config: Path | None) -> tuple[str, str | None]:
    """Its address, and the key to show it."""
    from orchestrator.config import load

    found = url or os.environ.get("ORCHESTRATOR_URL")
    if not found:
        server = load(config).server
        host = f"[{server.host}]" if ":" in server.host else server.host
        found = f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{server.port}"
    return found.rstrip("/").removesuffix("/v1"), os.environ.get("ORCHESTRATOR_API_KEY")


def ps(remote: Remote, *, as_json: bool) -> None:
    """All models."""
    models = remote.get("/api/models")
    for trouble in troubles(remote.get("/health")):
        typer.echo(trouble, err=True)
    if as_json:
        typer.echo(json.dumps(models))
        return
    gpus = {gpu["uuid"]: _gpu_name(gpu) for gpu in remote.get("/api/gpus")["data"]}
    rows = [_row(model, gpus) for model in models["data"]]
    if not rows:
        typer.echo('no models are configured: add [models."org/name"] to orchestrator.toml')
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("MODEL", "PHASE", "GPUS", "ETA", "REQUESTS", "IDLE", "WHAT"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
    for gateway in remote.get("/api/gateways")["data"]:
        name, address = printable(gateway["name"]), printable(gateway["address"])
        typer.echo(
            f"gateway {name} · {address} · {gateway['in_flight']} requests · heard {gateway['heard_s']:.0f} s ago"
        )


def start(remote: Remote, model: str, *, wait: bool, as_json: bool) -> int:
    """Ask for the model; 0 when it is ready."""
    view = remote.post(f"/api/models/{model}/start")
    if wait:
        view = _watch(remote, model, lambda m: m["phase"] == "ready" or bool(_failure(m)), quiet=as_json)
    if as_json:
        typer.echo(json.dumps(view))
    elif wait and view["phase"] == "ready":
        typer.echo(f"{model} is ready")
    return _outcome(view) if wait else 0


def stop(remote: Remote, model: str, *, as_json: bool) -> int:
    """Stop the model; 0 when it is gone."""
    remote.post(f"/api/models/{model}/stop")
    view = _watch(remote, model, lambda m: not m["replicas"], quiet=as_json)
    typer.echo(json.dumps(view) if as_json else f"{model} is stopped")
    return 0


def pull(remote: Remote, model: str, *, as_json: bool) -> int:
    """Fetch the weights; 0 when they are there."""
    remote.post(f"/api/models/{model}/pull")

    def ended(view: dict[str, Any]) -> bool:
        return view["weights"]["state"] == "present" or bool(_failure(view))

    view = _watch_pull(remote, model, ended, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(view))
    elif view["weights"]["state"] == "present":
        typer.echo(f"{model}: {size(view['weights']['total_bytes'])} of weights are here")
    return 0 if view["weights"]["state"] == "present" else _outcome(view)


def logs(remote: Remote, name: str, *, follow: bool, tail_bytes: int) -> None:
    """The newest engine's log; `name` is a model or a replica."""
    known = {model["id"]: model for model in remote.get("/api/models")["data"]}
    replica = known[name]["last_replica"] if name in known else name
    if replica is None:
        raise OrchestratorError(f"{name} has not been started since the service began")
    query = {"tail_bytes": str(tail_bytes), "follow": "1" if follow else "0"}
    for chunk in remote.stream(f"/api/logs/{replica}", **query):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def progress_line(view: dict[str, Any]) -> str:
    """One line on what a model is doing: phase, percent, bytes, elapsed and expected seconds."""
    weights = view["weights"] or {}
    parts = [view["phase"], view["note"]]
    if view["phase"] == "pulling" and weights.get("total_bytes"):
        rate = f" at {size(weights['bytes_per_s'])}/s" if weights.get("bytes_per_s") else ""
        parts = ["pulling", f"{size(weights['done_bytes'])} of {size(weights['total_bytes'])}{rate}"]
    elif view["progress"] is not None:
        parts.append(f"{view['progress']:.0%}")
    parts.append(f"{view['elapsed_s']:.0f} s")
    if view["eta_s"] is not None:
        parts.append(f"about {view['eta_s']:.0f} s to go")
    return " · ".join(part for part in parts if part)


def _watch(remote: Remote, model: str, ended: Callable[[dict[str, Any]], bool], *, quiet: bool) -> dict[str, Any]:
    """Follow a model until `ended`, with a line that is redrawn on a terminal, or repeated now and then."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    told_at = float("-inf")
    with console.status(f"{model}: …") as status:
        if quiet or not console.is_terminal:
            status.stop()
        while True:
            view: dict[str, Any] = remote.get(f"/api/models/{model}")
            if ended(view):
                return view
            line = f"{model}: {progress_line(view)}"
            if console.is_terminal:
                status.update(line)
            elif not quiet and time.monotonic() - told_at >= PLAIN_LINE_S:
                told_at = time.monotonic()
                console.print(line)
            time.sleep(POLL_S)


def _watch_pull(remote: Remote, model: str, ended: Callable[[dict[str, Any]], bool], *, quiet: bool) -> dict[str, Any]:
    """Follow a pull with a bar of bytes, rate and time on a terminal; elsewhere as `_watch` does."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        return _watch(remote, model, ended, quiet=quiet)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        task = progress.add_task(model, total=None)
        while True:
            view: dict[str, Any] = remote.get(f"/api/models/{model}")
            weights = view["weights"]
            progress.update(task, completed=weights["done_bytes"], total=weights["total_bytes"])
            if ended(view):
                return view
            time.sleep(POLL_S)


def _gpu_name(gpu: dict[str, Any]) -> str:
    """``0``, or ``node-1:0`` where there are several hosts; the slices of one GPU share its number."""
    return f"{gpu['host']}:{gpu['index']}" if gpu["host"] else str(gpu["index"])


def _row(view: dict[str, Any], gpus: dict[str, str]) -> tuple[str, ...]:
    requests = f"{view['in_flight']}" + (f" +{view['held']} held" if view["held"] else "")
    told = (("sleeps_in_s", "sleeps in"), ("stops_in_s", "stops in"))
    idle = next((f"{what} {view[key]:.0f} s" for key, what in told if view[key] is not None), "")
    eta = "" if view["eta_s"] is None else f"{view['eta_s']:.0f} s"
    what = view["error"] or ("" if view["phase"] == "ready" else progress_line(view) if view["note"] else "")
    if view["error"] and view["retry_s"]:
        what += f" (next attempt in {view['retry_s']:.0f} s)"
    held = ",".join(gpus.get(uuid, uuid) for replica in view["replicas"] for uuid in replica["gpus"])
    return view["id"], view["phase"], held, eta, requests, idle, what


def _failure(view: dict[str, Any]) -> str:
    return str(view["error"]) if view["phase"] == "failed" else ""


def _outcome(view: dict[str, Any]) -> int:
    if view["phase"] == "ready":
        return 0
    typer.echo(f"{view['id']} failed: {view['error']}", err=True)
    return 1


def size(count: float | None) -> str:
    """For people: ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if (count or 0) < 1000 or unit == "GB":
            return f"{count or 0:.{0 if unit in ('B', 'kB') else 1}f} {unit}"
        count = (count or 0) / 1000
    return ""


def error_of(answer: Any) -> Refused:
    """What an answer of 400 and above says, and for 401 and 403 what to do about it."""
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"it answered {answer.status_code}"
    if answer.status_code in (401, 403):
        message += f"; set ORCHESTRATOR_API_KEY to {_key_for(answer.request.method, answer.request.url.path)}"
    wait = answer.headers.get("retry-after", "")
    return Refused(message, status=answer.status_code, retry_after_s=float(wait) if wait.isdecimal() else None)


def _key_for(method: str, path: str) -> str:
    """Which key would do."""
    if path == "/api/usage":
        return "a valid key, whatever its scopes"
    if path.startswith("/v1/"):
        scope = "realtime" if path.startswith(("/v1/chat/", "/v1/models")) else "upload"
    else:
        scope = "monitor" if method == "GET" else "admin"
    return f"a key with the scope {scope}"
