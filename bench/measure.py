"""What is measured, and how: every subject in every round, one after the other, so that noise hits all alike."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench import load
from bench.subjects import Cpus, Subject, cpu_s, engine_argv, free_port, missing, rss_bytes, running

CONNECTIONS = 32
CHUNKS = 200
OPEN_STREAMS = 1000
BLOCKS = 4
"""A round's latencies are taken in so many turns through the subject and past it."""
PER_STREAM = 20
"""A round has one stream for so many requests."""
STARTED_WITHIN_S = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured, and where things run."""

    requests: int
    rounds: int
    starts: int
    cpus: Cpus


@dataclass(kw_only=True, slots=True)
class Figures:
    """One subject's figures, a value for each round; empty: not measured, and `note` says why."""

    name: str
    cpu_ms_per_1000_requests: list[float] = field(default_factory=list)
    cpu_ms_per_1000_chunks: list[float] = field(default_factory=list)
    cpu_ms_per_1000_single_chunks: list[float] = field(default_factory=list)
    added_median_ms: list[float] = field(default_factory=list)
    rss_mb_at_1000_streams: list[float] = field(default_factory=list)
    note: str = ""
    wrong: bool = False
    """Whether it failed, or answered something else than its engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Live:
    subject: Subject
    figures: Figures
    tree: psutil.Process
    port: int
    engine_port: int
    requests: int


_FAULTS = (load.Wrong, TimeoutError, OSError, RuntimeError, psutil.Error)


async def measure(subjects: list[Subject], plan: Plan, say: Callable[[str], None]) -> list[Figures]:
    """The figures of each, in order. Takes minutes. A subject that fails or answers wrongly is noted and left out."""
    all_figures = [Figures(name=subject.name) for subject in subjects]
    with contextlib.ExitStack() as stack:
        engine_port = _engine(stack, plan, 0.0)
        live = []
        for subject, figures in zip(subjects, all_figures, strict=True):
            if missing(subject):
                figures.note = f"not installed: {subject.remedy}"
                continue
            say(f"starting {subject.name}")
            with _noted(figures):
                live.append(await _start(stack, subject, figures, engine_port, plan))
        for number in range(plan.rounds + 1):
            say(f"round {number} of {plan.rounds}" if number else "warming up")
            for each in live:
                if not each.figures.wrong:
                    with _noted(each.figures):
                        await _round(each, warm_up=number == 0)
    for subject, figures in zip(subjects, all_figures, strict=True):
        if not figures.note:
            say(f"{OPEN_STREAMS} streams through {subject.name}")
            with _noted(figures):
                figures.rss_mb_at_1000_streams.append(await _open_streams(subject, plan))
    return all_figures


@contextlib.contextmanager
def _noted(figures: Figures) -> Iterator[None]:
    """A subject's failure becomes its note: the others are measured all the same."""
    try:
        yield
    except _FAULTS as error:
        figures.wrong = True
        figures.note = f"wrong: {type(error).__name__}: {error!s:.300}"


def _engine(stack: contextlib.ExitStack, plan: Plan, delay_s: float) -> int:
    """A running engine's port."""
    port = free_port()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    stack.enter_context(running(_engine_argv(port, plan, delay_s), folder, port))
    return port


def _engine_argv(port: int | str, plan: Plan, delay_s: float) -> list[str]:
    return engine_argv(port, 600 if delay_s else CHUNKS, delay_s, plan.cpus.engine)


async def _start(
    stack: contextlib.ExitStack, subject: Subject, figures: Figures, engine_port: int, plan: Plan, delay_s: float = 0.0
) -> _Live:
    port = free_port()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    argv = subject.argv(folder, port, engine_port, _engine_argv("{port}", plan, delay_s))
    tree = stack.enter_context(running(argv, folder, port, plan.cpus.subject))
    await _ready(subject, port)
    requests = plan.requests // 10 if subject.slow else plan.requests
    return _Live(
        subject=subject, figures=figures, tree=tree, port=port, engine_port=engine_port, requests=max(requests, 100)
    )


