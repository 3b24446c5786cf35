"""``orchestrator doctor``: a line for each finding, each with its remedy. Prints no secret."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import typer

from orchestrator.access.key_file import read_keys
from orchestrator.cli.endpoint_checks import check_endpoints
from orchestrator.cli.finding import Finding, Level
from orchestrator.cli.service import check_exposure
from orchestrator.cli.storage_checks import check_documents
from orchestrator.cli.text import printable
from orchestrator.config import cache_dir, deployments, load
from orchestrator.errors import ConfigError, PreflightFailed
from orchestrator.instance_lock import holder_pid
from orchestrator.model import Deployment, WeightsState
from orchestrator.parts import addresses
from orchestrator.routing import by_kind
from orchestrator.settings import Settings
from runtimes.engines import container_engines, engines
from runtimes.engines.vllm import NOT_INSTALLED, find_vllm
from storage.hub import cache_folder, token
from storage.weights import HubWeights

HUB_TIMEOUT_S = 3.0
FREE_BYTES_MIN = 5_000_000_000
IDS_SHOWN = 5


Check = Callable[[Settings], Iterator[Finding]]


def run_doctor(config: Path | None, *, as_json: bool, repair: bool = False) -> int:
    """Check everything, and mend documents with `repair`; 1 when anything fails.

    Blocks: a few seconds, and some more for each 10,000 documents.
    """
    findings = list(examine(config, repair=repair, quiet=as_json))
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            remedy = f": {finding.remedy}" if finding.remedy else ""
            typer.echo(f"{_coloured(finding.level)} {finding.what}{_listed(finding.ids)}{remedy}")
    return 1 if any(finding.level is Level.FAIL for finding in findings) else 0


def examine(config: Path | None, *, repair: bool = False, quiet: bool = True) -> Iterator[Finding]:
    """All findings, as they are made."""
    yield Finding(level=Level.OK, what=f"Python {sys.version.split()[0]}")
    try:
        settings = load(config)
        deployments(settings)
    except ConfigError as error:
        yield Finding(level=Level.FAIL, what="the configuration can't be used", remedy=str(error))
        return
    yield Finding(level=Level.OK, what=f"the configuration loads, {len(settings.models)} models")
    engines_run = _docker if settings.runtime.kind == "docker" else _vllm
    checks: tuple[Check, ...] = (
        *(_exposure, _keys, _data_folder, _port, _files),
        *(engines_run, _gpus, _cache, _hub, _models),
    )
    for check in checks:
        yield from check(settings)
    yield from check_documents(settings, repair=repair, quiet=quiet)


def _exposure(settings: Settings) -> Iterator[Finding]:
    try:
        check_exposure(settings)
        yield Finding(level=Level.OK, what=f"listens on {settings.server.host}")
    except ConfigError as error:
        yield Finding(level=Level.FAIL, what="the address is open to others without keys", remedy=str(error))


def _keys(settings: Settings) -> Iterator[Finding]:
    path = settings.auth.keys_file
    if not path.exists():
        yield Finding(level=Level.OK, what=f"no key file {path}: everything is allowed, on loopback only")
        return
    try:
        count = len(read_keys(path).by_digest)
    except ConfigError as error:
        yield Finding(level=Level.FAIL, what="the key file can't be used", remedy=str(error))
        return
    if path.stat().st_mode & 0o077:
        yield Finding(level=Level.WARN, what=f"{path} can be read by others", remedy=f"chmod 600 {path}")
    else:
        yield Finding(level=Level.OK, what=f"{count} keys in {path}")


def _data_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.server.data_dir.resolve()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        yield Finding(level=Level.FAIL, what=f"{there} can't be written to", remedy="set server.data_dir")
    elif free < FREE_BYTES_MIN:
        yield Finding(level=Level.WARN, what=f"{folder} has {free / 1e9:.1f} GB free", remedy="make room")
    else:
        yield Finding(level=Level.OK, what=f"data folder {folder}, {free / 1e9:.0f} GB free")


def _port(settings: Settings) -> Iterator[Finding]:
    host, port = settings.server.host, settings.server.port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            yield Finding(level=Level.OK, what=f"port {port} is free")
        except OSError as error:
            holder = holder_pid(settings.server.data_dir)
            hint = f"stop what listens there (an orchestrator with this data folder was process {holder})"
            yield Finding(
                level=Level.WARN, what=f"port {port}: {error.strerror}", remedy=hint if holder else "take another port"
            )


def _files(settings: Settings) -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * settings.server.connections_max + 200
    if soft < needed:
        remedy = f"`ulimit -n {needed}`, or lower server.connections_max"
        yield Finding(level=Level.WARN, what=f"only {soft} files may be open", remedy=remedy)
    else:
        yield Finding(level=Level.OK, what=f"{soft} files may be open")


def _vllm(settings: Settings) -> Iterator[Finding]:
    found = find_vllm(cache_dir(os.environ))
    if found is None:
        yield Finding(level=Level.WARN, what="no vLLM", remedy=NOT_INSTALLED)
    else:
        yield Finding(level=Level.OK, what=f"vLLM {'for the CPU ' if found.cpu else ''}with {found.python}")


def _docker(settings: Settings) -> Iterator[Finding]:
    from runtimes.docker.survey import survey

    models = deployments(settings).values()
    images = sorted({deployment.image for deployment in models})
    hosts = addresses(settings.runtime)
    with ThreadPoolExecutor(len(hosts)) as threads:
        surveys = list(threads.map(lambda host: survey(host, images), hosts))
    for seen in surveys:
        if seen.fault:
            remedy = f"{seen.fault}; start it, and see that this user may reach it: `docker version` as the same user"
            yield Finding(level=Level.FAIL, what=f"Docker on {seen.host} does not answer", remedy=remedy)
            continue
        what = f"Docker {seen.engine} on {seen.host}, API {seen.api}"
        old = "update it: 19.03 is the first that gives GPUs to containers" if seen.too_old else ""
        yield Finding(level=Level.FAIL if old else Level.OK, what=what, remedy=old)
        if seen.gpus:
            yield Finding(level=Level.OK, what=f"NVIDIA's runtime on {seen.host}")
        elif any(deployment.gpus != 0 for deployment in models):
            remedy = "where it has GPUs: install NVIDIA's container toolkit, `nvidia-ctk runtime configure "
            remedy += "--runtime=docker`, restart Docker"
            yield Finding(level=Level.WARN, what=f"no NVIDIA runtime in Docker on {seen.host}", remedy=remedy)
        for image in images:
            missing = image in seen.missing
            remedy = f"pulled at the first start; sooner by `docker pull {image}`" if missing else ""
            what = f"image {image} {'is not' if missing else 'is'} on {seen.host}"
            yield Finding(level=Level.OK, what=what, remedy=remedy)


def _gpus(settings: Settings) -> Iterator[Finding]:
    from runtimes.gpus import GpuReader

    reader = GpuReader(environ=os.environ)
    found = reader.look()
    reader.close()
    well = [gpu for gpu in found.gpus if gpu.healthy]
    sizes = [f"{gpu.name} ({gpu.free_bytes / 1e9:.1f} GB free of {gpu.memory_bytes / 1e9:.1f})" for gpu in well]
    more = f"driver {found.driver}" + (f"; CUDA_VISIBLE_DEVICES hides {found.hidden}" if found.hidden else "")
    slow = "engines run on the CPU, which is slow"
    if found.absent:
        yield Finding(level=Level.WARN, what="no NVIDIA driver", remedy=slow)
    elif found.problem:
        yield Finding(level=Level.FAIL, what="the GPUs can't be read", remedy=found.problem)
    elif not found.gpus:
        yield Finding(level=Level.WARN, what=f"no NVIDIA GPU; {more}", remedy=slow)
    elif well:
        count = f"{len(well)} GPU{'s' if len(well) > 1 else ''}"
        yield Finding(level=Level.OK, what=f"{count}: {', '.join(sizes)}; {more}")
    for gpu in found.gpus:
        if not gpu.healthy:
            what = f"GPU {gpu.index} ({gpu.name or gpu.uuid}) is not used"
            yield Finding(level=Level.FAIL, what=what, remedy=gpu.fault)


def _cache(settings: Settings) -> Iterator[Finding]:
    folder = cache_folder(os.environ)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    level = Level.OK if os.access(there, os.W_OK) else Level.FAIL
    remedy = "" if level is Level.OK else "set HF_HOME to a folder that can be written to"
    yield Finding(level=level, what=f"weights go to {folder}, {free / 1e9:.0f} GB free", remedy=remedy)


def _hub(settings: Settings) -> Iterator[Finding]:
    import httpx

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    have = "a token is set" if token(os.environ) else "no token (gated models need HF_TOKEN)"
    try:
        httpx.head(endpoint, timeout=HUB_TIMEOUT_S)
        yield Finding(level=Level.OK, what=f"the hub {endpoint} answers; {have}")
    except httpx.HTTPError as error:
        remedy = "check the network or HF_ENDPOINT; local folders and the cache work without"
        yield Finding(level=Level.WARN, what=f"the hub {endpoint} does not answer: {error}; {have}", remedy=remedy)


def _models(settings: Settings) -> Iterator[Finding]:
    in_images = settings.runtime.kind == "docker"
    weights = HubWeights(pulls_max=1)
    adapters = container_engines() if in_images else engines(cache_dir(os.environ))
    launched, static = by_kind(deployments(settings))
    for name, deployment in launched.items():
        found = weights.look(deployment)
        if found.state is WeightsState.FAILED:
            yield Finding(level=Level.FAIL, what=f"{name}: {found.error}", remedy=f'mend models."{name}".source')
        elif found.state is WeightsState.ABSENT:
            yield Finding(level=Level.OK, what=f"{name}: weights are fetched at the first request, or by `pull`")
        else:
            yield _preflight(deployment, found.path, lambda d, p: adapters[d.engine].preflight(d, p))
    yield from check_endpoints(static)


def _preflight(
    deployment: Deployment, path: str | None, preflight: Callable[[Deployment, str | None], None]
) -> Finding:
    try:
        preflight(deployment, path)
    except PreflightFailed as error:
        return Finding(level=Level.FAIL, what=f"{deployment.name} can't start", remedy=str(error))
    return Finding(level=Level.OK, what=f"{deployment.name}: nothing found that would keep it from starting")


def _listed(ids: Sequence[str]) -> str:
    shown = ", ".join(printable(id) for id in ids[:IDS_SHOWN])
    more = f" and {len(ids) - IDS_SHOWN} more (--json has all)" if len(ids) > IDS_SHOWN else ""
    return f" ({shown}{more})" if ids else ""


def _coloured(level: Level) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return f"{level:4}"
    colour = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}[level]
    return typer.style(f"{level:4}", fg=colour)