async def _ready(subject: Subject, port: int) -> None:
    """Until a request is answered: routers look for their engine first, and ours starts it."""
    ends_at = time.monotonic() + 60
    while True:
        try:
            await load.run(port, connections=1, requests=1, stream=False, rewrites=subject.rewrites)
            return
        except (load.Wrong, OSError):
            if time.monotonic() > ends_at:
                raise
            await asyncio.sleep(0.2)


async def _round(live: _Live, *, warm_up: bool) -> None:
    """One value for each figure of flat-out load."""
    whole = await _cost(live, stream=False)
    chunks = await _cost(live, stream=True)
    single = await _cost(live, stream=True, one_by_one=True)
    added = await _added_ms(live)
    if not warm_up:
        live.figures.cpu_ms_per_1000_requests.append(whole)
        live.figures.cpu_ms_per_1000_chunks.append(chunks)
        live.figures.cpu_ms_per_1000_single_chunks.append(single)
        live.figures.added_median_ms.append(added)


async def _cost(live: _Live, *, stream: bool, one_by_one: bool = False) -> float:
    """CPU milliseconds for a thousand requests, or chunks."""
    requests = max(live.requests // PER_STREAM, CONNECTIONS) if stream else live.requests
    before = cpu_s(live.tree)
    result = await load.run(
        live.port,
        connections=CONNECTIONS,
        requests=requests,
        stream=stream,
        one_by_one=one_by_one,
        chunks=CHUNKS,
        rewrites=live.subject.rewrites,
    )
    return (cpu_s(live.tree) - before) * 1e6 / result.chunks


async def _added_ms(live: _Live) -> float:
    """How much longer the median request takes through the subject than past it, on one connection."""
    each = max(live.requests // (4 * BLOCKS), 20)
    differences = []
    for _ in range(BLOCKS):
        through = await load.run(live.port, connections=1, requests=each, stream=False, rewrites=live.subject.rewrites)
        direct = await load.run(live.engine_port, connections=1, requests=each, stream=False)
        differences.append((through.median_s - direct.median_s) * 1000)
    return statistics.median(differences)


async def _open_streams(subject: Subject, plan: Plan) -> float:
    """Resident megabytes while OPEN_STREAMS slow streams are open, all of them right so far."""
    with contextlib.ExitStack() as stack:
        engine_port = _engine(stack, plan, 1.0)
        live = await _start(stack, subject, Figures(name=subject.name), engine_port, plan, 1.0)
        clients = await load.hold_open(live.port, OPEN_STREAMS)
        try:
            megabytes = rss_bytes(live.tree) / 1e6
            load.check_open(clients, rewrites=subject.rewrites)
        finally:
            load.close(clients)
        return megabytes


def start_seconds(times: int) -> list[float]:
    """From spawning ``orchestrator serve`` to its ``listening``, each time. Raises `Wrong` if it does not serve."""
    return [_start_seconds() for _ in range(times)]


def _start_seconds() -> float:
    argv = (sys.executable, "-m", "orchestrator", "serve", "--port", "0")
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        began = time.perf_counter()
        with subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            assert process.stdout is not None
            try:
                select.select([process.stdout], [], [], STARTED_WITHIN_S)
                took = time.perf_counter() - began
                line = process.stdout.readline().strip() if took < STARTED_WITHIN_S else ""
                if not line.startswith("listening on http://"):
                    raise load.Wrong(f"serve said {line!r} after {took:.1f} s")
                _check_live(line.removeprefix("listening on http://"))
            finally:
                process.terminate()
    return took


def _check_live(address: str) -> None:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/live")
        if (status := connection.getresponse().status) != 200:
            raise load.Wrong(f"/live: status {status}")
    finally:
        connection.close()
